"""What the TAB key can mean: names of settings, their values, kinds of reward, runs.

A TAB starts a new process, so nothing here imports torch or the rewards, whose names are read from
their source; and no file of the user's is run. typer makes the shells' scripts and asks.
"""

import ast
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

# The options of an entry of `rewards`, and kinds that no decorator with their name registers.
OPTIONS: tuple[str, ...] = ("kind", "weight", "moment", "hard", "threshold", "scale", "clip")
OPTIONS += ("on_error", "error_value", "isolate", "deadline")
COMBINED = {"combine.all": ("parts",), "combine.min": ("parts",)}
REWARDS = Path(__file__).parent.parent / "rewards"
KIND = re.compile(r'^@reward\(\s*"([\w.-]+)"', re.MULTILINE)
RUN_FILES = ("run.json", "eval.json")
LARGEST = 1_000_000  # bytes of a file that is looked into


class SettingsCommand(TyperCommand):
    """A command whose further arguments are settings: they are completed, too."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        words = typed()
        before, shown = split(words, incomplete)
        if before and before[-1].startswith("--"):  # a value
            found = [(value, "") for value in values(before[-1].removeprefix("--"), words)]
            return items(found, incomplete, shown)
        own = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("-"):
            return own
        return own + items([("--config", "a YAML file"), *names(incomplete, words)], incomplete, "")


def items(found: Sequence[tuple[str, str]], incomplete: str, shown: str) -> list[Any]:
    """typer's items of what begins as the word does; `shown` stands before each."""
    from typer._click.shell_completion import CompletionItem  # what its own commands return

    return [
        CompletionItem(shown + name, help=harmless(meaning) or None)
        for name, meaning in found
        if name.startswith(incomplete)
    ]


def harmless(meaning: str) -> str:
    """A meaning as far as its first pause: zsh's script takes quotes, colons and brackets apart."""
    return re.split(r"[^\w ,.+-]", meaning, maxsplit=1)[0].strip()


def typed() -> list[str]:
    """The words of the command line, the last one the one to complete, as the shell has them."""
    line = os.environ.get("COMP_WORDS")
    if line is not None:  # bash
        at = int(os.environ.get("COMP_CWORD", "0"))
        return [*_words(line)[:at], ""] if at >= len(_words(line)) else _words(line)[: at + 1]
    line = os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return [*_words(line), ""] if line.endswith(" ") else _words(line)


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    found: list[str] = []
    try:
        found.extend(lexer)
    except ValueError:  # an open quote
        found.append(lexer.token)
    return found


def split(words: Sequence[str], incomplete: str) -> tuple[list[str], str]:
    """The words before the value, and what a candidate must begin with beside it.

    bash takes `--a=b` apart, at the `=`; zsh and fish replace the word as a whole.
    """
    before = list(words[:-1])
    last = words[-1] if words else ""
    if last == "=":
        return before, ""
    if before and before[-1] == "=":
        return before[:-1], ""
    name, equals, value = last.partition("=")
    if name.startswith("--") and equals and value == incomplete:
        return [*before, name], f"{name}="
    return before, ""


# -- settings --------------------------------------------------------------------------------------


