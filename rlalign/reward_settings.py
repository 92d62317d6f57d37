"""The `rewards` part of a configuration, checked against the kinds that are registered.

The rewards package is imported only when a configuration names a reward or a file of them.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlalign.problems import Problems, shown
from rlalign.schema import Node, unknown_reward
from rlalign.settle import Texts, settle

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
EMPTY = (
    "rewards is empty: a run needs at least one, such as --rewards.space.kind=topic.similarity "
    "--rewards.space.topic='outer space'"
)

# What belongs to an entry whatever its kind; `rewards.compose` checks the values.
ENTRY: dict[str, Node] = {
    "kind": {"type": "string", "description": "one of `rlalign rewards list`"},
    "weight": {"type": "number", "default": 1.0, "description": "0 makes the reward a metric"},
    "scale": {"type": ["number", "null"], "description": "multiplies the value before weighing"},
    "clip": {
        "anyOf": [
            {
                "type": "array",
                "items": {"type": "number"},
                "minItems": 2,
                "maxItems": 2,
            },
            {"type": "null"},
        ],
        "description": "bounds that the value is held to",
    },
    "on_error": {
        "enum": ["raise", "skip"],
        "default": "raise",
        "description": "stop the run, or skip the sample and count it, when the reward fails",
    },
    "moment": {"type": ["number", "null"]},
    "hard": {"type": ["boolean", "number", "null"]},
    "isolate": {"type": "boolean"},
}


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
    _load_files(mapping.get("reward_files"), problems)
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
        else:
            _settle_entry(name, entry, texts, problems)
    if not entries and not rewards_given:
        problems.add(["rewards"], EMPTY)


def _load_files(files: Any, problems: Problems) -> None:
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        return  # absent, or a wrong type that validation reports
    for file in files:
        if not Path(file).is_file():
            problems.add(["reward_files", file], f"reward_files: no file {file!r} in {Path.cwd()}")
            continue
        from rewards import contract, registry

        try:
            registry.load_file(file)
        except contract.RewardConfigError as error:
            problems.add(["reward_files", file], f"reward_files: {error}")


def _settle_entry(name: str, entry: dict[str, Any], texts: Texts, problems: Problems) -> None:
    from rewards import compose, contract, registry

    kind = entry["kind"]
    schema = entry_schema(kind) if kind in registry.kinds() else {"properties": ENTRY}
    settle(schema, schema, entry, ("rewards", name), texts, problems)
    try:
        compose.parse_entries({name: entry})
    except contract.RewardConfigError as error:
        for line in str(error).splitlines():
            problems.add([line.partition("=")[0]], line)


def entry_schemas() -> list[Node]:
    """The JSON Schema of an entry of each known kind."""
    from rewards import registry

    return [entry_schema(kind) for kind in registry.kinds()]


def entry_schema(kind: str) -> Node:
    """The JSON Schema of an entry: the kind, what every entry may have, the kind's parameters."""
    from rewards import registry

    params = registry.json_schema(kind)
    return {
        **params,
        "type": "object",
        "properties": {**ENTRY, "kind": {"const": kind}, **params.get("properties", {})},
        "required": ["kind", *params.get("required", [])],
        "additionalProperties": False,
    }
