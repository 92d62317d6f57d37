"""Per-prompt control: parameters of a reward that come from the data, a value for each sample."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rewards import schema
from rewards.apart import Apart
from rewards.asking import Call
from rewards.building import construct
from rewards.calling import BuiltReward, Columns, Result, State, label, require
from rewards.contract import RewardConfigError
from rewards.entries import RewardEntry
from rewards.frozen import frozen
from rewards.isolation import Worker
from rewards.spec import RewardSpec, column_of
from rewards.state import plain_json

_KEPT = 256  # rewards that stay built; one more drops the one that was used longest ago


class PerPromptReward:
    """A reward that is built once for each distinct value of the columns that it is set from."""

    def __init__(
        self,
        entry: RewardEntry,
        spec: RewardSpec,
        params: Mapping[str, Any],
        seed: int | None = None,
    ) -> None:
        """`params` are checked; those that are `{column: NAME}` come from that column."""
        self.entry, self.spec, self._seed = entry, spec, seed
        named = {parameter: column_of(value) for parameter, value in params.items()}
        self._sources = {p: column for p, column in named.items() if column is not None}
        self._fixed = {p: value for p, value in params.items() if p not in self._sources}
        self._worker = Worker(spec) if entry.isolate else None
        self._kept: OrderedDict[Hashable, BuiltReward] = OrderedDict()
        self._given: dict[Hashable, list[Any]] = {}  # the values that each was built with

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
                reward = self._build(self._values_of(data, rows[0]))
                reward.load()  # a label, say, that its model does not know
                reward.check(data)
            except RewardConfigError as error:
                error.row = rows[0]
                raise
            reward.close()

    def close(self) -> None:
        """End the worker that all of them share, where they run in one."""
        self._kept.clear()
        self._given.clear()
        if self._worker is not None:
            self._worker.close()

    def state(self) -> State | None:
        """What the rewards that are kept were built with, and their states, oldest first."""
        if not self.spec.is_stateful:
            return None
        kept = [[self._given[key], reward.state()] for key, reward in self._kept.items()]
        return plain_json({"kept": kept}, self.label)

    def restore(self, state: State) -> None:
        for reward in self._kept.values():
            reward.close()
        self._kept.clear()
        self._given.clear()
        for values, own in state["kept"]:
            self._reward(frozen(values), values).restore(own)

    def results(
        self, data: Columns, rows: Sequence[int] | None = None, call: Call | None = None
    ) -> list[Result]:
        """Each sample under its own values; samples with equal ones are called together."""
        call = call or Call()
        rows = range(len(data["completions"])) if rows is None else rows
        found: dict[int, Result] = {}
        for key, members in self._groups(data, rows).items():
            reward = self._reward(key, self._values_of(data, members[0]))
            returned = reward.results(data, members, call.within(members[0]))
            if isinstance(key, int):
                reward.close()
            found.update(zip(members, returned, strict=True))
        return [found[i] for i in rows]

    def _values_of(self, data: Columns, row: int) -> list[Any]:
        """The values of the columns that it is set from, in their order."""
        return [data[name][row] for name in self._sources.values()]

    def _groups(self, data: Columns, rows: Sequence[int]) -> dict[Hashable, list[int]]:
        """Rows by their values; a row whose values cannot be compared is alone, under its index."""
        require(self.entry, self.needs, data)
        columns = [data[name] for name in self._sources.values()]
        groups: dict[Hashable, list[int]] = {}
        for i in rows:
            key = frozen([column[i] for column in columns])
            groups.setdefault(i if key is None else key, []).append(i)
        return groups

    def _reward(self, key: Hashable, values: list[Any]) -> BuiltReward:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        reward = self._build(values)
        reward.load()
        if not isinstance(key, int):  # values that cannot be compared
            self._kept[key], self._given[key] = reward, values
        while len(self._kept) > _KEPT:
            oldest, dropped = self._kept.popitem(last=False)
            del self._given[oldest]
            dropped.close()
        return reward

    def _build(self, values: list[Any]) -> BuiltReward:
        given = dict(zip(self._sources, values, strict=True))
        checked = {p: self._checked(p, value) for p, value in given.items()}
        # The same stream whenever it is built: when that is depends on what was scored before.
        apart = Apart(self.label, self._seed)
        try:
            params = self._fixed | checked
            function = construct(self.entry, self.spec, params, apart, self._seed, self._worker)
        except RewardConfigError as error:
            columns = ", ".join(f"{p} from the column '{c}'" for p, c in self._sources.items())
            raise RewardConfigError(f"{error} ({columns})") from error
        return BuiltReward(self.entry, self.spec, function, apart)

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
