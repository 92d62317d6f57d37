"""The numbers behind a report's charts, as JSON for the script that draws them."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rlalign.report.changes import Change, Mean
from rlalign.report.page.record import RunRecord, as_number
from rlalign.report.plots import reward_names, series

MANY, LEAST = 400, 40  # points of a line: a screen shows no more; many runs have fewer each
ALL = 4000  # points of a panel
BINS = 20
FEW = 12  # different values that are each a bar of their own
THINNEST = 50  # of such bars, side by side, would still be seen
Z_95 = 1.959964
Point = list[float | None]
PLAIN = {
    "score": ("score", "weighted sum of rewards"),
    "kl/ref": ("KL to the reference", "nats a response"),
}
MORE = {
    "length": ("response length", "tokens"),
    "finished": ("share that ends by itself", ""),
    "entropy": ("entropy", "nats a token"),
    "audit/distinct2": ("distinct-2 of a batch", ""),
    "kl/coef": ("price of KL, β", "score a nat"),
    "tokens_per_second": ("speed", "tokens a second"),
}
HELD_OUT = {"kl/ref": "eval/kl"}
STEADY = {"kl/coef", "finished", "audit/distinct2"}  # shown where they move at all


def points_a_line(runs: int) -> int:
    return min(max(ALL // runs, LEAST), MANY)


def curves(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """A panel for each metric that some run has: the training's line, the evaluations' points."""
    most = points_a_line(len(records))
    names = dict.fromkeys(name for record in records for name in reward_names(record.metrics))
    titles = PLAIN | {f"reward/{name}": (name, "mean") for name in names} | MORE
    panels = []
    for key, (title, unit) in titles.items():
        runs: list[dict[str, Any]] = [
            {"run": i, "train": line(record, key, most), "held": held_out(record, key)}
            for i, record in enumerate(records)
        ]
        values = {p[1] for run in runs for of in ("train", "held") for p in run[of]}
        if values and not (key in STEADY and len(values) == 1):
            panels.append({"key": key, "title": title, "unit": unit, "runs": runs})
    return panels


def line(record: RunRecord, key: str, most: int) -> list[Point]:
    """[iteration, value], the score's with 95% intervals; neighbours averaged where many."""
    x, y = series(record.metrics, key)
    points = np.stack([x, y], 1) if len(x) else np.empty((0, 2))
    if len(points) > most:
        points = np.array([part.mean(0) for part in np.array_split(points, most)])
    elif key == "score":
        half = {row["iteration"]: Z_95 * error_of(record, row) for row in record.metrics}
        return [rounded([a, b, b - half[a], b + half[a]]) for a, b in points.tolist()]
    return [rounded(point) for point in points.tolist()]


def error_of(record: RunRecord, row: Mapping[str, Any]) -> float:
    """The standard error of an iteration's mean score; 0 where it is not known."""
    spread = as_number(row.get("score/std"))
    samples = as_number(record.setting("train.samples"))
    return spread / math.sqrt(samples) if spread and samples and samples > 0 else 0.0


def held_out(record: RunRecord, key: str) -> list[Point]:
    """The same of the evaluations."""
    name = HELD_OUT.get(key, f"eval/{key}")
    x, y = series(record.metrics, name)
    errors = {r["iteration"]: as_number(r.get(f"{name}_se")) for r in record.metrics if name in r}
    points = []
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        half = None if errors[a] is None else Z_95 * (errors[a] or 0.0)
        points.append(rounded([a, b, *([b - half, b + half] if half is not None else ())]))
    return points


def frontiers(
    records: Sequence[RunRecord], changes: Sequence[Sequence[Change]]
) -> list[dict[str, Any]]:
    """Score and each reward against the KL: the way there, and both ends with their intervals."""
    names = dict.fromkeys(name for record in records for name in reward_names(record.metrics))
    keys = {"score": "score"} | {f"reward/{name}": name for name in names}
    most = points_a_line(len(records))
    panels = []
    for key, title in keys.items():
        runs = [
            {
                "run": i,
                "way": joined(record, "kl/ref", key, most),
                "held": joined(record, "eval/kl", f"eval/{key}", most),
                "ends": ends(of_run, title, key == "score"),
            }
            for i, (record, of_run) in enumerate(zip(records, changes, strict=True))
        ]
        if any(run["way"] or run["held"] for run in runs):
            panels.append({"title": title, "runs": runs})
    return panels


