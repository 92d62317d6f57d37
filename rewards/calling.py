"""One reward on a batch: columns by name, values checked, the culprit named, texts cached."""

import inspect
import logging
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

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
    WorkerFault,
    WorkerLost,
    WorkerUnstartable,
    as_float,
    brief,
    described,
    plain,
)
from rewards.entries import RewardEntry
from rewards.frozen import frozen
from rewards.isolation import Foreign, Isolated
from rewards.randomness import OwnRandomness
from rewards.spec import RewardSpec
from rewards.trl_style import CONTEXT, TRLFunction

Columns = Mapping[str, Sequence[Any]]
Value = float | Score | None
FAILURE_CEILING = 0.2  # share of a batch that may fail under on_error: skip and value
Result = Value | Failure
ValueCache = OrderedDict[Hashable, Value]
_CACHED_VALUES = 10_000
logger = logging.getLogger(__name__)
# Whether this thread runs beside others, and so cannot have the random generators for itself.
shares_generators = ContextVar("shares_generators", default=False)


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
    def results(
        self, data: Columns, rows: Sequence[int] | None = None, *, use_cache: bool = True
    ) -> list[Result]: ...  # of the chosen rows of `data`, in their order, or of all


def values(scorer: Scorer, data: Columns, *, use_cache: bool = True) -> tuple[list[Value], int]:
    """A value for each sample, and how many of them failed and became None.

    `data` holds the completions and every other column, whatever the reward reads of them;
    RewardConfigError where it lacks one that the reward needs.
    """
    return _settle(scorer.entry, scorer.results(data, use_cache=use_cache), data["completions"])


def require(entry: RewardEntry, needs: Iterable[str], data: Columns) -> None:
    for name in sorted(needs):
        if name not in data:
            raise RewardConfigError(
                f"reward '{entry.name}' needs the column '{name}'; the data has: "
                f"{', '.join(sorted(data.keys() - {CONTEXT}))}"
            )


_UNTRIED = Failure("was not tried")


@dataclass(frozen=True)
class Batch:
    texts: Sequence[str]  # the completions, for spans and messages
    columns: Columns  # what the reward reads

    def sample(self, i: int) -> str:
        return f"sample {i}: {brief(self.texts[i])}"


