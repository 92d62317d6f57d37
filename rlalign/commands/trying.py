"""`rlalign sample`, `export`, `push`: a trained model in use."""

from typing import Annotated, Literal

import typer

from rlalign import completion
from rlalign.commands import PASS_ON, passed_on
from rlalign.completion import SettingsCommand

app = typer.Typer()

RunOrModel = Annotated[
    str,
    typer.Argument(
        help="A run's folder, a checkpoint's, a model's, or a hub id.",
        autocompletion=completion.runs,
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Let the run's own settings run its code and ask its servers."),
]


@app.command(
    cls=SettingsCommand,
    context_settings=PASS_ON,
    epilog='Example: rlalign sample runs/quickstart --prompt "The old clockmaker opened the door '
    'and" --samples 3',
)
def sample(
    context: typer.Context,
    run: RunOrModel,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="A prompt. May be repeated.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="A file of prompts: as the run's own, or .txt with one a line.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Responses of each model to a prompt.")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="By default the run's train.seed.")
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="JSON",
            help='Columns of the data that rewards read: \'{"opening": "Once"}\'.',
        ),
    ] = "{}",
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each response, for scripts.")
    ] = False,
    interactive: Annotated[
        bool,
        typer.Option("--interactive", help="Type prompts; so it is where none is given, too."),
    ] = False,
    trust: Trust = False,
) -> None:
    """What a trained model writes, beside its reference, with every reward (docs/trying.md).

    Settings are the run's own; --sampling.temperature=0.7 and the like change them.
    """
    from rlalign.trying.sample import Asked
    from rlalign.trying.sample import main as run_it

    asked = Asked(
        run=run,
        prompts=tuple(prompt or ()),
        file=prompts,
        samples=samples,
        seed=seed,
        columns=columns,
        as_json=as_json,
        interactive=interactive,
        trust=trust,
        settings=tuple(passed_on(context)),
    )
    raise typer.Exit(run_it(asked))


AsAdapter = Annotated[
    bool,
    typer.Option(
        "--adapter/--merged",
        help="The adapter alone, or (the default) its base with it merged in: a whole model.",
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option("--dtype", help="Of whole weights; float32 computes what was trained."),
]


@app.command(epilog="Example: rlalign export runs/quickstart my-model --dtype bfloat16")
def export(
    run: Annotated[
        str,
        typer.Argument(help="A run's folder, or a checkpoint's.", autocompletion=completion.runs),
    ],
    out: Annotated[str, typer.Argument(help="The folder that is made; it must not be there yet.")],
    adapter: AsAdapter = False,
    dtype: Dtype = "float32",
    trust: Trust = False,
) -> None:
    """Write the trained model as a plain Hugging Face folder, with tokenizer and model card."""
    from rlalign.trying.export import Wish
    from rlalign.trying.export import main as run_it

    raise typer.Exit(run_it(Wish(run, adapter, dtype, trust), out))


@app.command(epilog="Example: rlalign push runs/quickstart my-name/cheerful-sky --private")
def push(
    run: Annotated[
        str,
        typer.Argument(help="A run's folder, or a checkpoint's.", autocompletion=completion.runs),
    ],
    repo_id: Annotated[str, typer.Argument(help="USER/NAME on the hub; made where it is new.")],
    private: Annotated[bool, typer.Option("--private", help="Only you may see a new one.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking first.")] = False,
    adapter: AsAdapter = False,
    dtype: Dtype = "float32",
    trust: Trust = False,
) -> None:
    """Upload the trained model to the Hugging Face hub, after showing what would go there."""
    from rlalign.trying.export import Wish
    from rlalign.trying.push import Upload
    from rlalign.trying.push import main as run_it

    raise typer.Exit(run_it(Wish(run, adapter, dtype, trust), Upload(repo_id, private, yes)))
