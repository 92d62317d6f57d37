"""`rlalign sweep`: many runs."""

from typing import Annotated

import typer

app = typer.Typer()


@app.command(epilog="Example: rlalign sweep experiments/sweeps/kl.yaml --local")
def sweep(
    file: Annotated[
        str,
        typer.Argument(help="A sweep file, as W&B reads it; or a local sweep's folder, to see it."),
    ],
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
    no_agent: Annotated[
        bool, typer.Option("--no-agent", help="Only make it at W&B; agents are started by hand.")
    ] = False,
) -> None:
    """Run a sweep's trials, at W&B or here (docs/sweeps.md).

    With --local the same command goes on where it was stopped; beside itself it runs two at a time.
    """
    from rlalign.sweeps.command import main as run

    raise typer.Exit(run(file, local, trials, name, grace, has_agent=not no_agent))
