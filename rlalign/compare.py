"""`rlalign compare`: runs that `rlalign eval` has measured, side by side on one page."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlalign.config import ConfigError
from rlalign.exits import run_safely
from rlalign.files import write_atomically
from rlalign.nearby import run_hint
from rlalign.report.compare_page import compare_page
from rlalign.report.compare_readings import distance, notes, settings, titled
from rlalign.report.eval_file import read_eval
from rlalign.report.plots import read_metrics
from rlalign.report.visible import visible
from rlalign.report.yardstick_table import DIVERGENCES, with_error
from rlalign.startup import say

# What must be the same for two runs' numbers to be comparable: key -> name, and what else.
SHARED = {
    "reference_model": ("reference", "distances to different references do not compare"),
    "prompts": ("number of prompts", "numbers on different prompts do not compare"),
    "dtype": ("precision", "bfloat16 moves a response's log-probability by about 0.2 nats"),
    "samples": ("number of samples", "intervals, and what has none, depend on it"),
    "seed": ("seed", "the prompts and the random numbers may be others"),
    "held_out": ("held-out prompts", "numbers on different prompts do not compare"),
}


@dataclass(frozen=True)
class Measured:
    """One run as `rlalign eval` left it."""

    label: str
    content: Mapping[str, Any]  # eval.json
    samples: Sequence[Mapping[str, Any]]  # eval_samples.jsonl
    metrics: Sequence[Mapping[str, Any]]  # metrics.jsonl; empty of what is no run


def main(runs: Sequence[str], out: str) -> int:
    """Write the page and print the table; the exit code of `rlalign.exits`."""
    return run_safely(lambda: compare(runs, out))


def compare(runs: Sequence[str], out: str) -> None:
    """Put the runs on one page at `out`; raises ConfigError where one is not measured."""
    page = Path(out).expanduser()
    if not page.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {page.parent}; make it first")
    if page.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it, as {out}/compare.html")
    found = load(runs)
    warnings = mismatches(found)
    for line in warnings:
        say(f"warning: {line}")
    write_atomically(page, compare_page(found, warnings))
    print(table(found))
    print(f"\npage  {visible(str(page))}")


def load(runs: Sequence[str]) -> list[Measured]:
    """Each run's files, under a label of its own."""
    if not runs:
        raise ConfigError("name a run or more that `rlalign eval` has measured")
    return [read(folder, label) for label, folder in labelled(runs).items()]


def labelled(runs: Sequence[str]) -> dict[str, Path]:
    """The folders by label; ConfigError where one is named twice."""
    folders = [Path(run).expanduser() for run in runs]
    seen: set[Path] = set()
    for run, folder in zip(runs, folders, strict=True):
        if folder.resolve() in seen:
            raise ConfigError(f"{run} is named twice; name each run once")
        seen.add(folder.resolve())
    return dict(zip(labels_of(folders), folders, strict=True))


def labels_of(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of the way there as tells those of one name apart."""
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]  # a link keeps its name
    labels = []
    for path in paths:
        others = [other for other in paths if other is not path]
        kept = next(n for n in range(1, len(path) + 1) if all(o[-n:] != path[-n:] for o in others))
        labels.append(str(Path(*path[-kept:])))
    return labels


def read(folder: Path, label: str) -> Measured:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder in {Path.cwd()}{run_hint(folder)}")
    content = read_eval(folder)
    samples, metrics = folder / "eval_samples.jsonl", folder / "metrics.jsonl"
    try:
        return Measured(
            label,
            content,
            rows_of(samples) if samples.is_file() else [],
            read_metrics(metrics) if metrics.is_file() else [],
        )
    except (ValueError, OSError) as error:  # metrics.jsonl is no text
        raise ConfigError(f"{folder}: its metrics or samples cannot be read ({error})") from error


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of eval_samples.jsonl; what is no row is left out."""
    rows = []
    # Not splitlines: a response may hold U+2028, which JSON leaves as it is.
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and all(
            isinstance(row.get(key), str) for key in ("prompt", "response", "drawn_by")
        ):
            rows.append(row)
    return rows


def mismatches(found: Sequence[Measured]) -> list[str]:
    """A line for each thing that keeps the runs' numbers from being compared."""
    first, lines = found[0], []
    for other in found[1:]:
        if other.content["target"]["hash"] != first.content["target"]["hash"]:
            lines.append(
                f"{other.label} was measured against another target than {first.label}: their "
                "distances to it do not compare; measure both with one --config"
            )
        for key, (name, why) in SHARED.items():
            mine, theirs = first.content.get(key), other.content.get(key)
            if mine != theirs:
                lines.append(f"{name}: {theirs} in {other.label}, {mine} in {first.label}: {why}")
        same = [first.content[key] == other.content[key] for key in ("prompts", "prompts_hash")]
        if same == [True, False]:  # a different count is told above
            lines.append(
                f"prompts: those of {other.label} are others than those of {first.label}: numbers "
                "on different prompts do not compare"
            )
    return lines


def table(found: Sequence[Measured]) -> str:
    """The distances of each run, for the terminal: 80 columns."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("", overflow="fold", max_width=24)  # an end cut off may be the difference
    for title in ("KL(P_T‖π)", "KL(π‖P_T)", "JS", "TV"):
        shown.add_column(title, justify="right", no_wrap=True)
    firsts = settings(found)
    sources = [*((titled("reference", run, firsts), run, "reference") for run in firsts)]
    sources += [(run.label, run, "policy") for run in found]
    for label, run, of in sources:
        cells = (with_error(distance(run, name, of), 1) for name in DIVERGENCES)
        shown.add_row(Text(visible(label)), *cells)
    stream = StringIO()
    console = Console(file=stream, width=80, highlight=False, markup=False, emoji=False)
    console.print(shown)
    for run in found:
        for note in notes(run):
            if note.startswith("no distance"):
                console.print(Text(visible(f"{run.label}: {note}")))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
