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
    add_completion=False,
    invoke_without_command=True,
)
for commands in (training.app, reading.app, trying.app, sweeping.app, starting.app):
    app.add_typer(commands)  # without a name: they stand beside each other
app.add_typer(rewards.rewards_app, name="rewards")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 configuration, 4 resources, 5 reward."""
    from rewards.contract import RewardConfigError, RewardError
    from rewards.embedded import EmbeddedError
    from rlalign.files import DiskError
    from rlalign.problems import ConfigError

    try:
        code = app(
            args=list(sys.argv[1:] if argv is None else argv),
            prog_name="rlalign",
            standalone_mode=False,
        )
    except (ConfigError, RewardConfigError) as error:
        return _fail(str(error), 2)
    except EmbeddedError as error:
        return _fail(str(error), 4)
    except RewardError as error:
        return _fail(str(error), 5)
    except DiskError as error:
        from rlalign.exits import exit_code

        return _fail(str(error), exit_code(error))
    except TyperException as error:
        return _fail(f"rlalign: {error.format_message()} (`rlalign --help` lists the commands)", 2)
    except typer.Abort:
        return _fail("rlalign: interrupted", 130)
    return code if isinstance(code, int) else 0


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
