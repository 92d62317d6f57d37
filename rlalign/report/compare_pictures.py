"""The pictures of `rlalign compare`, as PNG within the page: the frontier, and the distances."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlalign.report.plots import COLORS, GRID, INK, clear_spines, running_mean, series
from rlalign.report.visible import visible

GREY = "#777777"


class Run(Protocol):
    """What the page knows of a run."""

    @property
    def label(self) -> str: ...
    @property
    def content(self) -> Mapping[str, Any]: ...
    @property
    def samples(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def metrics(self) -> Sequence[Mapping[str, Any]]: ...


def frontier(runs: Sequence[Run]) -> str:
    """What was asked for against KL to the reference: each run's way there, and where it ended.

    A panel for each feature with a wish or a weight: the score itself moves with lambda where a
    target has moments.
    """
    content = runs[0].content
    asked = [n for n, f in content["features"].items() if f["role"] not in ("judge", "metric")]
    columns = min(max(len(asked), 1), 3)
    lines = -(-max(len(asked), 1) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax, name in zip(panels, asked, strict=False):
        draw_panel(ax, name, runs)
    for ax in panels[len(asked) :]:
        ax.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return png(figure)


def draw_panel(ax: Axes, name: str, runs: Sequence[Run]) -> None:
    """One feature's mean over the run against its KL."""
    feature = runs[0].content["features"][name]
    before = feature["reference"]
    ax.errorbar([0.0], [before["value"]], yerr=bars(before), fmt="o", color=GREY, ms=5,
                label="reference")  # fmt: skip
    for index, run in enumerate(runs):
        color = COLORS[index % len(COLORS)]
        kl, mean = run.content["to_reference"]["kl_policy_reference"], None
        steps = dict(zip(*(each.tolist() for each in series(run.metrics, "kl/ref")), strict=True))
        values = zip(*(x.tolist() for x in series(run.metrics, f"reward/{name}")), strict=True)
        way = [(steps[step], value) for step, value in values if step in steps]
        if way:
            points, width = np.array(way), max(len(way) // 15, 1)
            x, y = (running_mean(column, width) for column in points.T)
            ax.plot(x, y, color=color, lw=1.0, alpha=0.6)
        if name in run.content["features"]:
            mean = run.content["features"][name]["policy"]
        if mean is not None and mean["value"] is not None:
            ax.errorbar(
                [kl["value"]], [mean["value"]], xerr=bars(kl), yerr=bars(mean), fmt="o",
                color=color, ms=6, capsize=2.5, label=visible(run.label), zorder=3,
            )  # fmt: skip
    for end in feature["wish"] or ([1.0] if feature["role"] == "hard" else []):
        ax.axhline(end, color=INK, lw=0.9, ls=":")
    ax.set_title(visible(name), loc="left", fontsize=10, color=INK, parse_math=False)
    ax.set_xlabel("KL(π‖a), nats a response", fontsize=9, color=INK)
    ax.set_ylabel("mean", fontsize=9, color=INK)
    ax.grid(color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=0, labelsize=8)
    clear_spines(ax)


def bars(estimate: Mapping[str, Any]) -> list[list[float]] | None:
    """What matplotlib draws of a 95% interval."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    return None if value is None or low is None else [[value - low], [high - value]]


def png(figure: Figure) -> str:
    """The figure as the address of an image within a page."""
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, facecolor="white")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
