"""The `rlalign` command. What a command needs is imported when it runs: `--help` stays fast."""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from rlalign.commands import reading, rewards, starting, sweeping, training, trying
from rlalign.terminal import printable

app = typer.Typer(
    help="Align a language model's output distribution with readable rewards.",
    epilog="Example: rlalign ppo --config experiments/quickstart.yaml --kl.coef=0.2",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)
for commands in (training.app, reading.app, trying.app, sweeping.app, starting.app):
    app.add_typer(commands)  # without a name: they stand beside each other
app.add_typer(rewards.rewards_app, name="rewards")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 configuration, 4 resources, 5 reward."""
    try:
        code = app(
            args=list(sys.argv[1:] if argv is None else argv),
            prog_name="rlalign",
            standalone_mode=False,
        )
    except TyperException as error:
        return _fail(f"rlalign: {error.format_message()} (`rlalign --help` lists the commands)", 2)
    except typer.Abort:
        return _fail("rlalign: interrupted", 130)
    except Exception as error:
        of_ours = _exit_code(error)
        if of_ours is None:
            raise
        return _fail(str(error), of_ours)
    return code if isinstance(code, int) else 0


def _exit_code(error: Exception) -> int | None:
    """Of an error of ours; their modules take longer to import than most answers to be made."""
    from rewards.contract import RewardConfigError, RewardError
    from rewards.embedded import EmbeddedError
    from rlalign.files import DiskError
    from rlalign.problems import ConfigError

    if isinstance(error, DiskError):
        from rlalign.exits import exit_code

        return exit_code(error)
    if isinstance(error, ConfigError | RewardConfigError):
        return 2
    if isinstance(error, EmbeddedError):
        return 4
    return 5 if isinstance(error, RewardError) else None


def _fail(message: str, code: int) -> int:
    print(printable(message), file=sys.stderr)
    return code


@app.callback()
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        print(f"rlalign {version('rlalign')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
