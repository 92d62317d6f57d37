"""The `rlalign` command. What a command needs is imported when it runs: `--help` stays fast."""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from rlalign.startup import QUICKSTART
from rlalign.terminal import plain_text, printable

if TYPE_CHECKING:
    from rewards.compose import RewardSet

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    help="Align a language model's output distribution with readable rewards.",
    epilog="Example: rlalign ppo --config experiments/quickstart.yaml --kl.coef=0.2",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    invoke_without_command=True,
)
rewards_app = typer.Typer(
    help="List, explain and try out rewards.",
    epilog="Example: rlalign rewards list",
    rich_markup_mode=None,
    invoke_without_command=True,
)
app.add_typer(rewards_app, name="rewards")

RewardFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--reward_files",
        "--reward-files",
        metavar="FILE",
        help="Your own Python file with @reward functions; it is run. May be repeated.",
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help=f"A YAML file; {QUICKSTART} if left out."),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 configuration, 4 resources, 5 reward."""
    from rewards.contract import RewardConfigError, RewardError
    from rewards.embedded import EmbeddedError
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


@rewards_app.callback()
def _rewards(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    context_settings=PASS_ON,
    epilog="Example: rlalign ppo --config experiments/quickstart.yaml --ppo.lr=2e-5",
)
def ppo(context: typer.Context) -> None:
    """Train with PPO; settings are written --section.key=value."""
    from rlalign.ppo import main as run

    raise typer.Exit(run(context.args))


@app.command(
    name="eval",
    context_settings=PASS_ON,
    epilog="Example: rlalign eval runs/quickstart --config experiments/quickstart.yaml",
)
def evaluate(
    context: typer.Context,
    run_or_model: Annotated[str, typer.Argument(help="A run's folder, or a model's.")],
) -> None:
    """Measure a run or a model: score, rewards, KL to the reference, diversity."""
    from rlalign.measure import main as run

    raise typer.Exit(run([run_or_model, *context.args]))


@app.command(
    name="config",
    context_settings=PASS_ON,
    epilog="Example: rlalign config --config experiments/quickstart.yaml --kl.coef=0.2",
)
def show_config(
    context: typer.Context,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/configuration.md.")
    ] = False,
) -> None:
    """Print the resolved configuration as YAML."""
    from rlalign.algorithms.ppo import PPORun
    from rlalign.config import json_schema, load_config, resolved_yaml

    if markdown:
        from rlalign.report.configuration_page import configuration_page

        print(configuration_page(PPORun), end="")
        return
    config = None if schema and not context.args else load_config(PPORun, context.args, QUICKSTART)
    if schema:  # a configuration's own reward files add to the kinds
        print(json.dumps(json_schema(PPORun), indent=2, ensure_ascii=False))
    elif config is not None:
        print(resolved_yaml(config), end="")


@rewards_app.command(name="list", epilog="Example: rlalign rewards list --reward_files my.py")
def list_rewards(reward_files: RewardFiles = None) -> None:
    """Every kind of reward that a configuration can name."""
    from rewards import registry

    _load(reward_files)
    table = Table("kind", "what it measures", box=None, header_style="bold")
    for kind in registry.kinds():
        table.add_row(plain_text(kind), plain_text(registry.describe(kind).summary))
    _console().print(table)


@rewards_app.command(name="show", epilog="Example: rlalign rewards show topic.similarity")
def show_reward(
    name: Annotated[str, typer.Argument(help="A kind, as `rlalign rewards list` prints it.")],
    reward_files: RewardFiles = None,
) -> None:
    """One reward's meaning, parameters, bounds and an example."""
    from rewards import registry

    _load(reward_files)
    print(printable(str(registry.describe(name))))


@rewards_app.command(
    name="probe",
    epilog='Example: rlalign rewards probe --config experiments/quickstart.yaml "The moon rose."',
)
def probe(
    texts: Annotated[list[str], typer.Argument(help="The responses to score.")],
    config: ConfigFile = None,
    prompt: Annotated[str, typer.Option(help="The prompt that they answer.")] = "",
    reward_files: RewardFiles = None,
) -> None:
    """Score texts of yours with the rewards of a configuration."""
    from rewards.compose import RewardSet, parse_entries
    from rlalign.algorithms.ppo import PPORun
    from rlalign.config import load_config

    argv = [f"--config={config}"] if config is not None else []
    if reward_files:
        argv.append(f"--reward_files={reward_files}")
    run = load_config(PPORun, argv, QUICKSTART)
    _show_scores(RewardSet(parse_entries(run.rewards)), texts, prompt)


def _show_scores(rewards: "RewardSet", texts: Sequence[str], prompt: str) -> None:
    output = rewards([prompt] * len(texts), list(texts))
    table = Table(header_style="bold")
    table.add_column("text", overflow="fold")
    for heading in (*rewards.names, "score"):
        table.add_column(plain_text(heading), justify="right", no_wrap=True)
    for row, text in enumerate(texts):
        cells = [
            f"{value:.3f}" if valid else "-"
            for value, valid in zip(output.values[row], output.valid[row], strict=True)
        ]
        table.add_row(plain_text(text), *cells, f"{output.score[row]:.3f}")
    table.add_section()
    table.add_row("weight", *(f"{weight:g}" for weight in rewards.weights), "")
    _console().print(table)


def _load(reward_files: Sequence[str] | None) -> None:
    from rewards import registry
    from rlalign.problems import ConfigError

    for file in reward_files or ():
        if not Path(file).is_file():
            raise ConfigError(f"--reward_files {file}: no such file in {Path.cwd()}")
        registry.load_file(file)


def _console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:  # a pipe has no width to fold lines to
        console.width = 200
    return console
