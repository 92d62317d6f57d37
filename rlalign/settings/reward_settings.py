"""The `rewards` part of a configuration, checked against the kinds that are registered.

The rewards package is imported only when a configuration names a reward or a file of them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlalign.nearby import file_hint
from rlalign.problems import Problems, shown
from rlalign.settings.schema import Node, unknown_reward
from rlalign.settings.settle import Texts, plain_copy, settle

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
        if not is_file(file):
            problems.add(
                ["reward_files", file],
                f"reward_files: no file {shown(file)} in {Path.cwd()}{file_hint(file)}",
            )
            all_loaded = False
            continue
        from rewards import contract, registry

        try:
            registry.load_file(file)
        except contract.RewardConfigError as error:
            problems.add(["reward_files", file], f"reward_files: {error}")
            all_loaded = False
    return all_loaded


def is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # a name that is too long
        return False


def _is_known(kind: Any) -> bool:
    from rewards import registry

    return not isinstance(kind, str) or kind in registry.kinds()


def _settle_entry(name: str, entry: dict[str, Any], texts: Texts, problems: Problems) -> None:
    path = ("rewards", name)
    _settle_values(entry, path, texts, problems)
    told = {key for key in entry if problems.are_about((*path, key))}
    parsed, faults = _parse(name, entry)
    for setting, message in faults:
        if _key_of(setting, name) not in told:
            problems.add([setting], message)
    if parsed is not None:
        # Defaults are written out: the saved configuration says what the run did.
        entry |= plain_copy(parsed.settings(), path, problems)


def _settle_values(
    entry: dict[str, Any], path: tuple[str, ...], texts: Texts, problems: Problems
) -> None:
    """Settle an entry's values and those of its parts; what comes from a column has no type yet."""
    from rewards import entries, registry, spec

    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in registry.kinds():
        return
    schema: Node = entries.entry_json_schema(kind)
    given = {key: value for key, value in entry.items() if spec.column_of(value) is None}
    settle(schema, schema, given, path, texts, problems)
    entry |= given
    parts = entry.get("parts") if registry.get(kind).joins else None
    for name, part in parts.items() if isinstance(parts, dict) else ():
        if isinstance(part, dict):
            _settle_values(part, (*path, "parts", name), texts, problems)


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
            key = _key_of(setting, name)
            if key not in keys:  # what was left out is now missing
                faults.append((setting, line))
                found.add(key)
        keys |= found
        if not found & rest.keys() or "kind" in found:
            return None, faults
        rest = {key: value for key, value in rest.items() if key not in found}


def _key_of(setting: str, name: str) -> str:
    """The entry's key that a setting is or lies in: `parts` of `rewards.NAME.parts.a.words[0]`."""
    return re.split(r"[.\[]", setting.removeprefix(f"rewards.{name}."))[0]


def schedule_warnings(rewards: Mapping[str, Mapping[str, Any]], iterations: int) -> list[str]:
    """One line for each reward whose weight moves, with the target, in `iterations`."""
    lines = []
    for name, entry in rewards.items():
        weight = entry.get("weight")
        if not isinstance(weight, Mapping):
            continue
        line = (
            f"rewards.{name}.weight={{from: {weight['from']:g}, to: {weight['to']:g}, iterations: "
            f"{weight['iterations']}}}: it moves; the target is the one of the final weight"
        )
        if iterations <= weight["iterations"]:
            line += f", which train.iterations={iterations} ends before"
        lines.append(line)
    return lines


def entries_schema() -> Node:
    """The JSON Schema of `rewards`: each entry is one of the known kinds."""
    from rewards import entries

    schema: Node = entries.entries_json_schema()
    return schema
