"""One reward on a batch: columns by name, values checked, the culprit named."""

import inspect
import logging
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.apart import Apart
from rewards.asking import Call, Overlong
from rewards.contract import (
    LARGEST,
    Failure,
    Loads,
    ReadsColumns,
    Reward,
    RewardConfigError,
    RewardError,
    Score,
    Span,
    Stateful,
    WorkerFault,
    WorkerLost,
    WorkerUnstartable,
    brief,
    described,
)
from rewards.entries import RewardEntry
from rewards.frozen import frozen
from rewards.isolation import Isolated
from rewards.returned import Item, Wrong, taken
from rewards.spec import RewardSpec
from rewards.state import plain_json
from rewards.trl_style import CONTEXT, TRLFunction, wait_for
from rewards.waiting import watcher

Columns = Mapping[str, Sequence[Any]]
Value = float | Score | None
FAILURE_CEILING = 0.2  # share of a batch that may fail under on_error: skip and value
Result = Value | Failure
State = dict[str, Any]  # JSON
logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """A built entry: one reward, one for each value of a column, or a combination of several."""

    @property
    def entry(self) -> RewardEntry: ...
    @property
    def label(self) -> str: ...
    @property
    def needs(self) -> frozenset[str]: ...  # the columns that it cannot do without

    def load(self) -> None: ...  # what is slow, such as reading a model
    def check(self, data: Columns) -> None: ...  # refuse wrong values in a whole set of prompts
    def close(self) -> None: ...  # end its worker processes
    def state(self) -> State | None: ...  # what its values depend on beside the samples, if at all
    def restore(self, state: State) -> None: ...
    def results(
        self, data: Columns, rows: Sequence[int] | None = None, call: Call | None = None
    ) -> list[Result]: ...  # of the chosen rows of `data`, in their order, or of all


def values(scorer: Scorer, data: Columns, call: Call) -> tuple[list[Value], int]:
    """A value for each sample, and how many of them failed and became None.

    `data` holds the completions and every other column, whatever the reward reads of them;
    RewardConfigError where it lacks one that the reward needs.
    """
    return _settle(scorer.entry, scorer.results(data, None, call), data["completions"])


def require(entry: RewardEntry, needs: Iterable[str], data: Columns) -> None:
    for name in sorted(needs):
        if name not in data:
            raise RewardConfigError(
                f"reward '{entry.name}' needs the column '{name}'; the data has: "
                f"{', '.join(sorted(data.keys() - {CONTEXT}))}"
            )


_UNTRIED = Failure("was not tried")
_FAULTS = (Exception, SystemExit)  # sys.exit would end the run with its code


@dataclass(frozen=True)
class Batch:
    texts: Sequence[str]  # the completions, for spans and messages
    columns: Columns  # what the reward reads

    def sample(self, i: int) -> str:
        return f"sample {i}: {brief(self.texts[i])}"


