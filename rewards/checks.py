"""What conformance asks of a reward, a function each; `rewards/conformance.py` runs them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from rewards.asking import Call
from rewards.calling import Columns, Result, Scorer, State, Value
from rewards.contract import Failure, RewardError, Score, Span, brief
from rewards.spec import Bounds, RewardSpec

ENDINGS = (
    "",
    "x",
    " ",
    "'s",
    "-like",
    ". The end.",
    "\u0301",
    "月",
    " she rain moon outer space very",
)
EMOJI = (
    "\U0001f680 \U0001f469\U0001f3fd\u200d\U0001f680 \U0001f1ea\U0001f1fa, she said \u2764\ufe0f."
)
LONG = ("She looked at the moon, and the rain fell on the old harbour. " * 200)[:10_000]
PROMPT = "Once upon a time"
TOLERANCE = 1e-5  # what padding to another batch's length may move a model's output by
_DECISION_POINTS = 50  # of one text, each tried with every ending


@dataclass(frozen=True)
class Subject:
    """A reward that is built and loaded, and what it is tried on."""

    spec: RewardSpec
    built: Scorer
    data: Columns
    first: Mapping[str, Any]  # a value of each column beside prompts and completions
    again: Callable[[], Scorer]  # the same reward, built and loaded once more
    words: Sequence[str] = ()  # that its parameters name: what it may be looking for

    @property
    def bounds(self) -> Bounds | None:
        return self.spec.bounds

    @cached_property
    def start(self) -> State | None:
        """The reward's state before any text, where it has one."""
        return self.built.state()

    def results(self, data: Columns) -> list[Result]:
        """Every sample computed, from the state of the start, whatever calls before have left."""
        if self.start is not None:
            self.built.restore(self.start)
        return self.built.results(data, None, Call(reuse=False))

    @cached_property
    def outcomes(self) -> Sequence[Result]:
        return self.results(self.data)

    def values(self, data: Columns) -> list[Value]:
        """A value for each sample; RewardError where one failed."""
        outcomes = self.results(data)
        return [self.value(outcome, data, i) for i, outcome in enumerate(outcomes)]

    def value(self, outcome: Result, data: Columns, i: int) -> Value:
        if isinstance(outcome, Failure):
            raise RewardError(
                f"{self.built.label} {outcome.reason} for sample {i}: "
                f"{brief(data['completions'][i])}"
            ) from outcome.cause
        return outcome


def _length(subject: Subject) -> str:
    _ = subject.outcomes  # a wrong length, type or span is found on the way
    return ""


def _finite(subject: Subject) -> str:
    for i, outcome in enumerate(subject.outcomes):
        subject.value(outcome, subject.data, i)
    return ""


def _bounds(subject: Subject) -> str:
    if subject.bounds is None:
        return "the reward states no bounds"
    for text, outcome in zip(subject.data["completions"], subject.outcomes, strict=True):
        if not isinstance(outcome, Failure):
            _check_bounds(subject, text, outcome)
    return ""


def _check_bounds(subject: Subject, text: str, value: Value) -> None:
    if value is None or subject.bounds is None:
        return
    low, high = subject.bounds
    if not low <= value <= high:
        spec = subject.spec
        raise RewardError(
            f"{spec.kind} ({spec.source}) gives {float(value)} for {brief(text)}, outside its "
            f"bounds {spec.bounds}"
        )


def _determinism(subject: Subject) -> str:
    _check_same(subject, range(len(subject.outcomes)), "called again")
    return ""


def _order(subject: Subject) -> str:
    rows = range(len(subject.outcomes))
    _check_same(subject, rows[::-1], "in another order")
    for i in rows:
        _check_same(subject, [i], "alone")
    return ""


def _check_same(subject: Subject, rows: Sequence[int], how: str) -> None:
    data = {name: [column[i] for i in rows] for name, column in subject.data.items()}
    again = subject.results(data)
    for i, outcome in zip(rows, again, strict=True):
        before = subject.outcomes[i]
        if not _same(before, outcome):
            raise RewardError(
                f"{subject.built.label} gives {_shown(outcome)} for "
                f"{brief(subject.data['completions'][i])} {how}, but gave {_shown(before)}; a "
                "reward is a function of one sample"
            )


