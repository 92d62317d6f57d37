"""The `rlalign` command. What a command needs is imported when it runs: `--help` stays fast."""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from rlalign.reward_tools import rewards_app
from rlalign.startup import QUICKSTART
from rlalign.terminal import printable

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    help="Align a language model's output distribution with readable rewards.",
    epilog="Example: rlalign ppo --config experiments/quickstart.yaml --kl.coef=0.2",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    invoke_without_command=True,
)
app.add_typer(rewards_app, name="rewards")


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


@app.command(
    context_settings=PASS_ON,
    epilog="Example: rlalign ppo --config experiments/quickstart.yaml --ppo.lr=2e-5",
)
def ppo(context: typer.Context) -> None:
    """Train with PPO; settings are written --section.key=value."""
    from rlalign.ppo import main as run

    raise typer.Exit(run(context.args))


@app.command(
    context_settings=PASS_ON,
    epilog="Example: rlalign dpg --config experiments/quickstart.yaml "
    "--sampling.samples_per_prompt=8",
)
def dpg(context: typer.Context) -> None:
    """Train with the distributional policy gradient, toward the target (docs/target.md)."""
    from rlalign.dpg import main as run

    raise typer.Exit(run(context.args))


@app.command(
    context_settings=PASS_ON,
    epilog="Example: rlalign reinforce --config experiments/quickstart.yaml "
    "--sampling.samples_per_prompt=4",
)
def reinforce(context: typer.Context) -> None:
    """Train with REINFORCE and a leave-one-out baseline (RLOO)."""
    from rlalign.reinforce import main as run

    raise typer.Exit(run(context.args))


@app.command(
    context_settings=PASS_ON,
    epilog="Example: rlalign grpo --config experiments/quickstart.yaml --trl.num_generations=16",
)
def grpo(context: typer.Context) -> None:
    """Train with TRL's GRPO on the settings of a PPO run (docs/trl.md)."""
    from rlalign.trl_trainers.run import main as run

    raise typer.Exit(run("grpo", context.args))


@app.command(
    context_settings=PASS_ON,
    epilog="Example: rlalign rloo --config experiments/quickstart.yaml --trl.num_generations=16",
)
def rloo(context: typer.Context) -> None:
    """Train with TRL's RLOO on the settings of a PPO run (docs/trl.md)."""
    from rlalign.trl_trainers.run import main as run

    raise typer.Exit(run("rloo", context.args))


@app.command(
    name="eval",
    context_settings=PASS_ON,
    epilog="Example: rlalign eval runs/quickstart --config experiments/quickstart.yaml",
)
def evaluate(
    context: typer.Context,
    run_or_model: Annotated[
        str, typer.Argument(help="A run's folder, a checkpoint's, a model's, or a hub id.")
    ],
    out: Annotated[
        str | None, typer.Option(help="Folder of the results; by default the one measured.")
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Let what is measured run its code and ask its servers."),
    ] = False,
) -> None:
    """Measure any run or model against a target: moments, divergences, diversity (docs/eval.md)."""
    from rlalign.measure import main as run

    raise typer.Exit(run(run_or_model, context.args, out, trust))


@app.command(epilog="Example: rlalign compare runs/dpg runs/ppo --out compare.html")
def compare(
    runs: Annotated[list[str], typer.Argument(help="Folders that `rlalign eval` has measured.")],
    out: Annotated[str, typer.Option(help="The page that is written.")] = "compare.html",
) -> None:
    """Put measured runs side by side on one page: distances, frontier, samples, what was lost."""
    from rlalign.compare import main as run

    raise typer.Exit(run(runs, out))


@app.command(epilog="Example: rlalign sweep experiments/sweeps/kl.yaml --local --trials 4")
def sweep(
    file: Annotated[str, typer.Argument(help="A sweep file, as W&B reads it.")],
    local: Annotated[
        bool, typer.Option("--local", help="Run it here, through Optuna: no account, no network.")
    ] = False,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all; a grid's are its points.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The folder under runs/sweeps/; by default the file's name.")
    ] = None,
    grace: Annotated[
        int, typer.Option(min=2, help="Seconds without a sign of life until a worker is given up.")
    ] = 60,
) -> None:
    """Run a sweep's trials; start it again to go on, or beside itself for two at a time."""
    from rlalign.sweeps.command import main as run

    raise typer.Exit(run(file, local, trials, name, grace))


@app.command(
    context_settings=PASS_ON,
    epilog="Example: rlalign doctor --config experiments/quickstart.yaml --model.lora=null",
)
def doctor(
    context: typer.Context,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Load nothing and leave the seconds out.")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that the launcher will start.")
    ] = 1,
) -> None:
    """Whether a run can start here, what memory and time it takes, and what to change."""
    from rlalign.doctor.command import main as run

    raise typer.Exit(run(context.args, not no_probe, processes))


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
    from rlalign.config import json_schema, load_config, resolved_yaml
    from rlalign.methods import AnyRun

    if markdown:
        from rlalign.report.configuration_page import configuration_page

        print(configuration_page(AnyRun), end="")
        return
    config = None if schema and not context.args else load_config(AnyRun, context.args, QUICKSTART)
    if schema:  # a configuration's own reward files add to the kinds
        print(json.dumps(json_schema(AnyRun), indent=2, ensure_ascii=False))
    elif config is not None:
        print(resolved_yaml(config), end="")
