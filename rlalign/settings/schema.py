"""Reading a JSON Schema: which settings there are, what each accepts, in words."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlalign.problems import dotted

Node = dict[str, Any]
SHORTENED = 3  # letters of a name that may stand for all of it


@dataclass(frozen=True)
class Setting:
    path: str
    kind: str
    default: Any
    description: str


def alternatives(root: Node, node: Node) -> list[Node]:
    """The schemas that a value may satisfy, references and unions resolved."""
    if "$ref" in node:
        return alternatives(root, root["$defs"][node["$ref"].rpartition("/")[2]])
    unions: list[Node] = node.get("anyOf") or node.get("oneOf") or []
    if unions:
        return [leaf for option in unions for leaf in alternatives(root, option)]
    return [node]


def json_types(root: Node, node: Node) -> set[str]:
    """JSON's names of the types that a value may have; empty where anything goes."""
    types: set[str] = set()
    for leaf in alternatives(root, node):
        if "const" in leaf or "enum" in leaf:
            types |= {json_type(value) for value in leaf.get("enum", [leaf.get("const")])}
        elif isinstance(leaf.get("type"), list):
            types |= set(leaf["type"])
        elif "type" in leaf:
            types.add(leaf["type"])
        else:
            return set()
    return types


def json_type(value: object) -> str:
    if value is None:
        return "null"
    for python, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(value, python):
            return name
    return "object" if isinstance(value, dict) else "array"


def accepts_words(root: Node, node: Node) -> bool:
    """Whether a list of strings is among what a value may be."""
    return any(
        leaf.get("type") == "array" and json_types(root, leaf.get("items", {})) == {"string"}
        for leaf in alternatives(root, node)
    )


def properties(root: Node, node: Node) -> dict[str, Node]:
    """The keys of a group of settings; empty for anything else."""
    found: dict[str, Node] = {}
    for leaf in alternatives(root, node):
        found |= leaf.get("properties", {})
    return found


def accepts_text(root: Node, node: Node | None) -> bool:
    """Whether any text will do, and nothing but text."""
    leaves = alternatives(root, node) if node is not None else []
    types = json_types(root, node or {})
    is_text = bool(types) and types <= {"string", "null", "array"}
    return is_text and any(x.get("type") == "string" and "enum" not in x for x in leaves)


def node_at(root: Node, path: Iterable[str | int], node: Node | None = None) -> Node | None:
    """The schema at a path of keys and list positions, None where there is no such setting."""
    node = root if node is None else node
    for key in path:
        if isinstance(key, str):
            below = properties(root, node).get(key)
        else:
            below = _item(root, node, int(key))
        if below is None:
            return None
        node = below
    return node


def _item(root: Node, node: Node, index: int) -> Node | None:
    for leaf in alternatives(root, node):
        if leaf.get("type") == "array":
            fixed: list[Node] = leaf.get("prefixItems", [])
            rest: Node | None = leaf.get("items")
            return fixed[index] if index < len(fixed) else rest
    return None


def settings(root: Node, node: Node | None = None, prefix: str = "") -> Iterator[Setting]:
    """Every setting, in the order of the schema; optional groups come before their keys."""
    for key, child in properties(root, node or root).items():
        path = prefix + key
        below = properties(root, child)
        otherwise = json_types(root, child) - {"object"}  # what may stand in place of a group
        if not below or otherwise:
            optional = below and otherwise == {"null"}
            kind = "a group, or null" if optional else describe(root, child)
            yield Setting(path, kind, child.get("default"), child.get("description", ""))
        if below:
            yield from settings(root, child, path + ".")


def describe(root: Node, node: Node) -> str:
    """What a value has to be, as it ends the sentence `x='many' is not …`."""
    leaves = [_describe_one(root, leaf) for leaf in alternatives(root, node)]
    return " or ".join(dict.fromkeys(leaves))


