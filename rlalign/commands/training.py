"""`rlalign ppo`, `dpg`, …: train."""

import typer

from rlalign.commands import PASS_ON, passed_on
from rlalign.completion import SettingsCommand

app = typer.Typer()


@app.command(
    cls=SettingsCommand,
    context_settings=PASS_ON,
    epilog="Example: rlalign ppo --config experiments/quickstart.yaml --ppo.lr=2e-5",
)
def ppo(context: typer.Context) -> None:
    """Train with PPO; settings are written --section.key=value."""
    from rlalign.ppo import main as run

    raise typer.Exit(run(passed_on(context)))


@app.command(
    cls=SettingsCommand,
    context_settings=PASS_ON,
    epilog="Example: rlalign dpg --config experiments/quickstart.yaml "
    "--sampling.samples_per_prompt=8",
)
def dpg(context: typer.Context) -> None:
    """Train with the distributional policy gradient, toward the target (docs/target.md)."""
    from rlalign.dpg import main as run

    raise typer.Exit(run(passed_on(context)))


@app.command(
    cls=SettingsCommand,
    context_settings=PASS_ON,
    epilog="Example: rlalign reinforce --config experiments/quickstart.yaml "
    "--sampling.samples_per_prompt=4",
)
def reinforce(context: typer.Context) -> None:
    """Train with REINFORCE and a leave-one-out baseline (RLOO)."""
    from rlalign.reinforce import main as run

    raise typer.Exit(run(passed_on(context)))


@app.command(
    cls=SettingsCommand,
    context_settings=PASS_ON,
    epilog="Example: rlalign grpo --config experiments/quickstart.yaml --trl.num_generations=16",
)
def grpo(context: typer.Context) -> None:
    """Train with TRL's GRPO on the settings of a PPO run (docs/trl.md)."""
    from rlalign.trl_trainers.run import main as run

    raise typer.Exit(run("grpo", passed_on(context)))


@app.command(
    cls=SettingsCommand,
    context_settings=PASS_ON,
    epilog="Example: rlalign rloo --config experiments/quickstart.yaml --trl.num_generations=16",
)
def rloo(context: typer.Context) -> None:
    """Train with TRL's RLOO on the settings of a PPO run (docs/trl.md)."""
    from rlalign.trl_trainers.run import main as run

    raise typer.Exit(run("rloo", passed_on(context)))
