"""Text to plain values: YAML files, and the overrides of a command line.

Nothing here knows what a setting means; `rlalign.config` checks the values against the schema.
"""

import ast
import json
import re
import warnings
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from rlalign.problems import shown

KEY = re.compile(r"[+-]{0,2}([A-Za-z_][\w.-]*)")
SIGNS = re.compile(
    r"^(?:--|\+{1,2})"
)  # that an option begins with; W&B's forms for Hydra have a plus
NULLS = ("null", "Null", "NULL", "~")
DEEPEST = 50  # levels of lists and mappings; settings need six
LONGEST_INTEGER = 1000  # digits; Python converts no more than 4300


class Bare:
    """The value of `--flag` with nothing after it: true where the schema says bool."""

    def __repr__(self) -> str:
        return "(no value)"


BARE: Final = Bare()


@dataclass(frozen=True)
class Override:
    path: tuple[str, ...]
    value: Any
    text: str | None  # as typed, where the value had to be guessed from text


@dataclass
class CommandLine:
    config: str | None = None
    overrides: list[Override] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Loader(yaml.SafeLoader):
    """YAML that refuses duplicate keys and keeps 012 and 1:30 as text; 1e-5 is a number.

    It has no tags, no deep nesting, and no aliases: a few of those can stand for more values than
    memory holds, or for one that contains itself.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  replaces the base class's own
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        fault = None
        if isinstance(event, yaml.AliasEvent):
            fault = f"*{event.anchor} stands for a value elsewhere; write the value itself"
        elif event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            fault = f"the tag {tag} is not read; remove it, and put text in quotes"
        elif self._depth >= DEEPEST:
            fault = f"lists and mappings are nested more than {DEEPEST} deep"
        if fault is not None:
            raise yaml.composer.ComposerError(None, None, fault, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                message = f"the key {key.value!r} is already on line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _integer(loader: Loader, node: yaml.ScalarNode) -> int:
    digits = len(node.value)
    if digits > LONGEST_INTEGER:
        fault = f"an integer of {digits} digits is more than any setting can hold"
        raise yaml.constructor.ConstructorError(None, None, fault, node.start_mark)
    return loader.construct_yaml_int(node)


Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class Dumper(yaml.SafeDumper):
    """YAML that `Loader`, and any YAML 1.1 reader, reads back as it was."""


def _in_one_line(dumper: yaml.SafeDumper, items: Sequence[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


Dumper.add_representer(list, _in_one_line)

_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_BOOL = re.compile(
    r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$"
)
Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), None)
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("yYnNtTfFoO"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_yaml(text: str) -> Any:
    """The value of one YAML document; ValueError with the line where it breaks."""
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = error.problem or error.context or "it is no YAML"
        if problem.startswith("but "):  # the second half of a sentence
            problem = f"{error.context}, {problem}"
        raise ValueError(f"{line}{problem}") from error
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        raise ValueError(
            f"line {line_number}: the character {chr(error.character)!r} is not allowed in YAML"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(str(error)) from error


def dump_yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_value(text: str) -> Any:
    """What an override's text stands for: Python's literal first (W&B sends reprs), then YAML."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes, as regular expressions have them
            value = ast.literal_eval(text.strip())
        if is_plain(value):
            return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        value = read_yaml(text)
    except ValueError:
        return text
    # YAML would drop what looks like a comment and fold lines: keep text as it was typed.
    if isinstance(value, str) or (value is None and text.strip() not in NULLS):
        return text
    return value if is_plain(value) else text


def is_plain(value: object) -> bool:
    """Whether a value is made of null, bool, numbers, text, lists and mappings by text."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def parse_argv(argv: Sequence[str], sections: Collection[str]) -> CommandLine:
    """Split `--config FILE`, `--a.b=c`, `--a.b c`, `--flag`, `a.b=c`, `++a.b=c`, and JSON.

    JSON is a mapping as it stands, or the path of a `.json` file that holds one.
    `sections` are the top-level keys: they tell `--flag model.name=x` from `--a.b text`.
    """
    line = CommandLine()
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name, equals, text = token.partition("=")
        if token.startswith("{"):
            _read_json(token, shown(token), line)
            continue
        if token.endswith(".json") and not equals and not token.startswith("--"):
            _read_json_file(token, line)
            continue
        if not KEY.fullmatch(name) or not (equals or token.startswith("--")):
            line.problems.append(_unexpected(token))
            continue
        has_value = bool(equals)
        if not has_value and rest and not _is_option(rest[0], sections):
            text, has_value = rest.pop(0), True
        key = SIGNS.sub("", name, count=1)
        if key != "config":
            value = parse_value(text) if has_value else BARE
            line.overrides.append(
                Override(tuple(key.split(".")), value, text if has_value else None)
            )
        elif not text:
            line.problems.append("--config needs a file: --config FILE")
        elif line.config is not None:
            line.problems.append(f"--config is given twice: {line.config} and {text}")
        else:
            line.config = text
    return line


def _is_option(token: str, sections: Collection[str]) -> bool:
    name, equals, _ = token.partition("=")
    if token.startswith("--"):
        return KEY.fullmatch(name) is not None
    return bool(equals) and name.split(".")[0] in sections


def _read_json(text: str, where: str, line: CommandLine) -> None:
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"it is a {type(values).__name__}")
    except RecursionError:
        line.problems.append(
            f"unexpected argument {where}: its lists and mappings are nested too deep"
        )
        return
    except ValueError as error:
        line.problems.append(f"unexpected argument {where}: not a JSON mapping ({error})")
        return
    line.overrides.extend(Override(tuple(k.split(".")), v, None) for k, v in values.items())


def _read_json_file(path: str, line: CommandLine) -> None:
    """The settings of W&B's ${args_json_file}."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        line.problems.append(f"unexpected argument {shown(path)}: it cannot be read: {reason}")
        return
    _read_json(text, shown(path), line)


def _unexpected(token: str) -> str:
    if token.endswith((".yaml", ".yml")):
        return f"unexpected argument {shown(token)}; did you mean --config {token}?"
    return f"unexpected argument {shown(token)}; settings are written --section.key=value"