def _describe_one(root: Node, leaf: Node) -> str:
    if "const" in leaf:
        return str(leaf["const"])
    if "enum" in leaf:
        return "one of " + ", ".join(map(str, leaf["enum"]))
    match leaf.get("type"):
        case "integer" | "number" as kind:
            return ("an integer" if kind == "integer" else "a number") + _bounds(leaf)
        case "string":
            return (
                "text"
                + (f" of {leaf['made_of']}" if "made_of" in leaf else "")
                + (" of at least 1 character" if leaf.get("minLength") else "")
            )
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case "array" if "prefixItems" in leaf:
            items = ", ".join(describe(root, item) for item in leaf["prefixItems"])
            return f"a list of {len(leaf['prefixItems'])} ({items})"
        case "array":
            items = describe(root, leaf.get("items", {}))
            return f"a list of {items.removeprefix('a ').removeprefix('an ')}"
        case "object":
            keys = ", ".join(leaf.get("properties", {}))
            return f"a group of {keys}" if keys else "a mapping"
        case _:
            return "any value"


def _bounds(leaf: Node) -> str:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    found = [(word, leaf[key]) for key, word in words.items() if key in leaf]
    parts = [f"{word} {n if isinstance(n, int) else format(n, 'g')}" for word, n in found]
    if not parts:
        return ""
    return (" of " if parts[0].startswith("at") else " ") + " and ".join(parts)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that a misspelt name most likely meant."""
    names = list(candidates)
    begun = [other for other in names if len(name) >= SHORTENED and other.startswith(name)]
    if begun:  # `temp` means temperature
        return min(begun, key=len)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return matches[0] if matches else None


def nearest_path(path: str, known: Iterable[str]) -> str | None:
    """The setting that a misspelt or misplaced one most likely meant.

    The same last name elsewhere comes first (`train.lr` means `ppo.lr`), then names beside it,
    then anything close.
    """
    names = list(known)
    group, _, leaf = path.rpartition(".")
    elsewhere = [name for name in names if name.rpartition(".")[2] == leaf]
    beside = [name for name in names if name.rpartition(".")[0] == group]
    if elsewhere:
        return nearest(path, elsewhere) or elsewhere[0]
    found = nearest(path, beside) if nearest(leaf, [n.rpartition(".")[2] for n in beside]) else None
    if found:
        return found
    close_leaf = nearest(leaf, {name.rpartition(".")[2] for name in names})
    by_leaf = [name for name in names if name.rpartition(".")[2] == close_leaf]
    return nearest(path, names) or (by_leaf[0] if by_leaf else None)


def unknown_setting(root: Node, path: Sequence[str]) -> str:
    """The message about a path that is no setting."""
    typed, known = dotted(path), [setting.path for setting in settings(root)]
    if typed in known:  # a file's key with a dot in it
        *above, leaf = typed.split(".")
        return f"{typed} is unknown; nest it: {': {'.join(above)}: {{{leaf}: …{'}' * len(above)}"
    if len(path) == 1 and nearest(typed, ["config"]):
        return f"{typed} is unknown; did you mean --config FILE?"
    groups = {name.rpartition(".")[0] for name in known} - {""}
    close = nearest_path(typed, [*known, *sorted(groups)])
    if close:
        return f"{typed} is unknown; did you mean {close}?"
    group = properties(root, node_at(root, path[:-1]) or {})
    where = f"{'.'.join(path[:-1])} has" if path[:-1] and group else "the sections are"
    return f"{typed} is unknown; {where} {', '.join(group or properties(root, root))}"


def unknown_reward(name: str, known: Sequence[str]) -> str:
    """The message about an override of a reward that is not there."""
    close = nearest(name, known)
    if close:
        return f"no reward named {name}; did you mean {close}?"
    there = f"the configuration has {', '.join(known)}" if known else "the configuration has none"
    return f"no reward named {name}; {there} (a new one needs --rewards.{name}.kind=KIND)"
