"""Per-prompt control: parameters of a reward that come from the data, a value for each sample."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rewards import schema
from rewards.building import construct
from rewards.calling import (
    BuiltReward,
    Columns,
    Result,
    ValueCache,
    label,
    require,
)
from rewards.contract import RewardConfigError
from rewards.entries import RewardEntry
from rewards.frozen import frozen
from rewards.isolation import Worker
from rewards.spec import RewardSpec, column_of

_KEPT = 256  # rewards that stay built; one more drops the one that was used longest ago


class PerPromptReward:
    """A reward that is built once for each distinct value of the columns that it is set from."""

    def __init__(self, entry: RewardEntry, spec: RewardSpec, params: Mapping[str, Any]) -> None:
        """`params` are checked; those that are `{column: NAME}` come from that column."""
        self.entry, self.spec = entry, spec
        named = {parameter: column_of(value) for parameter, value in params.items()}
        self._sources = {p: column for p, column in named.items() if column is not None}
        self._fixed = {p: value for p, value in params.items() if p not in self._sources}
        self._worker = Worker(spec) if entry.isolate else None
        self._kept: OrderedDict[Hashable, BuiltReward] = OrderedDict()
        self._values: ValueCache = OrderedDict()

    @property
    def label(self) -> str:
        return label(self.entry, self.spec)

    @property
    def needs(self) -> frozenset[str]:
        return self.spec.signature.needs | frozenset(self._sources.values())

    def load(self) -> None:
        """Nothing yet: `check` reads the model with the first value, and all share it."""

    def check(self, data: Columns) -> None:
        """Refuse a missing column, and values that their parameter does not allow."""
        for rows in self._groups(data, range(len(data["completions"]))).values():
            try:
                reward = self._build(data, rows[0], ())
                reward.load()  # a label, say, that its model does not know
                reward.check(data)
            except RewardConfigError as error:
                error.row = rows[0]
                raise
            reward.close()

    def close(self) -> None:
        """End the worker that all of them share, where they run in one."""
        self._kept.clear()
        if self._worker is not None:
            self._worker.close()

    def results(
        self, data: Columns, rows: Sequence[int] | None = None, *, use_cache: bool = True
    ) -> list[Result]:
        """Each sample under its own values; samples with equal ones are called together."""
        rows = range(len(data["completions"])) if rows is None else rows
        found: dict[int, Result] = {}
        for key, members in self._groups(data, rows).items():
            reward = self._reward(key, data, members[0])
            returned = reward.results(data, members, use_cache=use_cache)
            if isinstance(key, int):
                reward.close()
            found.update(zip(members, returned, strict=True))
        return [found[i] for i in rows]

    def _groups(self, data: Columns, rows: Sequence[int]) -> dict[Hashable, list[int]]:
        """Rows by their values; a row whose values cannot be compared is alone, under its index."""
        require(self.entry, self.needs, data)
        columns = [data[name] for name in self._sources.values()]
        groups: dict[Hashable, list[int]] = {}
        for i in rows:
            key = frozen([column[i] for column in columns])
            groups.setdefault(i if key is None else key, []).append(i)
        return groups

    def _reward(self, key: Hashable, data: Columns, row: int) -> BuiltReward:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        reward = self._build(data, row, key)
        reward.load()
        if not isinstance(key, int):
            self._kept[key] = reward
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)[1].close()
        return reward

    def _build(self, data: Columns, row: int, key: Hashable) -> BuiltReward:
        given = {p: data[column][row] for p, column in self._sources.items()}
        checked = {p: self._checked(p, value) for p, value in given.items()}
        try:
            function = construct(self.entry, self.spec, self._fixed | checked, self._worker)
        except RewardConfigError as error:
            columns = ", ".join(f"{p} from the column '{c}'" for p, c in self._sources.items())
            raise RewardConfigError(f"{error} ({columns})") from error
        if isinstance(key, int):  # values that cannot be compared must not be remembered either
            return BuiltReward(self.entry, self.spec, function)
        return BuiltReward(self.entry, self.spec, function, self._values, key)

    def _checked(self, parameter: str, value: Any) -> Any:
        try:
            checked = schema.check_values(
                self.spec, {parameter: value}, f"rewards.{self.entry.name}"
            )
        except RewardConfigError as error:
            column = self._sources[parameter]
            source = f" (from the column '{column}'{', which is empty there' * (value is None)})"
            lines = str(error).splitlines()
            raise RewardConfigError("\n".join(line + source for line in lines)) from error
        return checked[parameter]