def names(incomplete: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`--section.key` of every setting, with its meaning; of rewards once one is begun."""
    if incomplete.startswith("--rewards."):
        yield from reward_settings(words)
        return
    for setting in schema():
        if setting.path != "rewards" and _is_read(setting.path, words):
            yield f"--{setting.path}", setting.description
    for name in configuration(words).get("rewards") or {}:
        yield f"--rewards.{name}.weight", "factor in the score; 0 makes a metric"


def _is_read(setting: str, words: Sequence[str]) -> bool:
    """Whether the command reads it: a method refuses another's section."""
    from rlalign.settings.sections import METHOD_SECTIONS

    section, command = setting.partition(".")[0], words[1] if len(words) > 1 else ""
    method = {"grpo": "ppo", "rloo": "ppo"}.get(command, command)  # they share PPO's settings
    return method not in METHOD_SECTIONS or section == method or section not in METHOD_SECTIONS


def reward_settings(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, entry in (configuration(words).get("rewards") or {}).items():
        kind = entry.get("kind") if isinstance(entry, Mapping) else None
        for key in (*OPTIONS, *parameters(str(kind), reward_files(words))):
            yield f"--rewards.{name}.{key}", str(kind)


def values(name: str, words: Sequence[str]) -> list[str]:
    """What a setting may be, where it is one of a few words; nothing lets the shell name files."""
    if name.startswith("rewards.") and name.endswith(".kind"):
        return kinds(reward_files(words))
    if name == "run.resume":
        return ["auto", "never"]
    node = next((node for path, node in leaves() if path == name), None)
    if node is None:
        return []
    text = json.dumps(node)
    found = [str(value) for choices in _all(node, "enum") for value in choices]
    found += [str(value) for value in _all(node, "const")]
    if '"type": "boolean"' in text:
        found += ["true", "false"]
    return found + (["null"] if '"type": "null"' in text and found else [])


def _all(node: Any, key: str) -> Iterator[Any]:
    if isinstance(node, Mapping):
        if key in node:
            yield node[key]
        for below in node.values():
            yield from _all(below, key)
    elif isinstance(node, list):
        for below in node:
            yield from _all(below, key)


def schema() -> list[Any]:
    from rlalign.settings.method_sections import AnyRun
    from rlalign.settings.schema import settings

    return list(settings(AnyRun.model_json_schema()))


def leaves() -> Iterator[tuple[str, Any]]:
    """Each setting's path and schema."""
    from rlalign.settings.method_sections import AnyRun
    from rlalign.settings.schema import node_at

    root = AnyRun.model_json_schema()
    for setting in schema():
        yield setting.path, node_at(root, setting.path.split("."))


def configuration(words: Sequence[str]) -> Mapping[str, Any]:
    """The file that the command line names, else the quickstart; empty where it cannot be read."""
    from rlalign.config import ConfigError, default_file, read_file
    from rlalign.startup import QUICKSTART

    file: Path | str = default_file(QUICKSTART)
    for at, word in enumerate(words[:-1]):
        if word == "--config":
            file = words[at + 2] if words[at + 1] == "=" and at + 2 < len(words) else words[at + 1]
        elif word.startswith("--config="):
            file = word.partition("=")[2]
    try:
        return read_file(file)
    except ConfigError:
        return {}


def reward_files(words: Sequence[str]) -> list[Path]:
    """Files of the user's with rewards: of the command line and of the configuration."""
    named = [Path(word) for word in words[:-1] if word.endswith(".py")]
    listed = configuration(words).get("reward_files") or []
    return named + [Path(str(file)) for file in ([listed] if isinstance(listed, str) else listed)]


# -- rewards ---------------------------------------------------------------------------------------


def kinds(files: Sequence[Path] = ()) -> list[str]:
    """Kinds of reward, built in and in the files; what other packages bring is not looked for."""
    found = set(COMBINED)
    for file in (*REWARDS.glob("*.py"), *files):
        found |= {kind for kind, _ in _defined(file)}
    return sorted(found)


def parameters(kind: str, files: Sequence[Path] = ()) -> tuple[str, ...]:
    """The keyword-only parameters of a kind's function, or of its class's `__init__`."""
    if kind in COMBINED:
        return COMBINED[kind]
    for file in (*REWARDS.glob("*.py"), *files):
        for found, node in _defined(file):
            if found == kind:
                made_by = node
                if isinstance(node, ast.ClassDef):
                    inits = [n for n in node.body if getattr(n, "name", "") == "__init__"]
                    made_by = inits[0] if inits else node
                arguments = getattr(made_by, "args", None)
                return tuple(a.arg for a in arguments.kwonlyargs) if arguments else ()
    return ()


def _defined(file: Path) -> Iterator[tuple[str, ast.stmt]]:
    """(kind, function or class) of a file's rewards: it is read, never run."""
    try:
        text = file.read_text(encoding="utf-8")
        is_trls = file == REWARDS / "trl.py"
        if len(text) > LARGEST or not (KIND.search(text) or is_trls):
            return
        body = ast.parse(text).body
    except (OSError, ValueError, SyntaxError, RecursionError):
        return
    for node in body:
        for decorator in getattr(node, "decorator_list", ()):
            if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Name):
                continue
            first = decorator.args[0] if decorator.args else None
            if decorator.func.id == "reward" and isinstance(first, ast.Constant):
                yield str(first.value), node
            elif decorator.func.id == "_kind" and is_trls:
                yield f"trl.{getattr(node, 'name', '')}", node


def kinds_of_line(incomplete: str) -> list[str]:
    """For arguments that are a kind."""
    files = [Path(word) for word in typed()[:-1] if word.endswith(".py")]
    return [kind for kind in kinds(files) if kind.startswith(incomplete)]


# -- runs ------------------------------------------------------------------------------------------


def runs(incomplete: str) -> list[str]:
    """Folders of runs that begin so; nothing lets the shell name files and folders."""
    above, slash, _ = incomplete.rpartition("/")
    places = [Path(above or "/")] if slash else [Path("runs"), Path()]
    found = [str(path) for place in places for path in runs_in(place)]
    return [path for path in found if path.startswith(incomplete)]


def settings_of_line(incomplete: str) -> list[str]:
    """For an argument that names a setting, a section or a reward of the configuration."""
    rewards = configuration(typed()).get("rewards") or {}
    known = [*(setting.path for setting in schema()), *(f"rewards.{name}" for name in rewards)]
    known += sorted({name.partition(".")[0] for name in known if "." in name})
    return [name for name in known if name.startswith(incomplete)]


def runs_in(folder: Path) -> list[Path]:
    """The runs in a folder, told by what a run writes first."""
    try:
        below = sorted(path for path in folder.expanduser().iterdir() if path.is_dir())
    except OSError:
        return []
    return [path for path in below if any((path / name).is_file() for name in RUN_FILES)]
