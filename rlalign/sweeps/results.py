"""What a sweep ends with: a table, the picture, importances, and the best configuration."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlalign.files import FileError, read_json, write_atomically
from rlalign.settings.overrides import dump_yaml, read_yaml
from rlalign.sweeps.file import Sweep
from rlalign.sweeps.importances import Importances
from rlalign.sweeps.outcome import (
    Outcome,
    as_csv,
    best,
    front,
    kl_key,
    outcomes,
    reference,
    rivals,
)
from rlalign.sweeps.picture import draw_pareto
from rlalign.sweeps.queue import Queue, alone
from rlalign.terminal import printable

OF_THE_SCORE = re.compile(r"rewards\.[^.]+\.(weight|scale|clip|threshold)|score\..+")
COMMANDS = ("ppo", "dpg", "reinforce", "grpo", "rloo")


def results(queue: Queue, folder: Path) -> tuple[str, bool]:
    """All in words, and whether a trial was done; the files are written into the folder.

    Workers that end together do so one after the other: the files are of one moment.
    """
    with alone(folder / "results.lock"):
        return _results(queue, folder)


def _results(queue: Queue, folder: Path) -> tuple[str, bool]:
    sweep = queue.sweep
    trials = outcomes(sweep, queue.table(), folder)
    winner = best(sweep, trials)
    write_atomically(folder / "trials.csv", as_csv(sweep, trials))
    files = ["trials.csv"]
    start = reference(sweep, trials, folder)
    if draw_pareto(sweep, trials, start, folder / "pareto.png") is not None:
        files.append("pareto.png")
    lines = [table_text(sweep, trials, folder), ""]
    if winner is None:
        lines.append(f"no trial gave a value of {sweep.metric}")
    else:
        lines += _about_best(sweep, trials, winner)
        lines += _about_importances(sweep, queue.importances())
    lines.append(f"{folder}: " + ", ".join(files))
    if winner is not None:
        lines.append(_write_best(winner, sweep, folder))
    return printable("\n".join(lines)), winner is not None


def table_text(sweep: Sweep, trials: Sequence[Outcome], folder: Path) -> str:
    """The trials a line each, the front marked; then why some failed or were stopped."""
    varied = sweep.varied
    has_kl = kl_key(sweep.metric) != sweep.metric
    on_front = {trial.number for trial in front(sweep, trials)} if has_kl else set()
    kl_column = [kl_key(sweep.metric)] if has_kl else []
    rows = [["trial", "state", sweep.metric, *kl_column, *varied, "folder"]]
    for trial in trials:
        told = trial.told
        mark = "*" if trial.number in on_front else ""
        numbers = [_text(trial.score), *([_text(trial.kl)] if has_kl else [])]
        values = [_text(told.values.get(name)) for name in varied]
        rows.append([f"{told.number}{mark}", told.state, *numbers, *values, told.folder])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if on_front:
        lines.append("* no other trial has a better value at no more KL")
    lines += [f"trial {trial.number}: {trial.told.reason}" for trial in trials if trial.told.reason]
    return "\n".join(lines)


def _about_best(sweep: Sweep, trials: Sequence[Outcome], winner: Outcome) -> list[str]:
    values = " ".join(f"{name}={value}" for name, value in winner.told.values.items())
    kl = "" if winner.kl is None else f" at {kl_key(sweep.metric)} {winner.kl}"
    lines = [f"best: trial {winner.number}, {sweep.metric} {winner.score}{kl}", f"  {values}"]
    if near := rivals(trials, winner):
        lines.append(
            f"  within two standard errors of it: trial {', '.join(map(str, near))}; its lead "
            "over them may be chance"
        )
    if changed := _changes_the_metric(sweep):
        lines.append(
            f"  {sweep.metric} is made of {', '.join(changed)}, which the trials do not share: "
            "its values are of different scores; compare one reward, eval/reward/NAME"
        )
    return lines


def _changes_the_metric(sweep: Sweep) -> list[str]:
    """The varied settings that say what the metric is."""
    kind = sweep.metric.removeprefix("eval/")
    if kind not in ("score", "objective"):
        return []
    has_kl = kind == "objective"
    return [n for n in sweep.varied if OF_THE_SCORE.fullmatch(n) or (has_kl and n == "kl.coef")]


def _about_importances(sweep: Sweep, found: Importances | None) -> list[str]:
    if found is None:
        return []
    shares = ", ".join(f"{name} {share:.2f}" for name, share in found.shares.items())
    return [
        f"importance for {sweep.metric}: {shares}",
        f"  ({found.method} over {found.trials} trials; rough while they are few)",
    ]


def _write_best(winner: Outcome, sweep: Sweep, folder: Path) -> str:
    """best.yaml: the best trial's configuration, less where it lay; and how to run it."""
    run = folder / winner.told.folder
    try:
        content: Any = read_yaml((run / "config.yaml").read_text(encoding="utf-8"))
        method = read_json(run / "run.json").get("method")
    except (OSError, ValueError, FileError):
        content = method = None
    if not isinstance(content, dict) or not isinstance(content.get("run"), dict):
        return f"no best.yaml: {run} holds no config.yaml of a run"
    content["run"] = {
        key: value for key, value in content["run"].items() if key not in ("name", "dir", "resume")
    }
    path = folder / "best.yaml"
    command = f"rlalign {method if method in COMMANDS else 'ppo'} --config {path}"
    about = f"# Trial {winner.number} of {folder}: {sweep.metric} {winner.score}\n# {command}\n"
    write_atomically(path, about + dump_yaml(content))
    return f"its configuration: {command}"


def _text(value: object) -> str:
    """A cell of the table; all digits are in trials.csv."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
