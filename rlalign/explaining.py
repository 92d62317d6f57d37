"""`rlalign config --explain` and `--diff`: what a setting means, and where its value comes from."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from rlalign.config import (
    ConfigError,
    default_file,
    json_schema,
    load_config,
    read_file,
    resolved_yaml,
)
from rlalign.settings.fields import Section
from rlalign.settings.method_sections import AnyRun
from rlalign.settings.overrides import parse_argv, read_yaml
from rlalign.settings.schema import (
    Node,
    Setting,
    describe,
    json_types,
    nearest,
    node_at,
    properties,
    settings,
    unknown_reward,
    unknown_setting,
)

Path = tuple[str, ...]
ABSENT = object()


@dataclass(frozen=True)
class Explained:
    setting: Setting
    value: Any  # ABSENT where a group above it is null
    source: str


def explain(name: str, argv: Sequence[str], default: str) -> list[Explained]:
    """A setting, or each of a section, as this command line sets it; ConfigError if unknown."""
    config = load_config(AnyRun, argv, default)
    values = config.model_dump(mode="json")
    path = tuple(name.removeprefix("--").split("."))
    source_of = sources(argv, default)
    return [
        Explained(setting, value_at(values, key), source_of(key))
        for setting in described(path, values)
        if (key := tuple(setting.path.split(".")))
    ]


def described(path: Path, values: Mapping[str, Any]) -> Iterator[Setting]:
    """The settings at a path: one, or all of a section or of a reward."""
    root = json_schema(AnyRun)  # with the kinds of the configuration's own files
    if path[0] != "rewards":
        found = node_at(root, path)
        if found is None:
            raise ConfigError(unknown_setting(root, path))
        yield from _below(root, found, path, values)
        return
    for name in path[1:2] or values["rewards"]:
        if name not in values["rewards"]:
            raise ConfigError(unknown_reward(name, list(values["rewards"])))
        kind = str(values["rewards"][name]["kind"])
        node = of_kind(root, kind)
        found = node_at(node, path[2:])
        if found is None:
            raise ConfigError(unknown_parameter(path, kind, list(properties(node, node))))
        yield from _below(node, found, ("rewards", name, *path[2:]), values)


def _below(root: Node, found: Node, path: Path, values: Mapping[str, Any]) -> Iterator[Setting]:
    below, otherwise = properties(root, found), json_types(root, found) - {"object"}
    whole = ".".join(path)
    if not below or otherwise:
        default, meaning = found.get("default"), found.get("description", "")
        yield Setting(whole, describe(root, found), default, meaning)
    # Where a number can stand for a group, as for a weight, the group is told only if it is there.
    if below and (otherwise <= {"null"} or isinstance(value_at(values, path), Mapping)):
        yield from settings(root, found, f"{whole}.")


def unknown_parameter(path: Path, kind: str, known: Sequence[str]) -> str:
    typed = ".".join(path)
    if close := nearest(path[2], known):
        return f"{typed} is unknown; did you mean {'.'.join((*path[:2], close))}?"
    return f"{typed} is unknown; {kind} has {', '.join(known)}"


def of_kind(root: Node, kind: str) -> Node:
    """The schema of an entry of `rewards` of one kind."""
    entries: Node = root["properties"]["rewards"]["additionalProperties"]
    for option in entries["oneOf"]:
        if option.get("properties", {}).get("kind", {}).get("const") == kind:
            found: Node = option
            return found
    raise ConfigError(f"reward kind {kind!r} is unknown")


def value_at(values: Any, path: Path) -> Any:
    for key in path:
        if not isinstance(values, Mapping) or key not in values:
            return ABSENT
        values = values[key]
    return values


def sources(argv: Sequence[str], default: str) -> Callable[[Path], str]:
    """A function from a setting's path to where its value was written."""
    line = parse_argv(argv, AnyRun.model_fields)
    file = line.config or str(default_file(default))
    base = read_file(file)
    overrides = {override.path: override for override in line.overrides}

    def source(path: Path) -> str:
        starts = [path[:length] for length in range(len(path), 0, -1)]
        for start in starts:
            if start in overrides:
                return "the command line"
        return file if value_at(base, path) is not ABSENT else "the defaults"

    return source


# -- in words --------------------------------------------------------------------------------------


def in_words(one: Explained, width: int) -> str:
    """`kl.coef = 0.2` and, below it, its meaning, what it may be, and where the value is from."""
    setting = one.setting
    value = "not read: the group is null" if one.value is ABSENT else as_yaml(one.value)
    lines = [f"{setting.path} = {value}"]
    texts = [setting.description] if setting.description else []
    rule = setting.kind[:1].upper() + setting.kind[1:]
    texts.append(f"{rule}. The default: {as_yaml(setting.default)}.")
    texts.append(f"This value is from {one.source}.")
    for text in texts:
        indent = "    "
        lines.append(fill(text, width, initial_indent=indent, subsequent_indent=indent))
    return "\n".join(lines)


def as_yaml(value: Any) -> str:
    """On one line, as it can be typed."""
    if isinstance(value, str):
        return value if value and value == value.strip() else repr(value)
    return json.dumps(value, ensure_ascii=False)


# -- two configurations ----------------------------------------------------------------------------


def difference(first: str, second: str) -> list[tuple[str, str, str]]:
    """(setting, its value in the first, in the second) of what differs; files or runs' folders."""
    one, other = (flat(load_config(AnyRun, ["--config", file])) for file in (first, second))
    return [
        (name, one.get(name, "-"), other.get(name, "-"))
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    ]


def flat(config: Section) -> dict[str, str]:
    """Every setting by its dotted path, as it can be typed."""
    return dict(_flat(read_yaml(resolved_yaml(config)), ""))


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", as_yaml(item)
