"""`early_terminate`: which trials are stopped early, by the rule that W&B documents.

After each number of logged values that is a bracket, a trial goes on if it is among the best
1/eta of all that came so far. https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from rlalign.problems import ConfigError, Problems, shown
from rlalign.settings.schema import nearest

KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")
EXAMPLE = "early_terminate: {type: hyperband, min_iter: 3, eta: 3}"


@dataclass(frozen=True)
class Behind:
    """Why a trial is stopped: at a bracket its value was worse than it had to be."""

    bracket: int
    value: float
    threshold: float

    def __str__(self) -> str:
        return (
            f"stopped early: at bracket {self.bracket} {self.value:.6g} is behind "
            f"{self.threshold:.6g}"
        )


@dataclass(frozen=True)
class Hyperband:
    """Brackets from `min_iter` up by `eta`; or from `max_iter` down, `s` of them."""

    eta: float
    min_iter: int | None
    max_iter: int | None
    s: int | None
    strict: bool  # the value at the bracket counts; else the best so far

    def brackets(self, length: int) -> list[int]:
        """The numbers of values, up to `length`, after which a trial is judged."""
        return list(takewhile(lambda bracket: bracket <= length, self._all()))

    def _all(self) -> Iterator[int]:
        if self.max_iter is not None and self.s is not None:
            down = (self.max_iter / self.eta**i for i in range(self.s, 0, -1))
            yield from (int(bracket) for bracket in down if bracket >= 1)
        elif self.min_iter is not None:
            bracket = float(self.min_iter)
            while True:
                yield int(bracket)
                bracket *= self.eta

    def judge(
        self, own: Sequence[float], everyones: Sequence[Sequence[float]], maximize: bool
    ) -> Behind | None:
        """Whether a trial with these values is to be stopped; `everyones` includes them."""
        if not (brackets := self.brackets(len(own))):
            return None
        best, bracket = max if maximize else min, brackets[-1]
        at_bracket = [values[bracket - 1] for values in everyones if len(values) >= bracket]
        rank = int(1 / self.eta * len(at_bracket))
        threshold = sorted(at_bracket, reverse=maximize)[rank]
        value = own[bracket - 1] if self.strict else best(own)
        is_behind = value < threshold if maximize else value > threshold
        return Behind(bracket, value, threshold) if is_behind else None


def read_early_terminate(given: Any) -> Hyperband:
    """The rule that a sweep file states; ConfigError with all that is wrong, a line each."""
    if not isinstance(given, dict):
        raise ConfigError(f"early_terminate={shown(given)} must be a mapping: {EXAMPLE}")
    problems = Problems()
    for key in given:
        if key not in KEYS:
            close = nearest(str(key), KEYS)
            hint = f"did you mean {close}?" if close else f"there are {', '.join(KEYS)}"
            problems.say(f"early_terminate.{key} is unknown; {hint}")
    kind, eta, strict = given.get("type"), given.get("eta", 3), given.get("strict", False)
    if kind != "hyperband":
        problems.say(f"early_terminate.type={shown(kind)} is unknown; W&B has hyperband: {EXAMPLE}")
    for key in ("min_iter", "max_iter", "s"):
        if key in given and (type(given[key]) is not int or given[key] < 1):
            problems.say(
                f"early_terminate.{key}={shown(given[key])} must be a whole number above 0"
            )
    if type(eta) not in (int, float) or not 1 < eta < math.inf:
        problems.say(f"early_terminate.eta={shown(eta)} must be a number above 1; W&B's is 3")
    if type(strict) is not bool:
        problems.say(f"early_terminate.strict={shown(strict)} must be true or false")
    if ("max_iter" in given) == ("min_iter" in given):
        problems.say(
            "early_terminate takes either min_iter, the first bracket, or max_iter with s, the "
            f"number of brackets: {EXAMPLE}"
        )
    elif ("s" in given) != ("max_iter" in given):
        problems.say("early_terminate: max_iter and s, the number of brackets, go together")
    problems.raise_if_any()
    rule = Hyperband(eta, given.get("min_iter"), given.get("max_iter"), given.get("s"), strict)
    if rule.max_iter is not None and not rule.brackets(rule.max_iter):
        raise ConfigError(
            f"early_terminate has no bracket: max_iter={rule.max_iter} / eta={eta} is below 1; "
            "raise max_iter"
        )
    return rule
