"""Columns of the data that are given on a command line, for rewards that read some."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rewards import compose, registry, schema
from rewards.entries import RewardEntry
from rlalign.problems import ConfigError


def parsed_columns(given: str) -> dict[str, Any]:
    """The object that `--columns` holds; ConfigError where it is none."""
    try:
        found = json.loads(given)
        reason = "it is no object"
    except (ValueError, RecursionError) as error:
        found, reason = None, str(error)
    if not isinstance(found, dict):
        raise ConfigError(
            f'--columns {given}: {reason}; give a JSON object such as \'{{"opening": "Once"}}\''
        )
    for name in ("prompts", "completions"):
        if name in found:
            instead = "use --prompt" if name == "prompts" else "give the texts as arguments"
            raise ConfigError(
                f"--columns {name}={found[name]!r}: this is no further column; {instead}"
            )
    return found


def check_columns(
    given: Mapping[str, Any], entries: Sequence[RewardEntry], present: Collection[str] = ()
) -> None:
    """Refuse what no reward reads, which is a misspelling, and miss what one needs.

    `present` are columns that come from elsewhere.
    """
    specs = {entry.name: registry.get(entry.kind) for entry in entries}
    # Built, because a parameter or a part may name a column too; no model is loaded by that.
    needed = {entry.name: compose.build(entry, specs[entry.name]).needs for entry in entries}
    read = {name: needed[name] | specs[name].signature.data.keys() for name in specs}
    known = sorted(set().union(*read.values()) - {"prompts", "completions"})
    for column in given:
        if column not in known:
            hint = schema.nearest(column, known, "they read")
            raise ConfigError(
                f"--columns {column}: no reward of the configuration reads it; {hint}"
            )
    for name, columns in needed.items():
        for column in sorted(columns):
            if column in known and column not in given and column not in present:
                raise ConfigError(
                    f"rewards.{name} reads the data's column {column!r}; give it a value: "
                    f"--columns '{{\"{column}\": …}}'"
                )