class BuiltReward:
    """A reward with its configuration, called with whole batches."""

    def __init__(
        self,
        entry: RewardEntry,
        spec: RewardSpec,
        function: Reward,
        cache: ValueCache | None = None,
        given: Hashable = (),
    ) -> None:
        """`given` tells apart rewards that share a `cache`."""
        self.entry, self.spec, self._function = entry, spec, function
        self._cache: ValueCache = OrderedDict() if cache is None else cache
        self._given = given
        self._randomness = OwnRandomness()

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
            with self._randomness:
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

    def results(
        self, data: Columns, rows: Sequence[int] | None = None, *, use_cache: bool = True
    ) -> list[Result]:
        """What the chosen rows of `data` are worth, or why they have no value."""
        batch = Batch(data["completions"], self._select(data))
        rows = range(len(batch.texts)) if rows is None else rows
        keys = [self._key(batch, i) if use_cache else None for i in rows]
        # Samples to compute: one for each new key, and all that have none.
        first: dict[Hashable, int] = {}
        wanted = []
        for i, key in zip(rows, keys, strict=True):
            if key is None or (key not in self._cache and key not in first):
                wanted.append(i)
                first.setdefault(key, i)
        with nullcontext() if shares_generators.get() else self._randomness:
            fresh = dict(zip(wanted, self._compute(batch, wanted), strict=True))
        results: list[Result] = []
        for i, key in zip(rows, keys, strict=True):
            if i in fresh:
                results.append(fresh[i])
            elif key in first:
                results.append(fresh[first[key]])
            else:
                self._cache.move_to_end(key)
                results.append(self._cache[key])
        self._remember(keys, results)
        return results

    def _select(self, data: Columns) -> Columns:
        if self.spec.signature.takes_all:
            return data
        require(self.entry, self.needs, data)
        return {name: data[name] for name in self.columns if name in data}

    def _key(self, batch: Batch, i: int) -> Hashable:
        own = frozen([column[i] for column in batch.columns.values()]) if self.spec.cache else None
        return None if own is None else (self._given, own)

    def _compute(self, batch: Batch, wanted: Sequence[int]) -> list[Result]:
        if not wanted:
            return []
        try:
            returned = self._call(batch, wanted)
        except RewardConfigError as error:
            raise error.within(f"rewards.{self.entry.name}") from error
        except WorkerUnstartable:
            raise
        except (Exception, SystemExit) as error:  # sys.exit would end the run with its code
            return self._one_by_one(batch, wanted, error)
        return self._checked(returned, batch, wanted)

    def _one_by_one(
        self, batch: Batch, wanted: Sequence[int], error: BaseException
    ) -> list[Result]:
        """The batch call raised: find the samples that are to blame.

        One by one and not by halves: each call with a sample that hangs lasts the deadline.
        """
        results: list[Result] = []
        allowed = 0 if self.entry.on_error == "raise" else FAILURE_CEILING * len(batch.texts)
        failures = 0
        for i in wanted:
            try:
                returned = self._call(batch, [i])
            except WorkerUnstartable:
                raise
            except (Exception, SystemExit) as alone:
                results.append(self._failure(_clause(alone), alone))
                failures += 1
                if failures > allowed:
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

    def _call(self, batch: Batch, wanted: Sequence[int]) -> object:
        return self._function(
            **{name: [column[i] for i in wanted] for name, column in batch.columns.items()}
        )

    def _checked(self, returned: object, batch: Batch, wanted: Sequence[int]) -> list[Result]:
        try:
            return self._read(returned, batch, wanted)
        except RewardError:
            raise
        except Exception as error:  # of the objects that it returned, when one looks at them
            raise RewardError(
                f"{self.label} returned {type(returned).__name__}, which raised "
                f"{described(error)} when it was read; return a list of plain numbers"
            ) from error

    def _read(self, returned: object, batch: Batch, wanted: Sequence[int]) -> list[Result]:
        returned = plain(returned)
        if not isinstance(returned, list | tuple):
            raise RewardError(
                f"{self.label} returned {_shown(returned)}; a reward returns a list with a number "
                "or None for each sample"
            )
        items = list(returned)  # not its len(): a class of the reward's own may say anything
        if len(items) != len(wanted):
            raise RewardError(
                f"{self.label} returned {len(items)} values for {len(wanted)} samples"
            )
        return [self._value(item, batch, i) for item, i in zip(items, wanted, strict=True)]

    def _value(self, item: object, batch: Batch, i: int) -> Result:
        if item is None:
            return None
        if isinstance(item, Failure):
            return self._failure(item.reason, item.cause)
        item = plain(item)
        number = as_float(item)
        if number is None:
            raise RewardError(
                f"{self.label} returned {_shown(item)} for {batch.sample(i)}; a value is a number "
                "or None"
            )
        if not math.isfinite(number):
            return self._failure(f"returned {number}")
        if abs(number) > LARGEST:
            return self._failure(f"returned {number:g} (the most is {LARGEST:g}; scale it down)")
        if not isinstance(item, Score) or not item.spans:
            return number
        for span in item.spans:
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

    def _remember(self, keys: Sequence[Hashable], results: Sequence[Result]) -> None:
        for key, result in zip(keys, results, strict=True):
            if key is not None and not isinstance(result, Failure):
                self._cache[key] = result
        while len(self._cache) > _CACHED_VALUES:
            self._cache.popitem(last=False)

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


def _shown(returned: object) -> str:
    if isinstance(returned, Foreign):
        return f"{returned.type_name} {returned.shown}"
    return f"{type(returned).__name__} {brief(returned)}"
