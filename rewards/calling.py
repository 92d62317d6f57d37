"""One reward on a batch: columns by name, values checked, the culprit named, texts cached."""

import inspect
import logging
import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.contract import (
    Loads,
    Reward,
    RewardConfigError,
    RewardError,
    Score,
    Span,
    WorkerFault,
    WorkerLost,
    as_float,
    brief,
    described,
    plain,
)
from rewards.entries import RewardEntry
from rewards.isolation import Foreign, Isolated
from rewards.randomness import OwnRandomness
from rewards.spec import RewardSpec

Columns = Mapping[str, Sequence[Any]]
Value = float | Score | None
FAILURE_CEILING = 0.2  # share of a batch that may fail under on_error: skip and value
_CACHED_VALUES = 10_000
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why one sample has no value."""

    reason: str
    cause: BaseException | None = None


_UNTRIED = Failure("was not tried")


@dataclass(frozen=True)
class Batch:
    texts: Sequence[str]  # the completions, for spans and messages
    columns: Columns  # what the reward reads

    def sample(self, i: int) -> str:
        return f"sample {i}: {brief(self.texts[i])}"


class BuiltReward:
    """A reward with its configuration, called with whole batches."""

    def __init__(self, entry: RewardEntry, spec: RewardSpec, function: Reward) -> None:
        self.entry, self.spec, self._function = entry, spec, function
        self._cache: OrderedDict[Hashable, Value] = OrderedDict()
        self._randomness = OwnRandomness()

    @property
    def label(self) -> str:
        return f"reward '{self.entry.name}' ({self.spec.kind}, {self.spec.source})"

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

    def close(self) -> None:
        """End the reward's worker, where it has one."""
        if isinstance(self._function, Isolated):
            self._function.close()

    def values(self, data: Columns, *, use_cache: bool = True) -> tuple[list[Value], int]:
        """A value for each sample, and how many of them failed: theirs is as `on_error` says.

        `data` holds the completions and every other column, whatever the reward reads of them;
        RewardConfigError where it lacks one that the reward needs.
        """
        batch = Batch(data["completions"], self._select(data))
        keys = self._keys(batch) if use_cache else [None] * len(batch.texts)
        # Samples to compute: one for each new key, and all that have none.
        first: dict[Hashable, int] = {}
        wanted = []
        for i, key in enumerate(keys):
            if key is None or (key not in self._cache and key not in first):
                wanted.append(i)
                first.setdefault(key, i)
        with self._randomness:
            fresh = dict(zip(wanted, self._compute(batch, wanted), strict=True))
        results: list[Value | Failure] = []
        for i, key in enumerate(keys):
            if i in fresh:
                results.append(fresh[i])
            elif key in first:
                results.append(fresh[first[key]])
            else:
                self._cache.move_to_end(key)
                results.append(self._cache[key])
        self._remember(keys, results)
        return self._settle(results, batch)

    def _select(self, data: Columns) -> Columns:
        signature = self.spec.signature
        if signature.takes_all:
            return data
        for name, optional in signature.data.items():
            if name not in data and not optional:
                raise RewardConfigError(
                    f"reward '{self.entry.name}' needs the column '{name}'; the data has: "
                    f"{', '.join(sorted(data))}"
                )
        return {name: data[name] for name in signature.data if name in data}

    def _keys(self, batch: Batch) -> list[Hashable]:
        size = len(batch.texts)
        if not self.spec.cache:
            return [None] * size
        return [_key([column[i] for column in batch.columns.values()]) for i in range(size)]

    def _compute(self, batch: Batch, wanted: Sequence[int]) -> list[Value | Failure]:
        if not wanted:
            return []
        try:
            returned = self._call(batch, wanted)
        except RewardConfigError as error:
            raise error.within(f"rewards.{self.entry.name}") from error
        except (Exception, SystemExit) as error:  # sys.exit would end the run with its code
            return self._one_by_one(batch, wanted, error)
        return self._checked(returned, batch, wanted)

    def _one_by_one(
        self, batch: Batch, wanted: Sequence[int], error: BaseException
    ) -> list[Value | Failure]:
        """The batch call raised: find the samples that are to blame.

        One by one and not by halves: each call with a sample that hangs lasts the deadline.
        """
        results: list[Value | Failure] = []
        allowed = 0 if self.entry.on_error == "raise" else FAILURE_CEILING * len(batch.texts)
        failures = 0
        for i in wanted:
            try:
                results += self._checked(self._call(batch, [i]), batch, [i])
            except RewardError:
                raise
            except (Exception, SystemExit) as alone:
                results.append(Failure(_clause(alone), alone))
                failures += 1
                if failures > allowed:
                    break
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

    def _checked(
        self, returned: object, batch: Batch, wanted: Sequence[int]
    ) -> list[Value | Failure]:
        returned = plain(returned)
        if not isinstance(returned, list | tuple):
            raise RewardError(
                f"{self.label} returned {_shown(returned)}; a reward returns a list with a number "
                "or None for each sample"
            )
        if len(returned) != len(wanted):
            raise RewardError(
                f"{self.label} returned {len(returned)} values for {len(wanted)} samples"
            )
        return [self._value(item, batch, i) for item, i in zip(returned, wanted, strict=True)]

    def _value(self, item: object, batch: Batch, i: int) -> Value | Failure:
        if item is None:
            return None
        item = plain(item)
        number = as_float(item)
        if number is None:
            raise RewardError(
                f"{self.label} returned {_shown(item)} for {batch.sample(i)}; a value is a number "
                "or None"
            )
        if not math.isfinite(number):
            return Failure(f"returned {number}")
        if not isinstance(item, Score) or not item.spans:
            return number
        for span in item.spans:
            self._check_span(span, batch, i)
        return item

    def _check_span(self, span: Span, batch: Batch, i: int) -> None:
        if not math.isfinite(span.credit):
            fault = f"the credit {span.credit}"
        elif not 0 <= span.start <= span.end <= len(batch.texts[i]):
            fault = f"the span [{span.start}, {span.end}), which lies outside its text,"
        else:
            return
        raise RewardError(f"{self.label} returned {fault} for {batch.sample(i)}")

    def _remember(self, keys: Sequence[Hashable], results: Sequence[Value | Failure]) -> None:
        for key, result in zip(keys, results, strict=True):
            if key is not None and not isinstance(result, Failure):
                self._cache[key] = result
        while len(self._cache) > _CACHED_VALUES:
            self._cache.popitem(last=False)

    def _settle(self, results: Sequence[Value | Failure], batch: Batch) -> tuple[list[Value], int]:
        """Raise on a failure, or up to the ceiling turn it into None or the entry's error_value."""
        failed = [
            (i, r) for i, r in enumerate(results) if isinstance(r, Failure) and r is not _UNTRIED
        ]
        on_error = self.entry.on_error
        if failed and (on_error == "raise" or len(failed) > FAILURE_CEILING * len(results)):
            i, failure = failed[0]
            many = (
                f", and failed on {len(failed)} of {len(results)} samples; on_error: {on_error} "
                f"allows {FAILURE_CEILING:.0%}"
                if on_error != "raise"
                else ""
            )
            raise RewardError(
                f"{self.label} {failure.reason} for {batch.sample(i)}{many}"
            ) from failure.cause
        instead = self.entry.error_value  # None under skip
        return [instead if isinstance(r, Failure) else r for r in results], len(failed)


def _clause(error: BaseException) -> str:
    return str(error) if isinstance(error, WorkerFault) else f"raised {described(error)}"


def _shown(returned: object) -> str:
    if isinstance(returned, Foreign):
        return f"{returned.type_name} {returned.shown}"
    return f"{type(returned).__name__} {brief(returned)}"


def _key(values: Sequence[Any]) -> Hashable:
    """A hashable that is equal for equal values only, or None where there is no such thing."""
    try:
        return tuple(_frozen(value) for value in values)
    except TypeError:
        return None


def _frozen(value: Any) -> Hashable:
    if value is None or isinstance(value, str | bool | int | float):
        return type(value), value  # 1, 1.0 and True are equal
    if isinstance(value, list | tuple):
        return type(value), tuple(_frozen(item) for item in value)
    if isinstance(value, Mapping):
        return dict, tuple((_frozen(k), _frozen(v)) for k, v in value.items())
    raise TypeError
