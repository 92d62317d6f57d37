"""What a sweep's trials came to: each one's numbers, who is on the front, who is best."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlalign.sweeps.file import Sweep
from rlalign.sweeps.metrics import is_number, read_rows
from rlalign.sweeps.queue import Told

DIGITS = 4  # after the point, at most
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the start of one


@dataclass(frozen=True)
class Measured:
    """A number and its standard error, where there is one."""

    value: float
    se: float | None = None

    def __str__(self) -> str:
        if not self.se:
            return f"{self.value:.4g}"
        digits = min(max(1 - math.floor(math.log10(self.se)), 0), DIGITS)
        return f"{self.value:.{digits}f} ± {self.se:.{digits}f}"


@dataclass(frozen=True)
class Outcome:
    """A trial, with what its metrics.jsonl says last."""

    told: Told
    score: Measured | None  # the sweep's metric
    kl: Measured | None

    @property
    def number(self) -> int:
        return self.told.number

    @property
    def is_done(self) -> bool:
        return self.told.state == "done" and self.score is not None


def kl_key(metric: str) -> str:
    """The KL to the reference that was measured on the metric's responses."""
    return "eval/kl" if metric.startswith("eval/") else "kl/ref"


def outcomes(sweep: Sweep, table: Sequence[Told], folder: Path) -> list[Outcome]:
    """The table with each trial's last numbers; a trial that was repeated has none of its own."""
    found = []
    last = {told.folder: told.number for told in table}
    for told in table:
        score = kl = None
        if told.folder and last[told.folder] == told.number:
            rows = read_rows(folder / told.folder / "metrics.jsonl")
            score, kl = _last(rows, sweep.metric), _last(rows, kl_key(sweep.metric))
        if told.value is not None:
            score = Measured(told.value, None if score is None else score.se)
        found.append(Outcome(told, score, kl))
    return found


def _last(rows: Sequence[dict[str, object]], key: str) -> Measured | None:
    for row in reversed(rows):
        value, se = row.get(key), row.get(f"{key}_se")
        if is_number(value):
            return Measured(float(value), float(se) if is_number(se) else None)
    return None


def reference(sweep: Sweep, trials: Sequence[Outcome], folder: Path) -> Measured | None:
    """The metric of the untrained model, where an evaluation at KL 0 began a run."""
    for trial in trials:
        for row in read_rows(folder / trial.told.folder / "metrics.jsonl")[:1]:
            if row.get(kl_key(sweep.metric)) == 0 and is_number(row.get(sweep.metric)):
                return _last([row], sweep.metric)
    return None


def best(sweep: Sweep, trials: Sequence[Outcome]) -> Outcome | None:
    """The one of the best value among those that ran to their end."""
    done = [trial for trial in trials if trial.is_done]
    sign = 1 if sweep.goal == "maximize" else -1
    return max(done, key=lambda trial: sign * _value(trial), default=None)


def rivals(trials: Sequence[Outcome], winner: Outcome) -> list[int]:
    """The trials whose value is within two standard errors of the difference from the best's."""
    if winner.score is None or winner.score.se is None:
        return []
    return [
        trial.number
        for trial in trials
        if trial.is_done
        and trial is not winner
        and trial.score is not None
        and trial.score.se is not None
        and abs(trial.score.value - winner.score.value)
        <= 2 * math.hypot(trial.score.se, winner.score.se)
    ]


def front(sweep: Sweep, trials: Sequence[Outcome]) -> list[Outcome]:
    """The trials to which no other is better in the metric at no more KL, by rising KL."""
    sign = 1 if sweep.goal == "maximize" else -1
    done = [trial for trial in trials if trial.is_done and trial.kl is not None]
    done.sort(key=lambda trial: (_kl(trial), -sign * _value(trial)))
    found: list[Outcome] = []
    for trial in done:
        if not found or sign * _value(trial) > sign * _value(found[-1]):
            found.append(trial)
    return found


def as_csv(sweep: Sweep, trials: Sequence[Outcome]) -> str:
    """The points of the picture, and every other trial, a line each."""
    on_front = {trial.number for trial in front(sweep, trials)}
    key = kl_key(sweep.metric)
    numbers = [sweep.metric, f"{sweep.metric}_se", key, f"{key}_se"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, ["trial", "state", *numbers, "front", *sweep.parameters]))
    for trial in trials:
        measured = [*_cells(trial.score), *_cells(trial.kl), int(trial.number in on_front)]
        values = [trial.told.values.get(name, "") for name in sweep.parameters]
        writer.writerow(map(_cell, [trial.number, trial.told.state, *measured, *values]))
    return text.getvalue()


def _cell(value: Any) -> Any:
    """What a spreadsheet shows as it is: a text that would be a formula there gets a ' before it.

    A sweep file may be somebody else's.
    """
    text = value if value is None or isinstance(value, int | float) else str(value)
    return f"'{text}" if isinstance(text, str) and text.startswith(FORMULA) else text


def _cells(number: Measured | None) -> list[float | None]:
    return [None, None] if number is None else [number.value, number.se]


def _value(trial: Outcome) -> float:
    assert trial.score is not None
    return trial.score.value


def _kl(trial: Outcome) -> float:
    assert trial.kl is not None
    return trial.kl.value