class BuiltReward:
    """A reward with its configuration, called with whole batches.

    A call's values depend on the batch, its seed and the reward's own state: nothing is kept from
    the calls before, in which a resumed run would have scored other texts.
    """

    def __init__(
        self, entry: RewardEntry, spec: RewardSpec, function: Reward | Isolated, apart: Apart
    ) -> None:
        self.entry, self.spec, self._function, self._apart = entry, spec, function, apart

    @property
    def label(self) -> str:
        return label(self.entry, self.spec)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(name for name, optional in self.columns.items() if not optional)

    @property
    def columns(self) -> Mapping[str, bool]:
        """The columns that it reads, and whether each may be missing."""
        named = self._function.columns_read() if isinstance(self._function, ReadsColumns) else ()
        return {**self.spec.signature.data, **dict.fromkeys(named, False)}

    def load(self) -> None:
        """The slow part of building, which a class may have: see `@reward`."""
        if not (inspect.isclass(self.spec.target) and isinstance(self._function, Loads)):
            return
        try:
            with self._apart:
                self._function.load()
        except RewardConfigError as error:
            raise error.within(f"rewards.{self.entry.name}") from error
        except (SystemExit, WorkerFault) as error:
            raise RewardConfigError(
                f"rewards.{self.entry.name} ({self.spec.kind}, {self.spec.source}) cannot be "
                f"loaded: {described(error)}"
            ) from error

    def check(self, data: Columns) -> None:
        """Refuse data that lack a column."""
        require(self.entry, self.needs, data)

    def close(self) -> None:
        """End the reward's worker, where it has one."""
        if isinstance(self._function, Isolated):
            self._function.close()

    def state(self) -> State | None:
        """A copy of the reward's state; None where it has none."""
        if not self.spec.is_stateful:
            return None
        try:
            if isinstance(self._function, Isolated):
                return self._function.state
            assert isinstance(self._function, Stateful)
            with self._apart:
                return plain_json(self._function.state_dict(), self.label)
        except RewardError:
            raise
        except _FAULTS as error:
            raise RewardError(f"{self.label} {_clause(error)} in state_dict()") from error

    def restore(self, state: State) -> None:
        """Go on from a state."""
        try:
            if isinstance(self._function, Isolated):
                self._function.restore(state)
                return
            assert isinstance(self._function, Stateful)
            with self._apart:
                self._function.load_state_dict(plain_json(state, self.label))
        except _FAULTS as error:
            raise RewardError(f"{self.label} {_clause(error)} in load_state_dict()") from error

    def results(
        self, data: Columns, rows: Sequence[int] | None = None, call: Call | None = None
    ) -> list[Result]:
        """What the chosen rows of `data` are worth, or why they have no value."""
        call = call or Call()
        batch = Batch(data["completions"], self._select(data))
        rows = range(len(batch.texts)) if rows is None else rows
        keys = [self._key(batch, i) if call.reuse else None for i in rows]
        first: dict[Hashable, int] = {}  # of equal samples, the one that is computed
        wanted = [
            i
            for i, key in zip(rows, keys, strict=True)
            if key is None or first.setdefault(key, i) == i
        ]
        found = dict(zip(wanted, self._compute(batch, wanted, call), strict=True))
        return [found[i if key is None else first[key]] for i, key in zip(rows, keys, strict=True)]

    def _select(self, data: Columns) -> Columns:
        if self.spec.signature.takes_all:
            return data
        require(self.entry, self.needs, data)
        return {name: data[name] for name in self.columns if name in data}

    def _key(self, batch: Batch, i: int) -> Hashable:
        is_pure = self.spec.cache and not self.spec.is_stateful
        return frozen([column[i] for column in batch.columns.values()]) if is_pure else None

    def _compute(self, batch: Batch, wanted: Sequence[int], call: Call) -> list[Result]:
        if not wanted:
            return []
        before = self.state()
        try:
            returned = self._call(batch, wanted, call.within("batch"))
        except RewardConfigError as error:
            raise error.within(f"rewards.{self.entry.name}") from error
        except WorkerUnstartable:
            raise
        except Overlong as error:
            raise RewardError(self._overlong(error)) from None
        except _FAULTS as error:
            if before is not None:  # the samples are about to be seen again
                self.restore(before)
            return self._one_by_one(batch, wanted, call, error)
        return self._checked(returned, batch, wanted)

    def _one_by_one(
        self, batch: Batch, wanted: Sequence[int], call: Call, error: BaseException
    ) -> list[Result]:
        """The batch call raised: find the samples that are to blame.

        One by one and not by halves: each call with a sample that hangs lasts the deadline.
        """
        results: list[Result] = []
        allowed = 0 if self.entry.on_error == "raise" else FAILURE_CEILING * len(batch.texts)
        failed: list[str] = []
        for i in wanted:
            try:
                returned = self._call(batch, [i], call.within(i), alone=True)
            except WorkerUnstartable:
                raise
            except Overlong as out_of_time:
                tried = f"{_clause(error)} on {len(wanted)} samples, and {len(results)} were tried"
                found = f"; {failed[0]}" if failed else ""
                raise RewardError(self._overlong(out_of_time, f"{tried} alone{found}")) from None
            except _FAULTS as alone:
                results.append(self._failure(_clause(alone), alone))
                failed.append(f"it {_clause(alone)} for {batch.sample(i)}")
                if len(failed) > allowed:
                    break
            else:
                results += self._checked(returned, batch, [i])
        if not any(isinstance(result, Failure) for result in results):
            fault = (
                f"{self.label} {_clause(error)} on {len(wanted)} samples, though on none of them "
                "alone"
            )
            if not isinstance(error, WorkerLost):
                raise RewardError(fault) from error
            # Chance, memory or a deadline too short for so many: the values are sound.
            logger.warning("%s; their values stand", fault)
        return [*results, *[_UNTRIED] * (len(wanted) - len(results))]

    def _call(
        self, batch: Batch, wanted: Sequence[int], call: Call, *, alone: bool = False
    ) -> list[Item] | Wrong:
        """What the reward returns for these samples, called once; whatever it raises comes out."""
        columns = {name: [column[i] for i in wanted] for name, column in batch.columns.items()}
        of_how_many = f"{len(wanted)} samples, the first being " if len(wanted) > 1 else ""
        watcher.get()(f"{self.label} on {of_how_many}{batch.sample(wanted[0])}")
        if isinstance(self._function, Isolated):
            return self._function.call(columns, len(wanted), call, alone=alone)
        self._apart.start(call.seed)
        with self._apart:
            returned = self._function(**columns)
            if not inspect.iscoroutine(returned):
                return taken(returned, len(wanted))
        # Not apart as a whole: others may run while it waits.
        answer = wait_for(returned, self._apart)
        with self._apart:
            return taken(answer, len(wanted))

    def _checked(
        self, returned: list[Item] | Wrong, batch: Batch, wanted: Sequence[int]
    ) -> list[Result]:
        if isinstance(returned, Wrong):
            raise RewardError(f"{self.label} {returned.what}")
        return [self._value(item, batch, i) for item, i in zip(returned, wanted, strict=True)]

    def _value(self, item: Item, batch: Batch, i: int) -> Result:
        if item is None:
            return None
        if isinstance(item, Failure):
            return self._failure(item.reason, item.cause)
        if isinstance(item, Wrong):
            raise RewardError(
                f"{self.label} {item.what} for {batch.sample(i)}; a value is a number or None"
            )
        if not math.isfinite(item):
            return self._failure(f"returned {float(item)}")
        if abs(item) > LARGEST:
            return self._failure(f"returned {item:g} (the most is {LARGEST:g}; scale it down)")
        for span in item.spans if isinstance(item, Score) else ():
            self._check_span(span, batch, i)
        return item

    def _check_span(self, span: Span, batch: Batch, i: int) -> None:
        if not abs(span.credit) <= LARGEST:  # NaN neither
            fault = f"the credit {brief(span.credit)}"
        elif not 0 <= span.start <= span.end <= len(batch.texts[i]):
            fault = f"the span [{span.start}, {span.end}), which lies outside its text,"
        else:
            return
        raise RewardError(f"{self.label} returned {fault} for {batch.sample(i)}")

    def _overlong(self, error: Overlong, so_far: str = "has hanging samples") -> str:
        return (
            f"{self.label} {so_far}: {error}; raise rewards.{self.entry.name}.deadline where it is "
            "slow, or find what makes it hang"
        )

    def _failure(self, clause: str, cause: BaseException | None = None) -> Failure:
        return Failure(f"{self.label} {clause}", cause)


