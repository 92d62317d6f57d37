"""Whether a command line of the pages would be taken: parsed as deep as the program itself does."""

import re
import shlex
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import typer
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from pages import ROOT
from typer.exceptions import TyperException

from rlalign import cli
from rlalign.config import load_config
from rlalign.methods import METHODS
from rlalign.problems import ConfigError
from rlalign.reward_model import DEFAULT as REWARD_MODEL
from rlalign.reward_model import RewardModelRun
from rlalign.startup import QUICKSTART
from rlalign.sweeps.file import read_sweep

FILE = re.compile(r"[\w./-]+\.(?:py|yaml|jsonl)")
PLACEHOLDERS = {
    "=LR": "=1e-4", "=S": "=0", "seed-N": "seed-0",
    "sweep FILE": "sweep experiments/sweeps/kl.yaml",
}  # fmt: skip
# Files of the reader's that no page shows: each with why.
THE_READERS_OWN = {
    "my_prompts.jsonl": "their prompts",
    "my.py": "stands for any reward file",
}


NOT_INSTALLED = {"vllm": "it needs a GPU", "git": "there is no address to clone from yet"}


def check(line):
    """Raise where a line of a page is no command, or names what is not there."""
    for placeholder, value in PLACEHOLDERS.items():
        line = re.sub(rf"{placeholder}\b", value, line)
    for command in line.split(" && "):
        check_command(shlex.split(command))


def check_command(words):
    while re.match(r"\w+=", words[0]):  # VARIABLE=value in front
        words = words[1:]
    if ">" in words:
        words = words[: words.index(">")]
    program, *arguments = words
    if program not in NOT_INSTALLED:
        CHECKS[Path(program).name](arguments)


def is_there(value):
    """Files that an argument names exist here, or were saved from an earlier block."""
    for name in FILE.findall(str(value)):
        assert name in THE_READERS_OWN or Path(name).exists(), f"no file {name} here"


def check_mentioned(line):
    """The same for a line in running text, which may leave out what a command must be given."""
    try:
        check(line)
    except TyperException as error:
        assert error.format_message().startswith("Missing")
    except ConfigError as error:
        assert str(error).startswith("--config needs a file")
    except IndexError:
        assert len(shlex.split(line)) == 2  # `wandb sweep`


def check_rlalign(arguments):
    """Each command's own parser takes it; what it passes on loads as its configuration."""
    command, rest = typer.main.get_command(cli.app), arguments
    while hasattr(command, "commands") and rest:
        if "|" in rest:  # a list of commands, as in `rewards list | show | probe`
            assert set(rest) - {"|"} <= set(command.commands)
            return
        name, *rest = rest
        if name.startswith("--"):  # an option of rlalign itself
            assert name in [*(o for each in command.params for o in each.opts), "--help"]
            return
        command = command.commands[name]
    if hasattr(command, "commands"):
        return  # `rlalign rewards` prints its help
    context = command.make_context(name, list(rest))
    for parameter, value in context.params.items():
        if parameter != "out":
            is_there(value)
    if context.args:
        settings(name, context.args)
    if name == "sweep" and context.params["file"].endswith(".yaml"):  # else the folder of one
        assert read_sweep(Path(context.params["file"]))


def settings(name, arguments):
    """What follows a command as `--section.key=value` is a run's configuration."""
    is_there(arguments)
    method = METHODS[name if name in METHODS else "ppo"]
    return load_config(method.run_model, arguments, default=QUICKSTART)


def check_accelerate(arguments):
    """accelerate's own parser takes what is its; the script's settings load."""
    assert arguments[0] == "launch"
    parsed = launch_command_parser().parse_args(arguments[1:])
    if parsed.config_file:
        assert load_config_from_file(parsed.config_file).num_processes > 1
    script = parsed.training_script
    if parsed.module:
        assert find_spec(script)
        script = script.rpartition(".")[2]
    run_script(script, parsed.training_script_args)


def run_script(script, arguments):
    if not script.endswith(".py"):  # a module: rlalign.ppo
        return settings(script, arguments)
    assert Path(script).is_file()
    if Path(script).stem == "reward_model":
        return load_config(RewardModelRun, arguments, default=REWARD_MODEL)
    return settings(Path(script).stem, arguments)


def check_python(arguments):
    if arguments[0] == "-m":
        assert len(arguments) == 1 or find_spec(arguments[1])
    elif arguments[0].startswith("launch/"):
        run_script(arguments[0], arguments[1:])
    else:
        script = Path(arguments[0])
        assert script.is_file()
        options = {a.partition("=")[0] for a in arguments[1:] if a.startswith("--")}
        if "argparse" in (source := script.read_text("utf-8")):
            assert all(f'"{option}"' in source for option in options)
        else:
            settings("ppo", arguments[1:])


def check_make(arguments):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    goals = [argument for argument in arguments if "=" not in argument]
    assert goals and set(goals) <= set(targets)
    given = [argument.removeprefix("ARGS=") for argument in arguments if "ARGS=" in argument]
    if given and "ppo" in goals:
        settings("ppo", shlex.split(given[0]))


def check_pip(arguments):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert arguments.pop(0) == "install"
    for argument in arguments:
        if match := re.fullmatch(r"(?:\.|rlalign)\[([\w,]+)\]", argument):
            assert set(match[1].split(",")) <= set(project["optional-dependencies"])
        elif "==" in argument and argument not in UNPINNED:
            assert argument in pins


UNPINNED = {"empath==0.89": "a judge of one experiment, which nothing else needs"}


def check_wandb(arguments):
    assert arguments[0] in ("sweep", "agent", "login", "sync")
    assert "wandb" in packages_distributions()
    if arguments[0] == "sweep":
        assert yaml.safe_load(Path(arguments[1]).read_text("utf-8"))["command"]


def check_pytest(arguments):
    for argument in arguments:
        is_there(argument)


def check_source(arguments):
    assert arguments == [".venv/bin/activate"]


def check_cd(arguments):
    assert arguments == ["rlalign"]


CHECKS = {
    "rlalign": check_rlalign, "accelerate": check_accelerate, "make": check_make,
    "python": check_python, "pip": check_pip, "wandb": check_wandb, "pytest": check_pytest,
    "source": check_source, "cd": check_cd,
}  # fmt: skip
