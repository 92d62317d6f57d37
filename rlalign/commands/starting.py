"""`rlalign init`, `doctor`, `config`: before a run."""

import json
import shutil
from typing import Annotated

import typer

from rlalign.commands import PASS_ON, passed_on
from rlalign.completion import SettingsCommand, settings_of_line
from rlalign.startup import QUICKSTART
from rlalign.terminal import plain_text, printable

app = typer.Typer()


@app.command(epilog="Example: rlalign init my-project")
def init(
    folder: Annotated[str, typer.Argument(help="The folder that is made; nothing is overwritten.")],
) -> None:
    """Write a small working project: a reward with its test, prompts, settings, a README."""
    from rlalign.project.making import init as make
    from rlalign.project.making import told

    print(told(make(folder)))


@app.command(
    cls=SettingsCommand,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Whether a run can start here, what memory and time it takes, and what to change.

    Without settings the machine alone is looked at, in about a second."""
    from rlalign.doctor.command import main as run

    raise typer.Exit(run(passed_on(context), not no_probe, processes, as_json))


@app.command(
    name="config",
    cls=SettingsCommand,
    context_settings=PASS_ON,
    epilog="Example: rlalign config --explain kl.coef --config experiments/quickstart.yaml",
)
def show_config(
    context: typer.Context,
    explain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Say what a setting, or each of a section, means and where its value is from.",
            autocompletion=settings_of_line,
        ),
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Show the settings that differ: two files or runs."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/configuration.md.")
    ] = False,
) -> None:
    """Print the resolved configuration as YAML, explain settings, or compare two."""
    from rlalign.config import json_schema, load_config, resolved_yaml
    from rlalign.settings.method_sections import AnyRun

    if markdown:
        from rlalign.report.configuration_page import configuration_page

        print(configuration_page(AnyRun), end="")
    elif explain:
        _explain(explain, passed_on(context))
    elif diff is not None:
        _diff(*diff)
    elif schema:  # a configuration's own reward files add to the kinds
        if passed_on(context):
            load_config(AnyRun, passed_on(context), QUICKSTART)
        print(json.dumps(json_schema(AnyRun), indent=2, ensure_ascii=False))
    else:
        print(resolved_yaml(load_config(AnyRun, passed_on(context), QUICKSTART)), end="")


def _explain(names: list[str], arguments: list[str]) -> None:
    from rlalign import explaining

    width = min(shutil.get_terminal_size().columns, 100)
    found = [one for name in names for one in explaining.explain(name, arguments, QUICKSTART)]
    print(printable("\n\n".join(explaining.in_words(one, width) for one in found)))


def _diff(first: str, second: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from rlalign.explaining import difference

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    rows = difference(first, second)
    if not rows:
        console.print("no setting differs")
        return
    table = Table("setting", box=None, header_style="bold")
    for file in (first, second):
        table.add_column(plain_text(file))
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*map(plain_text, row))
    console.print(table)