def is_async(scorer: Scorer) -> bool:
    """Whether it is a function that waits, and so may do so beside others."""
    target = scorer.spec.target if isinstance(scorer, BuiltReward) else None
    return isinstance(target, TRLFunction) and target.is_async


def label(entry: RewardEntry, spec: RewardSpec) -> str:
    return f"reward '{entry.name}' ({spec.kind}, {spec.source})"


def _settle(
    entry: RewardEntry, results: Sequence[Result], texts: Sequence[str]
) -> tuple[list[Value], int]:
    """Raise on a failure, or up to the ceiling turn it into None or the entry's error_value."""
    failed = [(i, r) for i, r in enumerate(results) if isinstance(r, Failure) and r is not _UNTRIED]
    if failed and (entry.on_error == "raise" or len(failed) > FAILURE_CEILING * len(results)):
        i, failure = failed[0]
        many = (
            f", and failed on {len(failed)} of {len(results)} samples; on_error: {entry.on_error} "
            f"allows {FAILURE_CEILING:.0%}"
            if entry.on_error != "raise"
            else ""
        )
        sample = f"sample {i}: {brief(texts[i])}"
        raise RewardError(f"{failure.reason} for {sample}{many}") from failure.cause
    instead = entry.error_value  # None under skip
    return [instead if isinstance(r, Failure) else r for r in results], len(failed)


def _clause(error: BaseException) -> str:
    return str(error) if isinstance(error, WorkerFault) else f"raised {described(error)}"
