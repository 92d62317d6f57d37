"""`rlalign init`, `doctor`, `config`: before a run."""

import json
from typing import Annotated

import typer

from rlalign.commands import PASS_ON
from rlalign.startup import QUICKSTART

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

    raise typer.Exit(run(context.args, not no_probe, processes, as_json))


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
    from rlalign.settings.method_sections import AnyRun

    if markdown:
        from rlalign.report.configuration_page import configuration_page

        print(configuration_page(AnyRun), end="")
        return
    config = None if schema and not context.args else load_config(AnyRun, context.args, QUICKSTART)
    if schema:  # a configuration's own reward files add to the kinds
        print(json.dumps(json_schema(AnyRun), indent=2, ensure_ascii=False))
    elif config is not None:
        print(resolved_yaml(config), end="")
