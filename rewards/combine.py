"""Several rewards as one value: the product or the smallest of their parts."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from rewards.asking import Call
from rewards.calling import Columns, Result, Scorer, State, label
from rewards.contract import LARGEST, Failure
from rewards.entries import RewardEntry
from rewards.registry import add_combination
from rewards.spec import RewardSpec
from rewards.trl_style import for_entry

Parts = Annotated[
    dict[str, Any],
    Field(
        description="name -> {kind, its parameters, threshold, scale, clip}; null removes a part"
    ),
]
_EXAMPLE = {
    "parts": {
        "rain": {"kind": "lexical.word_rate", "words": ["rain"], "scale": 10, "clip": [0, 1]},
        "brief": {"kind": "structure.word_count", "max": 30, "slack": 10},
        "varied": {"kind": "lexical.diversity", "threshold": 0.8},
    }
}


def product(values: Sequence[float]) -> float:
    """The product of the parts' values: high only where every part is, as for "A and B".

    Each part is shaped first: its `threshold`, then `scale`, then `clip`. None where a part gives
    None. For values of 0 or more: two negative ones would make a positive one. All of the credit
    goes to the last action, since what a part adds depends on the others.
    """
    return math.prod(values)


def smallest(values: Sequence[float]) -> float:
    """The smallest of the parts' values: as good as the worst of them.

    Each part is shaped first: its `threshold`, then `scale`, then `clip`. None where a part gives
    None. All of the credit goes to the last action, since the worst part may still change.
    """
    return min(values)


add_combination("combine.all", product, Parts, _EXAMPLE)
add_combination("combine.min", smallest, Parts, _EXAMPLE)


class Combination:
    """Scores its parts and makes one value of theirs; a part that fails fails the combination."""

    def __init__(self, entry: RewardEntry, spec: RewardSpec, parts: Sequence[Scorer]) -> None:
        self.entry, self.spec, self._parts = entry, spec, tuple(parts)

    @property
    def label(self) -> str:
        return label(self.entry, self.spec)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(name for part in self._parts for name in part.needs)

    def load(self) -> None:
        for part in self._parts:
            part.load()

    def check(self, data: Columns) -> None:
        for part in self._parts:
            part.check(data)

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def state(self) -> State | None:
        """That of the parts, by name; None where none has one."""
        states = {_name(part): part.state() for part in self._parts}
        return {name: state for name, state in states.items() if state is not None} or None

    def restore(self, state: State) -> None:
        for part in self._parts:
            if _name(part) in state:
                part.restore(state[_name(part)])

    def results(
        self, data: Columns, rows: Sequence[int] | None = None, call: Call | None = None
    ) -> list[Result]:
        """One value for each sample, without spans."""
        call = call or Call()
        columns = [
            part.results(for_entry(data, part.entry.name), rows, call.within(_name(part)))
            for part in self._parts
        ]
        return [self._join(results) for results in zip(*columns, strict=True)]

    def _join(self, results: Sequence[Result]) -> Result:
        values = []
        for part, result in zip(self._parts, results, strict=True):
            if isinstance(result, Failure):
                return result
            if result is not None:
                values.append(part.entry.shaped(result))
        if len(values) < len(results):
            return None
        joined = float(self.spec.target(values))
        if abs(joined) <= LARGEST:
            return joined
        return Failure(f"{self.label} gave {joined:g} (the most is {LARGEST:g})")


def _name(part: Scorer) -> str:
    return part.entry.name.rpartition(".")[2]
