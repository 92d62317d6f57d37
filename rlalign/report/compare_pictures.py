"""The pictures of `rlalign compare`: what was asked for against KL.

They are PNG within the page. No text of a run is drawn: names stand in the HTML around them, where
they are escaped.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlalign.report.compare_readings import (
    UNKNOWN,
    WATCHED,
    Estimate,
    Run,
    all_features,
    mean,
    settings,
)
from rlalign.report.plots import COLORS, GRID, INK, clear_spines, running_mean, series
from rlalign.yardstick.estimators import Z_95

GREY = "#888888"
SIGNS = {"●": "o", "■": "s", "◆": "D", "▲": "^", "▼": "v"}  # in HTML -> in matplotlib


@dataclass(frozen=True)
class Look:
    ink: str
    grid: str
    paper: str


LIGHT = Look(INK, GRID, "#ffffff")
DARK = Look("#dddddd", "#33363d", "#16181c")


@dataclass(frozen=True)
class Panel:
    title: str
    light: str  # addresses of the two images, within the page
    dark: str


def frontier(runs: Sequence[Run]) -> Iterator[Panel]:
    """The score, where it means the same all along, and each feature with a wish or a weight.

    With moments the score moves with their lambda; with anything hard that of the training is of
    0 and 1 and that of `rlalign eval` a smoothed log-potential, so neither has a panel of a score.
    """
    asked = {n: f for n, f in all_features(runs).items() if f["role"] not in WATCHED}
    titles = {f"reward/{name}": f"mean of {name} ({f['role']})" for name, f in asked.items()}
    if all(feature["role"] == "weight" for feature in asked.values()):
        titles = {"score": "score, the weighted sum of rewards", **titles}
    for key, title in titles.items():
        wish = wished(asked.get(key.removeprefix("reward/")))
        yield Panel(title, *(png(panel(runs, key, wish, look), look) for look in (LIGHT, DARK)))


def wished(feature: Mapping[str, Any] | None) -> Sequence[float]:
    """Where the dotted lines are."""
    if feature is None:
        return []
    return feature["wish"] or ([1.0] if feature["role"] == "hard" else [])


def sign(index: int) -> tuple[str, str]:
    """Colour and sign of a run; 35 runs before one comes again."""
    return COLORS[index % len(COLORS)], list(SIGNS)[index % len(SIGNS)]


def panel(runs: Sequence[Run], key: str, wish: Sequence[float], look: Look) -> Figure:
    """`key` of the metrics against KL: each run's way there, and where it ended."""
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    ax = figure.add_subplot()
    for run in settings(runs):
        point(ax, {**UNKNOWN, "value": 0.0}, final(run, "reference", key), GREY, "o")
    for index, run in enumerate(runs):
        color, shape = sign(index)
        if not is_shaped(run, key):
            draw_way(ax, run, key, color)
        kl = run.content["to_reference"]["kl_policy_reference"]
        point(ax, kl, final(run, "policy", key), color, SIGNS[shape])
    for end in wish:
        ax.axhline(end, color=look.ink, lw=0.9, ls=":")
    if ax.dataLim.x1 < 1e-6:  # nothing left the reference
        ax.set_xlim(-0.05, 1.0)
    dress(ax, look)
    return figure


def draw_way(ax: Axes, run: Run, key: str, color: str) -> None:
    """Of the training a thin line, smoothed; of the held-out prompts small open circles."""
    x, y = way(run, "kl/ref", key)
    if len(x):
        width = max(len(x) // 15, 1)
        ax.plot(running_mean(x, width), running_mean(y, width), color=color, lw=1.0, alpha=0.55)
    line = "none" if len(x) else "-"
    x, y = way(run, "eval/kl", f"eval/{key}")
    ax.plot(x, y, color=color, ls=line, lw=1.0, marker="o", ms=3.5, mfc="none", mew=0.9, alpha=0.8)


def is_shaped(run: Run, key: str) -> bool:
    """Whether what a run logs under `key` is the value before scale, clip and threshold."""
    feature = run.content["features"].get(key.removeprefix("reward/"), {})
    return bool(feature.get("shaped", False))


def way(run: Run, kl: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Both metrics, of the iterations that have both."""
    steps, nats = series(run.metrics, kl)
    at = dict(zip(steps.tolist(), nats.tolist(), strict=True))
    steps, values = series(run.metrics, key)
    points = [(at[s], v) for s, v in zip(steps.tolist(), values.tolist(), strict=True) if s in at]
    x, y = np.array(points).T if points else (np.empty(0), np.empty(0))
    return x, y


def final(run: Run, of: str, key: str) -> Estimate:
    """What `rlalign eval` measured of the policy or its reference."""
    if key != "score":
        return mean(run, key.removeprefix("reward/"), of)
    value, se = (run.content[of].get(name) for name in ("eval/score", "eval/score_se"))
    if value is None or se is None:
        return {**UNKNOWN, "value": value}
    return {"value": value, "low": value - Z_95 * se, "high": value + Z_95 * se}


def point(ax: Axes, x: Estimate, y: Estimate, color: str, marker: str) -> None:
    """A point with its 95% intervals, where it is known."""
    if x["value"] is None or y["value"] is None:
        return
    ax.errorbar(
        [x["value"]], [y["value"]], xerr=bars(x), yerr=bars(y), fmt=marker, color=color,
        ms=6, elinewidth=1.3, capsize=2.5, zorder=3,
    )  # fmt: skip


def bars(estimate: Estimate) -> list[list[float]] | None:
    """What matplotlib draws of a 95% interval."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    return None if low is None else [[max(value - low, 0.0)], [max(high - value, 0.0)]]


def dress(ax: Axes, look: Look) -> None:
    ax.set_xlabel("KL(π‖a), nats a response", fontsize=9, color=look.ink)
    ax.grid(color=look.grid, lw=0.8)
    ax.set_axisbelow(True)
    ax.set_facecolor(look.paper)
    ax.tick_params(colors=look.ink, length=0, labelsize=8)
    clear_spines(ax)


def png(figure: Figure, look: Look) -> str:
    """The figure as the address of an image within a page."""
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, facecolor=look.paper)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
