"""report.png: reliability diagram, ROC curves and confusion of a classifier on held-out texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator

from rlalign.report.plots import BLUE, COLORS, DPI, GRID, INK
from rlalign.reward_training.measure import BINS, Floats, wilson

CURVES = len(COLORS)  # labels that get a ROC curve of their own
CELLS = 12  # labels up to which the confusion shows its counts
LONGEST = 14  # characters of a label that are shown


def draw(report: Mapping[str, Any], truth: Sequence[str], probabilities: Floats, to: Path) -> Path:
    """The picture of a report; `truth` and `probabilities` (N, L) are of the held-out texts."""
    labels = list(report["labels"])
    padding = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1)
    figure = Figure(figsize=(14, 4.8), layout=padding)
    left, middle, right = figure.subplots(1, 3)
    draw_reliability(left, report)
    draw_roc(middle, labels, np.array([labels.index(t) for t in truth]), probabilities)
    draw_confusion(right, labels, np.array(report["confusion"]))
    held_out, speed = report["held_out"], report["speed"]["texts_per_second"]
    figure.suptitle(
        f"{report['kind']} classifier ({report['method']}) on {held_out['texts']} held-out texts: "
        f"accuracy {held_out['accuracy']:.3f}, "
        f"macro-F1 {held_out['macro_f1']:.3f}, AUC {held_out['auc']:.3f}; {speed:,.0f} texts/s",
        color=INK,
        fontsize=12,
    )
    FigureCanvasAgg(figure)
    figure.savefig(to, dpi=DPI, facecolor="white")
    return to


def draw_reliability(ax: Axes, report: Mapping[str, Any]) -> None:
    """How often the predicted label is right, by its probability; below, how many texts."""
    bins = report["reliability"]
    x = np.array([one["confidence"] for one in bins])
    y = np.array([one["share"] for one in bins])
    n = np.array([one["count"] for one in bins])
    middles = [one["low"] + 0.5 / BINS for one in bins]
    counts = ax.twinx()
    counts.bar(middles, n, width=0.9 / BINS, color=GRID, zorder=0)
    counts.set_ylim(0, 4 * max(n))
    counts.set_axis_off()
    ax.set_zorder(counts.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.plot([0, 1], [0, 1], color="#777777", lw=1, ls=":", label="perfectly calibrated")
    low, high = wilson(y, n)
    ax.errorbar(
        x, y, yerr=[y - low, high - y], fmt="o-", ms=5, lw=1.8, color=BLUE, mfc="white", mew=1.5,
        elinewidth=1.2, capsize=2.5, label="held-out texts, 95% interval", zorder=3, clip_on=False,
    )  # fmt: skip
    for middle, count in zip(middles, n, strict=True):
        ax.annotate(f"{count}", (middle, 0.01), ha="center", fontsize=7.5, color="#777777")
    numbers = report["held_out"]
    title = f"Calibration: ECE {numbers['ece']:.3f}, Brier {numbers['brier']:.3f}"
    _dress(ax, title, "probability of the predicted label", "share of these that are right")
    # Below the axes: intervals of few texts leave no place inside.
    ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def draw_roc(ax: Axes, labels: Sequence[str], truth: Floats, probabilities: Floats) -> None:
    """A curve a label against the rest; of two labels one, as the other is its mirror image."""
    from sklearn.metrics import roc_auc_score, roc_curve

    chosen = [1] if len(labels) == 2 else range(min(len(labels), CURVES))
    ax.plot([0, 1], [0, 1], color="#777777", lw=1, ls=":")
    for place, column in enumerate(chosen):
        is_label = truth == column
        false, true, _ = roc_curve(is_label, probabilities[:, column])
        area = roc_auc_score(is_label, probabilities[:, column])
        name = f"{_short(labels[column])}: {area:.3f}".replace("$", r"\$")
        ax.plot(false, true, color=COLORS[place], lw=1.8, label=name, clip_on=False)
    title = "ROC and its area"
    if len(labels) > CURVES:
        title += f", the first {CURVES} of {len(labels)} labels"
    _dress(ax, title, "share of other texts taken for it", "share of its texts found")
    ax.legend(frameon=False, fontsize=8, loc="lower right")


def draw_confusion(ax: Axes, labels: Sequence[str], counts: Any) -> None:
    """Rows are the truth, columns the prediction; the colour is the share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_short(label).replace("$", r"\$") for label in labels]
    if len(labels) <= CELLS:
        for row, column in np.ndindex(*counts.shape):
            color = "white" if shares[row, column] > 0.5 else INK
            ax.text(
                column, row, str(counts[row, column]), ha="center", va="center",
                color=color, fontsize=9,
            )  # fmt: skip
    every = max(1, len(labels) // 20)
    places = list(range(0, len(labels), every))
    turn = 0 if len(labels) <= 4 else 45
    ax.set_xticks(
        places, [names[i] for i in places], rotation=turn, ha="right" if turn else "center"
    )
    ax.set_yticks(places, [names[i] for i in places])
    ax.tick_params(colors=INK, length=0, labelsize=8)
    ax.set_title("Confusion, texts", loc="left", fontsize=11, color=INK)
    ax.set_xlabel("predicted", color=INK)
    ax.set_ylabel("label in the data", color=INK)
    for side in ax.spines.values():
        side.set_visible(False)


def _dress(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    ax.set_title(title, loc="left", fontsize=11, color=INK)
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ticks = FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1])
    ax.xaxis.set_major_locator(ticks)
    ax.yaxis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1]))
    ax.grid(axis="y", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=0)
    ax.set_box_aspect(1)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#999999")


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
