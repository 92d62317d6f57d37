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

from rlalign.config import ConfigError
from rlalign.exits import run_safely
from rlalign.files import write_atomically
from rlalign.report.compare_page import compare_page
from rlalign.report.plots import read_metrics
from rlalign.report.visible import visible
from rlalign.report.yardstick_table import DIVERGENCES, with_error
from rlalign.startup import say
from rlalign.yardstick.numbers import FORMAT

# What must be the same for two distances to be comparable: key -> what a reader calls it.
SHARED = {
    "reference_model": "reference",
    "prompts": "number of prompts",
    "samples": "number of samples",
    "seed": "seed of the prompts and samples",
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
    page = Path(out)
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
    print(f"\npage  {page}")


def load(runs: Sequence[str]) -> list[Measured]:
    """Each run's files, under a label of its own."""
    folders = [Path(run).expanduser() for run in runs]
    seen: set[Path] = set()
    for run, folder in zip(runs, folders, strict=True):
        if folder.resolve() in seen:
            raise ConfigError(f"{run} is named twice; name each run once")
        seen.add(folder.resolve())
    labels = [Path(os.path.abspath(folder)).name for folder in folders]  # a link keeps its name
    if len(set(labels)) < len(labels):  # two of one name: as much of the path as was typed
        labels = [str(run) for run in runs]
    return [read(folder, label) for folder, label in zip(folders, labels, strict=True)]


def read(folder: Path, label: str) -> Measured:
    file = folder / "eval.json"
    if not file.is_file():
        raise ConfigError(f"{folder} has no eval.json; run `rlalign eval {folder}` first")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); measure the run again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(
            f"{file} was not written by this version of `rlalign eval`; measure the run again"
        )
    samples, metrics = folder / "eval_samples.jsonl", folder / "metrics.jsonl"
    return Measured(
        label,
        content,
        rows_of(samples) if samples.is_file() else [],
        read_metrics(metrics) if metrics.is_file() else [],
    )


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; what is no row is left out."""
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"prompt", "response", "drawn_by"} <= row.keys():
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
        for key, name in SHARED.items():
            mine, theirs = first.content.get(key), other.content.get(key)
            if mine != theirs:
                lines.append(f"{name}: {theirs} in {other.label}, {mine} in {first.label}")
    return lines


def table(found: Sequence[Measured]) -> str:
    """The distances of each run, for the terminal: 80 columns."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("", overflow="ellipsis", no_wrap=True, max_width=24)
    for title in ("KL(P_T‖π)", "KL(π‖P_T)", "JS", "TV"):
        shown.add_column(title, justify="right", no_wrap=True)
    first = found[0].content["to_target"]
    shown.add_row("reference", *(with_error(first[name]["reference"], 1) for name in DIVERGENCES))
    for run in found:
        own = run.content["to_target"]
        cells = (with_error(own[name]["policy"], 1) for name in DIVERGENCES)
        shown.add_row(visible(run.label), *cells)
    stream = StringIO()
    Console(file=stream, width=80, highlight=False, markup=False, emoji=False).print(shown)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
