"""`rlalign eval`, `compare`, `report`, `watch`: what comes out."""

from typing import Annotated

import typer

from rlalign import completion
from rlalign.commands import PASS_ON, passed_on
from rlalign.completion import SettingsCommand

app = typer.Typer()


@app.command(
    name="eval",
    cls=SettingsCommand,
    context_settings=PASS_ON,
    epilog="Example: rlalign eval runs/quickstart --config experiments/quickstart.yaml",
)
def evaluate(
    context: typer.Context,
    run_or_model: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a checkpoint's, a model's, or a hub id.",
            autocompletion=completion.runs,
        ),
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

    raise typer.Exit(run(run_or_model, passed_on(context), out, trust))


@app.command(epilog="Example: rlalign compare runs/dpg runs/ppo --out compare.html")
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Folders that `rlalign eval` has measured.", autocompletion=completion.runs
        ),
    ],
    out: Annotated[str, typer.Option(help="The page that is written.")] = "compare.html",
) -> None:
    """Put measured runs side by side on one page: distances, frontier, samples, what was lost."""
    from rlalign.compare import main as run

    raise typer.Exit(run(runs, out))


@app.command(epilog="Example: rlalign report runs/ppo runs/dpg --out report.html")
def report(
    runs: Annotated[
        list[str],
        typer.Argument(help="Runs' folders, finished or not.", autocompletion=completion.runs),
    ],
    out: Annotated[
        str | None, typer.Option(help="The page; of one run by default report.html in its folder.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Samples in the page, at most; both ends come first.")
    ] = 5000,
) -> None:
    """Put runs on one page: what was asked, what came out, curves, samples (docs/report.md)."""
    from rlalign.reporting import main as run

    raise typer.Exit(run(runs, out, samples))


@app.command(epilog="Example: rlalign watch runs/quickstart")
def watch(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run's folder, or its name; by default the newest.",
            autocompletion=completion.runs,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for a run not there yet.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Show how it is now, and end.")] = False,
    rows: Annotated[int, typer.Option(min=0, help="Rows of before to show; 0: all.")] = 20,
    give_up: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="End with 7 once no row came for so long."),
    ] = None,
) -> None:
    """Follow a run from its folder, wherever it runs; the exit code is the run's own."""
    from rlalign.watch import main as run_it

    raise typer.Exit(run_it(run, wait, once, rows, give_up))
