"""What changed between two evaluations: means with 95% intervals, over whole prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlalign.metrics import bootstrap, difference

Rows = Sequence[Mapping[str, Any]]
Value = float | None


@dataclass(frozen=True)
class Mean:
    value: float
    low: float  # the ends of its 95% bootstrap interval
    high: float


@dataclass(frozen=True)
class Change:
    """A number before and after, and the difference; all None where one side has no value."""

    name: str
    before: Mean | None
    after: Mean | None
    difference: Mean | None
    is_reward: bool = False  # a reward may be named `score`, too


def reward_names(rows: Rows) -> list[str]:
    return list(rows[0]["rewards"]) if rows else []


def changes(before: Rows, after: Rows) -> list[Change]:
    """Score, KL and each reward of two evaluations' samples, in this order."""

    def both(name: str) -> tuple[list[Value], list[Value]]:
        found = [[row["rewards"].get(name) for row in rows] for rows in (before, after)]
        return found[0], found[1]

    prompts = [[str(row["prompt"]) for row in rows] for rows in (before, after)]
    plain = {"score": "score", "KL, nats": "kl"}
    made = [
        change(title, [r[key] for r in before], [r[key] for r in after], *prompts)
        for title, key in plain.items()
    ]
    of_rewards = [change(name, *both(name), *prompts) for name in reward_names(after)]
    return made + [replace(each, is_reward=True) for each in of_rewards]


def change(
    name: str,
    before: Sequence[Value],
    after: Sequence[Value],
    before_prompts: Sequence[str],
    after_prompts: Sequence[str],
) -> Change:
    """One number's; over pairs of responses where both evaluations asked the same prompts."""
    start = list(zip(before_prompts, before, strict=True))
    end = list(zip(after_prompts, after, strict=True))
    paired = before_prompts == after_prompts
    if paired:
        both = [(a, b) for a, b in zip(start, end, strict=True) if None not in (a[1], b[1])]
        start, end = [a for a, _ in both], [b for _, b in both]
    first, second = ([v for _, v in each if v is not None] for each in (start, end))
    if not first or not second:
        return Change(name, None, None, None)
    groups = [_groups([p for p, v in each if v is not None]) for each in (start, end)]
    moved = difference(first, second, paired=paired, groups=(groups[0], groups[1]))
    ends = [
        Mean(math.fsum(values) / len(values), *bootstrap(values, groups=group))
        for values, group in zip((first, second), groups, strict=True)
    ]
    return Change(name, ends[0], ends[1], Mean(*moved))


def _groups(prompts: Sequence[str]) -> Sequence[str] | None:
    """The prompts to draw by; None for a single one, of which every draw would be the same."""
    return prompts if len(set(prompts)) > 1 else None
