"""The test that every reward must pass: `check("lexical.contains")` or `check(my_function)`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards import calling, registry, schema
from rewards.calling import Columns, Scorer, Value
from rewards.compose import build
from rewards.contract import RewardError, Score, Span, brief
from rewards.entries import RewardEntry
from rewards.spec import RewardSpec

TEXTS = (
    "She looked at the moon, and the moon looked back at her in outer space.",
    "",
    "   \n",
    "?!... -- ...",
    "rain",
    "Rain rain RAIN; very very good. It's raining in order to rain",
    "\U0001f680 \U0001f469‍\U0001f680 東京に雨が降る。 Stra\u00dfe cafe\u0301",
    '{"name": "moon", "words": ["she", "rain"]}',
    "A sports match? The politics of science! " * 40,
)
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
TOLERANCE = 1e-5  # what padding to another batch's length may move a model's output by


def check(
    reward: str | Callable[..., Any],
    params: Mapping[str, Any] | None = None,
    *,
    columns: Columns | None = None,
    texts: Sequence[str] = TEXTS,
) -> None:
    """Raise RewardError where a kind or a function breaks the contract of rewards.

    One finite number or None a sample, within the bounds, for any text; the same for the same text
    in any batch and order; spans within the text whose credit no later text changes. `params` and
    `columns` default to the registered example's; columns are repeated in turn over the texts.
    """
    spec = registry.get(reward) if isinstance(reward, str) else registry.from_function(reward)
    example = dict(spec.example or {})
    example_columns = example.pop("data", {})
    chosen = schema.check_params(spec, example if params is None else params, spec.kind)
    entry = RewardEntry(spec.kind.rpartition(".")[2], spec.kind, chosen)
    built = build(entry, spec)
    built.load()
    data = {
        name: [column[i % len(column)] for i in range(len(texts))]
        for name, column in (example_columns if columns is None else columns).items()
    }
    data |= {"prompts": ["Once upon a time"] * len(texts), "completions": list(texts)}
    values = _values(built, data)
    _check_bounds(spec, data, values)
    _check_same(built, data, values, list(range(len(texts))), "called again")
    _check_same(built, data, values, list(range(len(texts)))[::-1], "in another order")
    for i in range(len(texts)):
        _check_same(built, data, values, [i], "alone")
        _check_causal(built, data, i, values[i])


def _values(built: Scorer, data: Columns) -> list[Value]:
    return calling.values(built, data, use_cache=False)[0]


def _rows(data: Columns, rows: Sequence[int]) -> Columns:
    return {name: [column[i] for i in rows] for name, column in data.items()}


def _check_bounds(spec: RewardSpec, data: Columns, values: Sequence[Value]) -> None:
    if spec.bounds is None:
        return
    low, high = spec.bounds
    for text, value in zip(data["completions"], values, strict=True):
        if value is not None and not low <= value <= high:
            raise RewardError(
                f"{spec.kind} ({spec.source}) gives {float(value)} for {brief(text)}, outside its "
                f"bounds {spec.bounds}"
            )


def _check_same(
    built: Scorer, data: Columns, values: Sequence[Value], rows: list[int], how: str
) -> None:
    for i, value in zip(rows, _values(built, _rows(data, rows)), strict=True):
        before = values[i]
        if before is None or value is None:
            same = before is value
        else:
            same = math.isclose(before, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
            same = same and len(_spans(before)) == len(_spans(value))
        if not same:
            raise RewardError(
                f"{built.label} gives {value!r} for {data['completions'][i]!r} {how}, but gave "
                f"{before!r}; a reward is a function of one sample"
            )


def _spans(value: Value) -> tuple[Span, ...]:
    return value.spans if isinstance(value, Score) else ()


def _check_causal(built: Scorer, data: Columns, i: int, value: Value) -> None:
    """Whatever follows a decision point, the credit up to there must be the same."""
    text, spans = data["completions"][i], _spans(value)
    ends = {span.end for span in spans if span.end < len(text)}
    for end in sorted(ends | ({len(text) // 2} if spans else set()))[:50]:
        others = [text[: end + 1] + ending for ending in ENDINGS]
        one = {name: [column[i]] * len(others) for name, column in data.items()}
        expected = _credit(spans, end)
        for other, rewritten in zip(
            others, _values(built, {**one, "completions": others}), strict=True
        ):
            if not _close(_credit(_spans(rewritten), end), expected):
                raise RewardError(
                    f"{built.label} is not causal: up to character {end} of {text!r} it credits "
                    f"{expected}, but {_credit(_spans(rewritten), end)} when the text goes on as "
                    f"{other!r}; credit may depend on text[:end + 1] only"
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