def joined(record: RunRecord, x_key: str, y_key: str, most: int) -> list[Point]:
    """[x, y] of the iterations that have both, in their order."""
    steps, nats = series(record.metrics, x_key)
    at = dict(zip(steps.tolist(), nats.tolist(), strict=True))
    steps, values = series(record.metrics, y_key)
    points = [[at[s], v] for s, v in zip(steps.tolist(), values.tolist(), strict=True) if s in at]
    if len(points) > most:
        points = [part.mean(0).tolist() for part in np.array_split(np.array(points), most)]
    return [rounded(point) for point in points]


def ends(changes: Sequence[Change], name: str, is_score: bool) -> list[dict[str, Any]]:
    """Where a run began and ended: value and interval of KL and reward."""
    if len(changes) < 2:
        return []
    _, kl, *rewards = changes
    found = changes[0] if is_score else next((c for c in rewards if c.name == name), None)
    if found is None or found.after is None or kl.after is None:
        return []
    at = [(kl.before, found.before), (kl.after, found.after)]
    return [{"x": interval(x), "y": interval(y)} for x, y in at if x is not None and y is not None]


def interval(mean: Mean) -> Point:
    return rounded([mean.value, mean.low, mean.high])


def histograms(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """How score, KL, length and each reward are spread, before and after."""
    names = dict.fromkeys(
        n for r in records for row in [*r.before, *r.after] for n in row["rewards"]
    )
    titles = {"score": "score", "length": "length, tokens", "kl": "KL, nats"}
    panels = []
    for key, title in [*titles.items(), *((None, name) for name in names)]:
        # The reference's own KL is 0 by its nature, and no spread.
        sources = [] if key == "kl" else [(-1, records[0].before)]
        sources += [(i, record.after) for i, record in enumerate(records)]
        found = [(run, values_of(rows, key, title)) for run, rows in sources]
        shown = [(run, values) for run, values in found if values]
        if len({value for _, values in shown for value in values}) > 1:
            panels.append({"title": title, **binned(shown)})
    return panels


def values_of(rows: Sequence[Mapping[str, Any]], key: str | None, name: str) -> list[float]:
    values = [row[key] if key else row["rewards"].get(name) for row in rows]
    return [float(value) for value in values if value is not None]


def binned(shown: Sequence[tuple[int, list[float]]]) -> dict[str, Any]:
    """Shares by bin; of few different values each has a bar of its own."""
    # Equal but for the noise of float32 is equal, here and on a screen.
    shown = [(run, [float(f"{value:.6g}") for value in values]) for run, values in shown]
    different = sorted({value for _, values in shown for value in values})
    gap = min(np.diff(different), default=0.0)
    few = len(different) <= FEW and gap >= (different[-1] - different[0]) / THINNEST
    if few:
        middles = np.array(different)
        edges = [[float(x - gap / 2.5), float(x + gap / 2.5)] for x in middles]
        counts = {run: [values.count(x) for x in different] for run, values in shown}
    else:
        cuts = np.histogram_bin_edges(different, BINS)
        edges = [[float(a), float(b)] for a, b in pairwise(cuts)]
        counts = {run: np.histogram(values, cuts)[0].tolist() for run, values in shown}
    return {
        "edges": [rounded(edge) for edge in edges],
        **({"values": rounded(different)} if few else {}),
        "series": [
            {"run": run, "shares": rounded([n / max(sum(of_run), 1) for n in of_run])}
            for run, of_run in counts.items()
        ],
    }


def rounded(values: Sequence[float | None]) -> Point:
    """To six digits, which a screen does not tell apart."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.6g}") for v in values]
