"""Every command's `--help` ends in an example, and each of them works: typer's tree is walked."""

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from rlalign import cli
from rlalign.config import load_config
from rlalign.settings.method_sections import AnyRun

ROOT = Path(__file__).parent.parent
# What an example's reader would have: runs of theirs, and a reward file.
RUN = re.compile(r"^runs/[\w/-]+$")
# Commands that are cheap enough to be run as the example says, in the checkout.
RUN_WHOLE = ["config", "rewards list", "rewards show", "rewards test", "rewards probe"]


def tree(command=None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every command and group with the words that lead to it."""
    command = command or typer.main.get_command(cli.app)
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from tree(below, (*path, name))


COMMANDS = list(tree())
NAMES = [" ".join(path) for path, _ in COMMANDS]
each = pytest.mark.parametrize(("path", "command"), COMMANDS, ids=NAMES)


def examples(command) -> list[str]:
    """The command lines of an epilog: what follows `Example:`, one or several."""
    text = inspect.cleandoc(command.epilog or "")
    return [line.strip() for line in re.findall(r"(rlalign [^\n]+)", text.partition(":")[2])]


def test_the_tree_has_every_command():
    assert {"", "ppo", "eval", "doctor", "config", "rewards probe"} <= {
        " ".join(path) for path, _ in COMMANDS
    }


@each
def test_help_has_a_meaning_and_an_example_of_this_very_command(path, command, capsys):
    assert cli.main([*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert command.help and examples(command)
    assert "Example" in out
    for line in examples(command):
        assert shlex.split(line)[1 : 1 + len(path)] == list(path), line
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    assert all(option.help for option in options), "an option says nothing"


@each
def test_an_example_is_taken_by_the_commands_own_parser(path, command, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in examples(command):
        words = shlex.split(line)[1:]
        found = typer.main.get_command(cli.app)
        while words and words[0] in getattr(found, "commands", {}):
            found = found.commands[words.pop(0)]
        # Not resilient: what is missing, unknown or of a wrong type is an error.
        context = found.make_context(line, list(words))
        with context:
            settings = [word for word in context.args if not RUN.match(word)]
        for file in re.findall(r"(?<![\w/])experiments/[\w./-]+", line):
            assert (ROOT / file).exists(), f"{line}: no {file}"
        if settings:
            load_config(AnyRun, settings, default="experiments/quickstart.yaml")


@pytest.mark.parametrize("name", RUN_WHOLE)
def test_cheap_examples_are_run(name, monkeypatch, tmp_path, capsys):
    command = dict(zip(NAMES, COMMANDS, strict=True))[name][1]
    (tmp_path / "my.py").write_text(
        "from rewards import reward\n\n\n"
        '@reward("my.help_example", bounds=(0, 1), example={})\n'
        "def short(completions: list[str]) -> list[float]:\n"
        '    """1 for a text of at most 9 characters."""\n'
        "    return [float(len(text) < 10) for text in completions]\n"
    )
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    for line in examples(command):
        assert cli.main(shlex.split(line)[1:]) == 0, line
        assert capsys.readouterr().out.strip()
