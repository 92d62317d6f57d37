"""Seconds of an iteration as stacked bars, a bar a system, ours with its floor."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.settings import OURS
from benchmarks.tables import PHASES, Row, groups, middle, number

COLOURS = {"generation": "#4477aa", "scoring": "#ccbb44", "update": "#228833", "gc": "#bbbbbb"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each setting of the systems table; nothing where there is no row."""
    panels = groups([row for row in rows if row["iterations"]], lambda r: r["name"])
    if not panels:
        return
    height = 0.6 + sum(0.45 * len(group) + 0.75 for group in panels.values())
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, height), dpi=110, squeeze=False, sharex=True,
        height_ratios=[len(group) for group in panels.values()],
    )  # fmt: skip
    for axis, (name, group) in zip(axes[:, 0], panels.items(), strict=True):
        panel(axis, name, group)
    axes[-1, 0].set_xlabel("seconds an iteration (median)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown.keys(), loc="upper right", ncols=len(shown), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / height))
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)


def panel(axis: Axes, name: str, group: Sequence[Row]) -> None:
    labels = []
    for y, row in enumerate(group):
        system, left = row["setting"]["system"], 0.0
        labels.append(f"{system} (again)" if system == OURS and row["repeat"] else system)
        for phase in (*PHASES, "gc"):
            width = middle(row, phase)
            if width or phase != "gc":
                label = "gc.collect" if phase == "gc" else phase
                axis.barh(y, width, left=left, color=COLOURS[phase], height=0.7, label=label)
            left += width
        axis.annotate(f" {number(left)} s", (left, y), va="center", fontsize=9)
        if row.get("floors"):
            floor = row["floors"]["total"]
            axis.plot([floor] * 2, [y - 0.42, y + 0.42], color="black", linewidth=2, label="floor")
    axis.set_yticks(range(len(group)), labels)
    axis.invert_yaxis()
    axis.set_title(name, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.12)