def _same(one: Result, other: Result) -> bool:
    if isinstance(one, Failure) or isinstance(other, Failure):
        return isinstance(one, Failure) and isinstance(other, Failure)
    if one is None or other is None:
        return one is other
    close = math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return close and len(_spans(one)) == len(_spans(other))


def _shown(outcome: Result) -> str:
    return f"no value ({outcome.reason})" if isinstance(outcome, Failure) else repr(outcome)


def _spans(outcome: Result) -> tuple[Span, ...]:
    return outcome.spans if isinstance(outcome, Score) else ()


def _round_trip(subject: Subject) -> str:
    """A state that has seen texts, loaded into a new reward, is the same and goes on the same."""
    if subject.start is None:
        return "the reward keeps no state"
    _ = subject.results(subject.data)
    state = subject.built.state()
    assert state is not None
    other = subject.again()
    try:
        other.restore(state)
        if other.state() != state:
            raise RewardError(
                f"{subject.built.label} has a state_dict() of {brief(other.state())} once "
                f"{brief(state)} is loaded"
            )
        call = Call(reuse=False)
        went_on = subject.built.results(subject.data, None, call)
        _compare(subject, went_on, other.results(subject.data, None, call))
    finally:
        other.close()
    return ""


def _compare(subject: Subject, went_on: Sequence[Result], loaded: Sequence[Result]) -> None:
    for text, one, other in zip(subject.data["completions"], went_on, loaded, strict=True):
        if not _same(one, other):
            raise RewardError(
                f"{subject.built.label} gives {_shown(other)} for {brief(text)} where its state "
                f"was loaded, and {_shown(one)} where it went on: state_dict() leaves something out"
            )


def _causal(subject: Subject) -> str:
    if not any(map(_spans, subject.outcomes)):
        return "the reward returns no spans"
    for i, outcome in enumerate(subject.outcomes):
        _check_causal(subject, i, _spans(outcome))
    return ""


def _check_causal(subject: Subject, i: int, spans: Sequence[Span]) -> None:
    """Whatever follows a decision point, the credit up to there must be the same."""
    text = subject.data["completions"][i]
    ends = sorted({span.end for span in spans if span.end < len(text)} | {len(text) // 2})
    endings = [*ENDINGS, *(form.format(word) for word in subject.words for form in ("{}", " {} "))]
    # Spread over the text: credit for its length comes late.
    for end in ends[:: math.ceil(len(ends) / _DECISION_POINTS)]:
        others = [text[: end + 1] + ending for ending in endings]
        one = {name: [column[i]] * len(others) for name, column in subject.data.items()}
        expected = _credit(spans, end)
        values = subject.values({**one, "completions": others})
        for other, rewritten in zip(others, values, strict=True):
            credit = _credit(_spans(rewritten), end)
            if not _close(credit, expected):
                raise RewardError(
                    f"{subject.built.label} is not causal: up to character {end} of {text!r} it "
                    f"credits {expected}, but {credit} when the text goes on as {other!r}; credit "
                    "may depend on text[:end + 1] only"
                )


def _credit(spans: Sequence[Span], end: int) -> dict[int, float]:
    """Decision point -> credit, up to and with `end`."""
    credit: dict[int, float] = {}
    for span in spans:
        if span.end <= end:
            credit[span.end] = credit.get(span.end, 0.0) + span.credit
    return credit


def _close(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    points = one.keys() | other.keys()
    return all(math.isclose(one.get(p, 0), other.get(p, 0), abs_tol=TOLERANCE) for p in points)


def _one_text(text: str, subject: Subject) -> str:
    data = {name: [value] for name, value in subject.first.items()}
    (value,) = subject.values({**data, "prompts": [PROMPT], "completions": [text]})
    _check_bounds(subject, text, value)
    return ""


# Each returns why there was nothing to check, empty where it passed, and raises RewardError.
CHECKS: Mapping[str, Callable[[Subject], str]] = {
    "length": _length,
    "finite": _finite,
    "bounds": _bounds,
    "determinism": _determinism,
    "order": _order,
    "state": _round_trip,
    "causal": _causal,
    "empty": partial(_one_text, ""),
    "emoji": partial(_one_text, EMOJI),
    "long": partial(_one_text, LONG),
}
