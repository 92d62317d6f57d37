"""`rlalign rewards …`: list, explain, test, time, train and try out rewards."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlalign.completion import kinds_of_line
from rlalign.report.visible import visible
from rlalign.reward_training import command
from rlalign.startup import QUICKSTART
from rlalign.terminal import plain_text, printable

if TYPE_CHECKING:
    from rewards.bench import Cost, NotMeasured
    from rewards.compose import RewardOutput, RewardSet
    from rewards.conformance import Result

rewards_app = typer.Typer(
    help="List, explain, test, time, train and try out rewards.",
    epilog="Example: rlalign rewards list",
    rich_markup_mode=None,
    invoke_without_command=True,
)

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
OUTCOMES = {"pass": "green", "fail": "bold red", "skipped": "dim"}


@rewards_app.callback()
def _rewards(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@rewards_app.command(name="list", epilog="Example: rlalign rewards list --reward_files my.py")
def list_rewards(
    reward_files: RewardFiles = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/rewards.md: the built-in kinds.")
    ] = False,
) -> None:
    """Every kind of reward that a configuration can name."""
    from rewards import registry

    if markdown:
        from rlalign.report.rewards_page import rewards_page

        print(rewards_page(), end="")
        return
    _load(reward_files)
    table = Table("kind", "what it measures", box=None, header_style="bold")
    for kind in registry.kinds():
        table.add_row(plain_text(kind), plain_text(registry.describe(kind).summary))
    _console().print(table)


@rewards_app.command(name="show", epilog="Example: rlalign rewards show topic.similarity")
def show_reward(
    name: Annotated[
        str,
        typer.Argument(
            help="A kind, as `rlalign rewards list` prints it.", autocompletion=kinds_of_line
        ),
    ],
    reward_files: RewardFiles = None,
) -> None:
    """One reward's meaning, parameters, bounds and an example."""
    from rewards import registry

    _load(reward_files)
    print(printable(str(registry.describe(name))))


@rewards_app.command(name="test", epilog="Example: rlalign rewards test my.py")
def conformance_test(
    file: Annotated[
        str, typer.Argument(help="Your own Python file with @reward functions; it is run.")
    ],
) -> None:
    """Check that the rewards of a file keep the contract; the exit code is 5 where one does not."""
    from rewards import conformance, registry

    _load([file], option="")
    results = [result for kind in registry.defined_in(file) for result in conformance.examine(kind)]
    _console().print(_results_table(results))
    failed = sum(result.outcome == "fail" for result in results)
    kinds = {result.kind for result in results}
    print(f"rewards: {len(kinds)}, checks: {len(results)}, failed: {failed}")
    if failed:
        raise typer.Exit(5)


@rewards_app.command(name="bench", epilog="Example: rlalign rewards bench lexical.contains")
def bench(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            help="Kinds to measure; every one if left out.", autocompletion=kinds_of_line
        ),
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="Texts in a batch.")] = 64,
    reward_files: RewardFiles = None,
) -> None:
    """Texts per second and memory of rewards with their examples' parameters, on the CPU."""
    from rewards import bench, registry

    _load(reward_files)
    chosen = [registry.get(kind).kind for kind in kinds or registry.kinds()]
    outcomes = []
    measuring = bench.measure_apart(chosen, texts, reward_files or ())
    with Console(stderr=True).status("measuring …"):
        outcomes = list(measuring)
    words = [len(text.split()) for text in bench.sample_texts(texts)]
    print(
        f"{texts} texts of {sum(words) / len(words):.0f} words in one call, median of "
        f"{bench.REPEATS}; memory: how far the peak of a process that has imported "
        f"{' and '.join(bench.SHARED)} rises"
    )
    _console().print(_costs_table(outcomes))
    if any(isinstance(one, bench.NotMeasured) and one.has_failed for one in outcomes):
        raise typer.Exit(5)


rewards_app.command(name="train", epilog=f"Example: {command.EXAMPLE}")(command.train)


