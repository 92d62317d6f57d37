"""The `rewards` part of a configuration, checked against the kinds that are registered.

The rewards package is imported only when a configuration names a reward or a file of them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlalign.problems import Problems, shown
from rlalign.schema import Node, unknown_reward
from rlalign.settle import Texts, plain_copy, settle

if TYPE_CHECKING:
    from rewards.entries import RewardEntry

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
SETTING = re.compile(r"rewards(\.[\w-]+|\[\d+\])+")  # what a message about a reward starts with
EMPTY = (
    "rewards is empty: a run needs at least one, such as --rewards.space.kind=topic.similarity "
    "--rewards.space.topic='outer space'"
)


def settle_rewards(
    mapping: dict[str, Any],
    declared: Sequence[str],
    texts: Texts,
    problems: Problems,
    rewards_given: bool,
) -> None:
    """Load reward files, then check and settle `mapping["rewards"]` in place.

    `declared` are the names before overrides: an override of another name without a kind is
    taken for a misspelling.
    """
    all_loaded = _load_files(mapping.get("reward_files"), problems)
    entries = mapping.setdefault("rewards", {})
    if isinstance(entries, list):
        mapping["rewards"] = {}
        problems.add(["rewards"], "rewards is a list; it is a mapping by name: {space: {kind: …}}")
    if not isinstance(entries, dict):
        return
    mapping["rewards"] = entries = {name: e for name, e in entries.items() if e is not None}
    for name, entry in entries.items():
        path = ["rewards", name]
        if not NAME.fullmatch(name):
            problems.add(
                path, f"rewards: the name {name!r} is not made of letters, digits, _ and -"
            )
        elif not isinstance(entry, dict):
            problems.add(
                path,
                f"rewards.{name}={shown(entry)} is not a mapping such as {{kind: KIND, weight: 1}}",
            )
        elif "kind" not in entry and name not in declared:
            problems.add(path, unknown_reward(name, declared))
        elif "kind" not in entry:
            problems.add(path, f"rewards.{name}.kind is missing; see `rlalign rewards list`")
        elif all_loaded or _is_known(entry["kind"]):  # else a file that failed may define it
            _settle_entry(name, entry, texts, problems)
    if not entries and not rewards_given:
        problems.add(["rewards"], EMPTY)


def _load_files(files: Any, problems: Problems) -> bool:
    """Whether every file was there and registered its rewards."""
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        return not files  # absent, or a wrong type that validation reports
    all_loaded = True
    for file in files:
        if not Path(file).is_file():
            problems.add(["reward_files", file], f"reward_files: no file {file!r} in {Path.cwd()}")
            all_loaded = False
            continue
        from rewards import contract, registry

        try:
            registry.load_file(file)
        except contract.RewardConfigError as error:
            problems.add(["reward_files", file], f"reward_files: {error}")
            all_loaded = False
    return all_loaded


def _is_known(kind: Any) -> bool:
    from rewards import registry

    return not isinstance(kind, str) or kind in registry.kinds()


def _settle_entry(name: str, entry: dict[str, Any], texts: Texts, problems: Problems) -> None:
    from rewards.spec import OPTIONS

    path = ("rewards", name)
    schema = _entry_schema(entry["kind"])
    settle(schema, schema, entry, path, texts, problems)
    told = {key for key in entry if problems.are_about((*path, key))}
    parsed, faults = _parse(name, entry)
    for setting, message in faults:
        if setting.removeprefix(f"rewards.{name}.").partition("[")[0] not in told:
            problems.add([setting], message)
    if parsed is not None:
        # Defaults are written out: the saved configuration says what the run did.
        options = {key: getattr(parsed, key) for key in OPTIONS}
        entry |= plain_copy({**parsed.params, **options}, path, problems)


def _parse(
    name: str, entry: Mapping[str, Any]
) -> tuple["RewardEntry | None", list[tuple[str, str]]]:
    """The entry, or its faults by setting; a check stops at its first, so each is left out."""
    from rewards import contract, entries

    faults: list[tuple[str, str]] = []
    rest, keys = dict(entry), set[str]()
    while True:
        try:
            parsed = entries.parse_entries({name: rest})[0]
            return (None if faults else parsed), faults
        except contract.RewardConfigError as error:
            lines = str(error).splitlines()
        found = set()
        for line in lines:
            match = SETTING.match(line)
            setting = match[0] if match else line
            key = setting.removeprefix(f"rewards.{name}.").partition("[")[0]
            if key not in keys:  # what was left out is now missing
                faults.append((setting, line))
                found.add(key)
        keys |= found
        if not found & rest.keys() or "kind" in found:
            return None, faults
        rest = {key: value for key, value in rest.items() if key not in found}


def _entry_schema(kind: Any) -> Node:
    """The schema of one kind's entry; of nothing at all where the kind is unknown."""
    options: list[Node] = entries_schema()["additionalProperties"]["oneOf"]
    known = (option for option in options if "properties" in option)
    return next((o for o in known if o["properties"]["kind"]["const"] == kind), {})


def entries_schema() -> Node:
    """The JSON Schema of `rewards`: each entry is one of the known kinds."""
    from rewards import entries

    schema: Node = entries.entries_json_schema()
    return schema
