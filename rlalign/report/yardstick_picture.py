"""What `rlalign eval` draws: each feature's mean beside the target's, and the distances."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from rlalign.report.plots import BLUE, GRID, INK, ORANGE, clear_spines, save
from rlalign.report.visible import visible
from rlalign.report.yardstick_table import DIVERGENCES, asked

GREY = "#777777"
LOOKS = {"reference": (GREY, "o"), "policy": (BLUE, "o"), "target": (ORANGE, "D")}


def draw_yardstick(content: Mapping[str, Any], path: Path) -> Path:
    """Means with their 95% intervals on the left, divergences to the target on the right."""
    features = content["features"]
    distances = {
        title: content["to_target"][name]
        for name, title in DIVERGENCES.items()
        if content["to_target"][name]["policy"]["value"] is not None
    }
    height = 1.6 + 0.5 * max(len(features), 1.6 * len(distances), 2)
    figure = Figure(figsize=(10 if distances else 6, height), layout="constrained")
    panels = figure.subplots(1, 2 if distances else 1, squeeze=False)[0]
    draw_means(panels[0], features)
    if distances:
        draw_distances(panels[1], distances)
    return save(figure, path)


def draw_means(ax: Axes, features: Mapping[str, Mapping[str, Any]]) -> None:
    """One line a feature: reference, policy and target."""
    rows = list(features.items())
    for row, (_, feature) in enumerate(rows):
        for shift, (of, (color, marker)) in zip((-0.2, 0.0, 0.2), LOOKS.items(), strict=True):
            point(ax, feature[of], row + shift, color, marker, of if row == 0 else "")
    label(ax, [f"{visible(name)}\n{asked(feature)}" for name, feature in rows])
    ax.set_title("Mean of each reward, 95% interval", loc="left", fontsize=11, color=INK)
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.12))


def draw_distances(ax: Axes, distances: Mapping[str, Mapping[str, Any]]) -> None:
    """Of the reference and of the policy, on a logarithmic scale."""
    for row, both in enumerate(distances.values()):
        for shift, of in ((-0.12, "reference"), (0.12, "policy")):
            color, marker = LOOKS[of]
            point(ax, both[of], row + shift, color, marker, of if row == 0 else "")
    label(ax, list(distances))
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_title("Distance to the target", loc="left", fontsize=11, color=INK)


def point(
    ax: Axes, estimate: Mapping[str, Any], y: float, color: str, marker: str, name: str
) -> None:
    """A mean with its interval, where there is one."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return
    bars = None if low is None else [[value - low], [high - value]]
    ax.errorbar(
        [value], [y], xerr=bars, fmt=marker, ms=5, color=color, ecolor=color, elinewidth=1.4,
        capsize=2.5, label=name or None,
    )  # fmt: skip


def label(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=9, color=INK, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="x", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=0)
    clear_spines(ax)