@rewards_app.command(
    name="probe",
    epilog='Example: rlalign rewards probe --config experiments/quickstart.yaml "The moon rose."',
)
def probe(
    texts: Annotated[list[str], typer.Argument(help="The responses to score.")],
    config: ConfigFile = None,
    prompt: Annotated[str, typer.Option(help="The prompt that they answer.")] = "",
    columns: Annotated[
        str,
        typer.Option(
            metavar="JSON",
            help='The data\'s other columns, the same for every text: \'{"opening": "Once"}\'.',
        ),
    ] = "{}",
    reward_files: RewardFiles = None,
) -> None:
    """Score texts of yours with the rewards of a configuration, and show which words earn it."""
    from rewards.compose import RewardSet, parse_entries
    from rlalign.columns import check_columns, parsed_columns
    from rlalign.config import load_config
    from rlalign.settings.method_sections import PPORun

    given = parsed_columns(columns)
    argv = [f"--config={config}"] if config is not None else []
    if reward_files:
        argv.append(f"--reward_files={reward_files}")
    entries = parse_entries(load_config(PPORun, argv, QUICKSTART).rewards)
    check_columns(given, entries)
    rewards = RewardSet(entries)
    repeated = {name: [value] * len(texts) for name, value in given.items()}
    output = rewards([prompt] * len(texts), texts, repeated)
    console = _console()
    console.print(_scores_table(rewards, output, texts))
    for line in _span_lines(output, texts, is_coloured=_has_colour(console)):
        console.print(line, soft_wrap=True)


def _scores_table(rewards: "RewardSet", output: "RewardOutput", texts: Sequence[str]) -> Table:
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
    return table


def _span_lines(
    output: "RewardOutput", texts: Sequence[str], *, is_coloured: bool
) -> Iterator[Text]:
    """For each reward with spans the texts with them, credits in the reward's own units."""
    from rlalign.report.marked import marked

    for name, of_reward in zip(output.names, output.own_spans, strict=True):
        if any(of_reward):
            meaning = "green earns, red costs" if is_coloured else "[start:end] credit"
            yield Text(f"\n{name}: {meaning}", style="bold")
        for text, spans in zip(texts, of_reward, strict=True):
            if spans and is_coloured:
                yield Text("  ").append_text(marked(text, spans))
            elif spans:
                yield Text(f'  "{visible(text)}"')
                for span in spans:
                    part = visible(text[span.start : span.end])
                    yield Text(f'    [{span.start}:{span.end}] {span.credit:+.3f} "{part}"')


def _results_table(results: "Sequence[Result]") -> Table:
    table = Table("reward", "check", "result", "ms", "why", box=None, header_style="bold")
    table.columns[3].justify = "right"
    table.columns[4].overflow = "fold"
    for one in results:
        outcome = Text(one.outcome, style=OUTCOMES[one.outcome])
        ms = f"{1000 * one.seconds:.1f}"
        table.add_row(plain_text(one.kind), one.check, outcome, ms, plain_text(one.reason))
    return table


def _costs_table(outcomes: "Sequence[Cost | NotMeasured]") -> Table:
    from rewards.bench import Cost

    table = Table("reward", box=None, header_style="bold")
    for heading in ("texts/s", "loading, s", "memory, MB"):
        table.add_column(heading, justify="right")
    table.add_column("not measured because", overflow="fold")
    for one in outcomes:
        if isinstance(one, Cost):
            memory = "-" if one.megabytes is None else f"{one.megabytes:.0f}"
            numbers = (f"{one.texts_per_second:,.0f}", f"{one.load_seconds:.2f}", memory)
            table.add_row(plain_text(one.kind), *numbers)
        else:
            why = Text("failed: " if one.has_failed else "skipped: ")
            table.add_row(plain_text(one.kind), "-", "-", "-", why + plain_text(one.reason))
    return table


def _load(reward_files: Sequence[str] | None, option: str = "--reward_files ") -> None:
    from rewards import registry
    from rlalign.nearby import file_hint
    from rlalign.problems import ConfigError

    for file in reward_files or ():
        if not Path(file).is_file():
            raise ConfigError(f"{option}{file}: no such file in {Path.cwd()}{file_hint(file)}")
        registry.load_file(file)


def _console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:  # a pipe has no width to fold lines to
        console.width = 200
    return console


def _has_colour(console: Console) -> bool:
    return console.color_system is not None and not console.no_color
