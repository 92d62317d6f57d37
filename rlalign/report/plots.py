"""Pictures of a run, drawn from its metrics.jsonl: score, KL, rewards, lengths, speed, overview."""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

Rows = Sequence[Mapping[str, Any]]
Place = Literal["best", "lower right"]
Draw = Callable[[Axes, Rows], None]

# Okabe and Ito's colours, which stay apart for colour-blind readers.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
COLORS = (BLUE, RED, GREEN, PURPLE, ORANGE, "#56B4E9", "#666666")
PHASES = {"generate": BLUE, "score": ORANGE, "prepare": GREEN, "update": RED}
INK, GRID = "#333333", "#e6e6e6"
DPI = 150
MANY = 80  # more points than this are smoothed


def draw_plots(metrics_jsonl: Path, out: Path) -> list[Path]:
    """PNG files in `out`, one for each kind of metric that the run has, and overview.png."""
    rows = read_metrics(metrics_jsonl)
    rewards = reward_names(rows)
    singles: dict[str, Draw] = {
        "score": draw_score,
        "kl": draw_kl,
        "lengths": draw_lengths,
    }
    keys = {"score": "score", "kl": "kl/ref", "lengths": "length"}
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in singles.items():
        if len(series(rows, keys[name])[0]):
            figure = Figure(figsize=(7, 4.2), layout="constrained")
            draw(figure.add_subplot(), rows)
            written.append(save(figure, out / f"{name}.png"))
    if rewards:
        written.append(save(_rewards_figure(rows, rewards), out / "rewards.png"))
    if len(series(rows, "tokens_per_second")[0]):
        figure = Figure(figsize=(7, 6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        draw_speed(upper, rows)
        draw_phases(lower, rows)
        upper.set_xlabel("")
        written.append(save(figure, out / "speed.png"))
    if written:
        written.append(save(_overview(rows, rewards), out / "overview.png"))
    return written


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a half-written last one is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("iteration"), int | float):
            rows.append(row)
    return rows


def reward_names(rows: Rows) -> list[str]:
    """The rewards that the run reports, in the order in which they come."""
    names: dict[str, None] = {}
    for row in rows:
        for key in row:
            area, _, name = key.partition("/")
            name, _, about = name.partition("/")
            if area == "reward" and about in ("", "valid"):  # it may have had no value yet
                names.setdefault(name)
    return list(names)


def series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of a metric, where it is a number."""
    points = [
        (row["iteration"], row[key])
        for row in rows
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]
    x, y = zip(*points, strict=True) if points else ((), ())
    return np.asarray(x, float), np.asarray(y, float)


def draw_score(ax: Axes, rows: Rows) -> None:
    """Mean score in training with its standard error, and on the held-out prompts."""
    x, y = series(rows, "score")
    _line(ax, x, y, BLUE)
    errors = {row["iteration"]: _standard_error(row) for row in rows}
    band = np.array([errors[step] for step in x])
    if len(x) <= MANY:
        ax.fill_between(x, y - band, y + band, color=BLUE, alpha=0.18, lw=0)
    _held_out(ax, rows, "eval/score", "eval/score_se", BLUE)
    _dress(ax, "Score, ±1 standard error", "weighted sum of rewards")
    _legend(ax)


def draw_kl(ax: Axes, rows: Rows) -> None:
    """KL to the reference; the coefficient on its own axis where it moves."""
    x, y = series(rows, "kl/ref")
    _line(ax, x, y, RED)
    _held_out(ax, rows, "eval/kl", "eval/kl_se", RED)
    ends = [
        r["eval/kl"] - (r.get("eval/kl_se") or 0.0) for r in rows if r.get("eval/kl") is not None
    ]
    ax.set_ylim(bottom=min([0.0, *y.tolist(), *ends]))  # an error bar is not cut by the axis
    steps, coef = series(rows, "kl/coef")
    title = "KL to the reference"
    if len(coef) and np.ptp(coef) > 1e-12:
        right = ax.twinx()
        right.plot(steps, coef, color="#777777", lw=1.2, ls="--")
        right.set_ylabel("coefficient β (dashed)", color="#777777")
        right.tick_params(colors="#777777", length=0)
        right.set_ylim(0, float(coef.max()) * 1.1)
        clear_spines(right)
        ax.plot([], [], color="#777777", lw=1.2, ls="--", label="coefficient β, right")
    elif len(coef):
        title += f", β = {coef[-1]:.3g}"
    _dress(ax, title, "nats per response")
    _legend(ax, place="lower right")


def draw_lengths(ax: Axes, rows: Rows) -> None:
    """Mean response length."""
    x, y = series(rows, "length")
    _line(ax, x, y, GREEN)
    _held_out(ax, rows, "eval/length", None, GREEN)
    low, high = ax.get_ylim()
    if high - low < 4:  # a change of a tenth of a token is no landslide
        middle = (low + high) / 2
        ax.set_ylim(max(0.0, middle - 2), middle + 2)
    _dress(ax, "Response length", "tokens, EOS included")
    _legend(ax)


def draw_speed(ax: Axes, rows: Rows) -> None:
    """Tokens a second over the whole iteration."""
    x, y = series(rows, "tokens_per_second")
    _line(ax, x, y, PURPLE)
    if len(y):
        ax.axhline(float(np.median(y)), color="#777777", lw=1, ls=":")
        ax.set_ylim(0, float(y.max()) * 1.15)
    _dress(ax, f"Speed, median {np.median(y):,.0f} tokens/s" if len(y) else "Speed", "tokens/s")


def draw_phases(ax: Axes, rows: Rows) -> None:
    """Seconds of each iteration by phase, stacked."""
    steps = series(rows, "time/total")[0]
    by_step = {row["iteration"]: row for row in rows}
    named = {
        phase: np.array([by_step[step].get(f"time/{phase}") or 0.0 for step in steps])
        for phase in PHASES
    }
    total = np.array([by_step[step]["time/total"] for step in steps])
    rest = np.maximum(total - sum(named.values()), 0.0)
    if len(steps):
        layers = [*named.values(), rest]
        colors = [*PHASES.values(), "#bbbbbb"]
        labels = [*PHASES, "other"]
        # Steps rather than slopes: an iteration's seconds are its own.
        edges = np.append(steps, steps[-1] + 1) - 0.5
        wide = [np.append(layer, layer[-1]) for layer in layers]
        ax.stackplot(edges, *wide, colors=colors, labels=labels, alpha=0.85, lw=0, step="post")
        ax.set_xlim(edges[0], edges[-1])
        ax.set_ylim(0, float(total.max()) * 1.3)
    _dress(ax, "Time by phase", "s per iteration")
    _legend(ax, columns=3)


def _draw_reward(ax: Axes, rows: Rows, name: str, color: str) -> None:
    x, y = series(rows, f"reward/{name}")
    _line(ax, x, y, color)
    _held_out(ax, rows, f"eval/reward/{name}", None, color)
    _dress(ax, name, "mean reward")


def _draw_all_rewards(ax: Axes, rows: Rows, names: Sequence[str]) -> None:
    """Rewards live on scales of their own, so each is shown as a change in its own spread."""
    for index, name in enumerate(names):
        x, y = series(rows, f"reward/{name}")
        if len(y):
            span = float(np.ptp(y)) or 1.0
            low = float(y.min())
            held_out = series(rows, f"eval/reward/{name}")[1]
            ends = held_out if len(held_out) > 1 else y
            label = f"{_short(name)}: {ends[0]:.3g} → {ends[-1]:.3g}"
            color = COLORS[index % len(COLORS)]
            if len(y) > MANY:
                y = running_mean(y, len(y) // 30)
            ax.plot(x, (y - low) / span, color=color, lw=1.5, label=label.replace("$", r"\$"))
    _dress(ax, "Rewards, each from its least to its most", "share of its own range")
    if ax.lines:  # below the axes: lines that fill them leave no place inside
        ax.legend(
            frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2)
        )


def _rewards_figure(rows: Rows, names: Sequence[str]) -> Figure:
    columns = 1 if len(names) == 1 else 2 if len(names) < 7 else 3
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(7 if columns < 3 else 10, 0.8 + 2.4 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, squeeze=False)
    for index, (ax, name) in enumerate(zip(grid.flat, names, strict=False)):
        _draw_reward(ax, rows, name, COLORS[index % len(COLORS)])
        below = index + columns
        if below < len(names):
            ax.set_xlabel("")
        else:
            ax.tick_params(labelbottom=True)
        if index % columns:
            ax.set_ylabel("")
    for ax in grid.flat[len(names) :]:
        ax.set_axis_off()
    figure.suptitle("Rewards (line: training, circles: held-out prompts)", color=INK, fontsize=12)
    return figure


def _overview(rows: Rows, rewards: Sequence[str]) -> Figure:
    figure = Figure(figsize=(14, 7.2), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
    drawings: list[Draw] = [
        draw_score,
        draw_kl,
        lambda ax, rows: _draw_all_rewards(ax, rows, rewards),
        draw_lengths,
        draw_speed,
        draw_phases,
    ]
    for ax, draw in zip(figure.subplots(2, 3).flat, drawings, strict=True):
        draw(ax, rows)
    return figure


def _line(ax: Axes, x: np.ndarray, y: np.ndarray, color: str, label: str = "training") -> None:
    """The values; of a long run a running mean, the values pale behind it."""
    if len(x) <= MANY:
        ax.plot(x, y, color=color, lw=1.8, label=label)
        return
    ax.plot(x, y, color=color, lw=0.7, alpha=0.3)
    ax.plot(x, running_mean(y, len(y) // 30), color=color, lw=1.8, label=f"{label}, running mean")


def running_mean(y: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` neighbours, of those there are at the ends."""
    weights = np.ones(width)
    counts = np.convolve(np.ones_like(y), weights, mode="same")
    return np.asarray(np.convolve(y, weights, mode="same") / counts)


def _held_out(ax: Axes, rows: Rows, key: str, error: str | None, color: str) -> None:
    x, y = series(rows, key)
    if not len(x):
        return
    by_step = {row["iteration"]: row for row in rows if row.get(key) is not None}
    bars = [by_step[step].get(error) or 0.0 for step in x] if error else None
    ax.errorbar(
        x, y, yerr=bars, fmt="o", ms=5, mfc="white", mec=color, mew=1.5, ecolor=color,
        elinewidth=1.2, capsize=2.5, label="held-out prompts", zorder=3, clip_on=False,
    )  # fmt: skip


def _standard_error(row: Mapping[str, Any]) -> float:
    spread, samples, step = row.get("score/std"), row.get("samples"), row["iteration"]
    if not spread or not samples or not step:
        return 0.0
    return float(spread / math.sqrt(samples / step))  # `samples` counts from the run's start


def _dress(ax: Axes, title: str, ylabel: str) -> None:
    ax.set_title(title, loc="left", fontsize=11, color=INK, parse_math=False)
    ax.set_xlabel("iteration", color=INK)
    ax.set_ylabel(ylabel, color=INK)
    ax.grid(axis="y", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    clear_spines(ax)


def clear_spines(ax: Axes) -> None:
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#999999")


def _legend(ax: Axes, columns: int = 1, place: Place = "best") -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, ncols=columns, loc=place)


def _short(name: str, width: int = 12) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"


def save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Said of a first pass of the layout over two axes; the picture that comes out is right.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure.savefig(path, dpi=DPI, facecolor="white")
    return path
