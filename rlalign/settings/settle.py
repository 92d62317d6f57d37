"""Overrides onto a mapping, and each value to the type that the schema has for its setting."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlalign.problems import Path, Problems, dotted, shown
from rlalign.settings.overrides import BARE, DEEPEST, Override
from rlalign.settings.schema import (
    Node,
    accepts_text,
    accepts_words,
    describe,
    json_type,
    json_types,
    node_at,
    properties,
    unknown_reward,
    unknown_setting,
)

LARGEST = 2**53  # the integers up to here are the same in every reader of JSON
Texts = dict[tuple[str, ...], str]  # what was typed for a setting, where its value was guessed
Mapped = dict[str, Any]


def plain_copy(value: Any, path: tuple[str | int, ...], problems: Problems) -> Any:
    """A copy made of JSON's types alone; what is not one of them, or interpolates, is reported."""
    if len(path) > DEEPEST:
        where = dotted(path[:3])
        problems.add(path[:1], f"{where}: lists and mappings are nested more than {DEEPEST} deep")
        return None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                here = f"in {dotted(path)}" if path else "at the top level"
                key_shown = shown(key)
                problems.add(
                    (*path, key_shown), f"the key {key_shown} {here} is not text: quote it"
                )
        items = {key: item for key, item in value.items() if isinstance(key, str)}
        for key in items:
            plain_copy(key, (*path, key), problems)
        return {key: plain_copy(item, (*path, key), problems) for key, item in items.items()}
    if isinstance(value, list | tuple):
        return [plain_copy(item, (*path, index), problems) for index, item in enumerate(value)]
    fault = _fault(value)
    if fault is not None:
        problems.add(path, f"{dotted(path)}{fault}")
        return None
    return value


def _fault(value: Any) -> str | None:
    """What follows the setting in the message about a single value; None where it is sound."""
    if isinstance(value, str):
        if "${" in value:
            return (
                f"={shown(value)} holds '${{': nothing is interpolated here; write the value itself"
            )
        if any("\ud800" <= character <= "\udfff" for character in value):
            return f"={shown(value)} is not UTF-8 text"
        return f"={shown(value)} holds the character NUL; remove it" if "\0" in value else None
    if isinstance(value, int) and abs(value) > LARGEST:
        return (
            f"={shown(value)} is beyond 2^53, up to which JSON keeps integers; no setting needs it"
        )
    if value is None or value is BARE or isinstance(value, bool | int | float):
        return None
    return f" is a {type(value).__name__}; use text, numbers, lists or mappings"


def apply_overrides(
    root: Node, mapping: Mapped, overrides: Sequence[Override], problems: Problems
) -> Texts:
    """Set each override in `mapping`, later ones last; gives what was typed for each."""
    texts: Texts = {}
    for override in overrides:
        if len(override.path) > DEEPEST:
            start = dotted(override.path[:3])
            problems.add(override.path, f"{start}… has {len(override.path)} parts; no setting has")
            continue
        value = plain_copy(override.value, override.path, problems)
        _put(root, mapping, override.path, value, problems)
        depth = len(override.path)
        texts = {path: text for path, text in texts.items() if path[:depth] != override.path}
        if override.text is not None:
            texts[override.path] = override.text
    return texts


def _put(
    root: Node, mapping: Mapped, path: tuple[str, ...], value: Any, problems: Problems
) -> None:
    in_rewards = path[0] == "rewards"
    if not in_rewards and node_at(root, path) is None:
        problems.add(path, unknown_setting(root, path))
        return
    here = mapping
    for depth, group in enumerate(path[:-1]):
        below = here.get(group)
        if below is None:
            below = here[group] = {}
        if not isinstance(below, dict):
            above = dotted(path[: depth + 1])
            problems.add(path, f"{dotted(path)} cannot be set: {above}={shown(below)} is no group")
            return
        here = below
    key = path[-1]
    is_group = len(path) <= 2 if in_rewards else bool(properties(root, node_at(root, path) or {}))
    if in_rewards and len(path) == 2 and value is None and key not in here:
        problems.add(path, unknown_reward(key, list(here)))
    elif is_group and isinstance(value, dict):
        # A reward that comes with its kind is a new one; anything else adds to what is there.
        if (in_rewards and "kind" in value) or not isinstance(here.get(key), dict):
            here[key] = {}
        for name, item in value.items():
            _put(root, mapping, (*path, name), item, problems)
    else:
        here[key] = value


def settle(
    root: Node,
    node: Node,
    mapping: Mapped,
    path: tuple[str, ...],
    texts: Texts,
    problems: Problems,
) -> None:
    """Give each value the type that `node` has for it, where that is certain; changes `mapping`.

    Keys that the schema lacks, and values that stay wrong, are left to validation.
    """
    known = properties(root, node)
    for key, value in list(mapping.items()):
        here = (*path, key)
        if key not in known:
            mapping[key] = True if value is BARE else value
        elif properties(root, known[key]) and isinstance(value, dict):
            settle(root, known[key], value, here, texts, problems)
        else:
            mapping[key] = _settled(root, known[key], value, here, texts.get(here), problems)


def _settled(
    root: Node, node: Node, value: Any, path: Path, text: str | None, problems: Problems
) -> Any:
    types = json_types(root, node)
    if value is BARE:
        if "boolean" not in types:
            name = dotted(path)
            problems.add(path, f"--{name} needs a value, {describe(root, node)}: --{name}=VALUE")
        return True
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST
    if is_whole and not types - {"integer", "null"}:
        return int(value)
    words = accepts_words(root, node) and "string" not in types
    if text is not None and (words or "string" in types):
        value = _as_typed(types, value, text)
    if isinstance(value, str) and words:
        return [value]
    _refuse_bool_words(root, node, value, path, problems)
    return value


def _as_typed(types: set[str], value: Any, text: str) -> Any:
    """`--run.name=2024` and `--sampling.stop=...` are text, because the schema says so."""
    if text == "":
        return text
    keeps = value is None or isinstance(value, str) or json_type(value) in types
    return value if keeps else text


def _refuse_bool_words(root: Node, node: Node, value: Any, path: Path, problems: Problems) -> None:
    items = enumerate(value) if isinstance(value, list) else [(None, value)]
    for index, item in items:
        here = path if index is None else (*path, index)
        if isinstance(item, bool) and accepts_text(root, node_at(root, here[len(path) :], node)):
            problems.add(
                here,
                f"{dotted(here)}={item} is not text: YAML reads yes, no, on, off, true and false "
                "as booleans; put the word in quotes",
            )
