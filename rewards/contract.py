"""What a reward returns, and the two ways in which one can be wrong."""

import math
import re
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, runtime_checkable

LARGEST = 1e15  # of a value and of a score: statistics add up their squares in float32
_SETTING = re.compile(r"\w+=")
# Bounded in length, width and depth: what a reward returned may be huge, or hold itself.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 10_000
_REPR.maxlist = _REPR.maxtuple = _REPR.maxset = _REPR.maxfrozenset = _REPR.maxdict = 40
_REPR.maxlevel = 4


class RewardError(Exception):
    """A reward failed while scoring: it raised, or returned a wrong length, a wrong type or NaN."""


class WorkerUnstartable(RewardError):
    """The worker of an isolated reward was lost, and does not start again."""


class WorkerFault(Exception):
    """What a call in a worker came to, as a clause behind the reward's name: `raised KeyError`."""


class WorkerLost(WorkerFault):
    """The worker hung or crashed, and is gone."""


class RewardConfigError(ValueError):
    """A reward's kind or a parameter is wrong; the message starts with the setting as typed.

    A reward's own `__init__` and `load` start theirs with `parameter=value`; the entry's path is
    put before it. `row` is the index of the sample whose data are at fault, where one is.
    """

    row: int | None = None

    def within(self, where: str) -> "RewardConfigError":
        separator = "." if _SETTING.match(str(self)) else " "
        return RewardConfigError(f"{where}{separator}{self}")


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a completion that earn `credit`, a part of the reward's value.

    The credit lands whole on the token that contains the character at `end`, the first one after
    which the match cannot be undone (the space that shows that a word is over), or on the last
    action if the completion ends there. So a span may depend on text[: end + 1] and on nothing
    later; otherwise the reward-to-go drops credit and another optimum is learnt. What the spans
    leave over of the value goes to the last action.
    """

    start: int
    end: int
    credit: float


class Score(float):
    """A float that carries the spans that earned it. Arithmetic gives a plain float back."""

    __slots__ = ("spans",)
    spans: tuple[Span, ...]

    def __new__(cls, value: float, spans: Iterable[Span] = ()) -> "Score":
        score = super().__new__(cls, value)
        score.spans = tuple(spans)
        return score

    def __reduce__(self) -> tuple[type["Score"], tuple[float, tuple[Span, ...]]]:
        return Score, (float(self), self.spans)

    def __repr__(self) -> str:
        return f"Score({float(self)!r}, spans={self.spans!r})"


@dataclass(frozen=True)
class Failure:
    """Why one sample has no value.

    A reward may return one in a sample's place, so that only that sample fails, under `on_error`.
    `reason` follows the reward's name in the message: "got no value from …".
    """

    reason: str
    cause: BaseException | None = None


# A built reward: data in by name; for each sample out a float, a `Score`, None (does not apply) or
# a `Failure`.
Reward = Callable[..., object]


@runtime_checkable
class Loads(Protocol):
    """A reward whose slow part waits until the whole set has been checked."""

    def load(self) -> None: ...


@runtime_checkable
class ReadsColumns(Protocol):
    """A reward whose settings name columns that it reads; its `__call__` takes `**columns`."""

    def columns_read(self) -> Sequence[str]:
        """The names, beside the positional parameters of `__call__`."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A class whose values depend on what it has seen, and which can say what that was."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values: dicts with strings as keys, lists, strings, finite numbers, None."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, in this process or in another."""
        ...


def described(error: BaseException) -> str:
    """`ValueError: why`, or the type alone where it says nothing."""
    if isinstance(error, WorkerFault):
        return f"its worker {error}"
    try:
        return f"{type(error).__name__}: {error}".removesuffix(": ")
    except Exception:
        return f"{type(error).__name__} (which cannot say why)"


def brief(value: object, limit: int = 120) -> str:
    """`repr`, so that control characters show, with the middle left out where it is long."""
    try:
        text = _REPR.repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"


def plain(returned: object) -> object:
    """Arrays and tensors of numpy, torch and the like as Python's lists and numbers."""
    return returned.tolist() if hasattr(returned, "tolist") else returned


def as_float(item: object) -> float | None:
    """A number of any sort as a float, beyond its range infinity; None for what is no number."""
    if not isinstance(item, Real):
        return None
    try:
        return float(item)
    except OverflowError:
        return math.inf


def telescope(steps: Iterable[tuple[int, int, float]], initial: float = 0.0) -> tuple[Span, ...]:
    """Spans whose credits are the prefix differences of a reward that is no sum of single hits.

    `steps` holds (start, end, value of the text decided at `end`) in the order of reading;
    `initial` is the value of an empty text. The credits add up to the last value less `initial`.
    """
    spans, before = [], initial
    for start, end, value in steps:
        if value != before:
            spans.append(Span(start, end, value - before))
        before = value
    return tuple(spans)
