"""The Pareto picture of a sweep: what each trial gained, against what it paid in KL."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlalign.report.plots import COLORS, GRID, INK, clear_spines, save
from rlalign.sweeps.file import Sweep
from rlalign.sweeps.outcome import Measured, Outcome, front, kl_key

MARKERS = "osD^vP*"
PALE = "#999999"


def draw_pareto(
    sweep: Sweep, trials: Sequence[Outcome], start: Measured | None, path: Path
) -> Path | None:
    """The picture at `path`; None, and no picture, where no trial has both numbers."""
    over = [trial for trial in trials if trial.told.state in ("done", "pruned")]
    shown = [trial for trial in over if trial.score and trial.kl]
    if not shown or kl_key(sweep.metric) == sweep.metric:
        return None
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    ax = figure.add_subplot()
    best_line = front(sweep, trials)
    ax.plot(*_steps(best_line), color=PALE, lw=1.2, zorder=1)
    styles = _styles(sweep, shown)
    for trial in shown:
        _draw(ax, trial, *styles.of(trial), is_on_front=trial in best_line)
    if start is not None:
        ax.errorbar(0, start.value, yerr=2 * (start.se or 0), fmt="x", color=INK, capsize=2.5)
    handles = styles.legend()
    if len(best_line) > 1:
        handles.append(Line2D([], [], color=PALE, lw=1.2, label="best at no more KL"))
    if not all(trial.is_done for trial in shown):
        handles.append(_point("o", PALE, "stopped early", mfc="white"))
    if start is not None:
        handles.append(_point("x", INK, "reference"))
    has_errors = any(trial.score.se or trial.kl.se for trial in shown if trial.score and trial.kl)
    _dress(ax, sweep, handles, has_errors)
    return save(figure, path)


class _Styles:
    """Colours for the values of one parameter and markers for another's, where they are few."""

    def __init__(self, colors: Mapping[Any, str], markers: Mapping[Any, str], names: Sequence[str]):
        self._colors, self._markers, self._names = colors, markers, names

    def of(self, trial: Outcome) -> tuple[str, str]:
        values = [str(trial.told.values.get(name)) for name in self._names]
        color = self._colors.get(values[0], COLORS[0]) if values else COLORS[0]
        marker = self._markers.get(values[1], "o") if len(values) > 1 else "o"
        return color, marker

    def legend(self) -> list[Line2D]:
        handles = []
        for index, styles in enumerate((self._colors, self._markers)):
            for value, style in styles.items():
                color, marker = (style, "o") if index == 0 else (INK, style)
                handles.append(_point(marker, color, f"{self._names[index]} = {value}"))
        return handles


def _styles(sweep: Sweep, trials: Sequence[Outcome]) -> _Styles:
    few = {}
    for name in sweep.varied:
        values = dict.fromkeys(str(trial.told.values.get(name)) for trial in trials)
        if 1 < len(values) <= len(MARKERS):
            few[name] = sorted(values, key=_as_number)
    names = list(few)[:2]
    colors = dict(zip(few[names[0]], COLORS, strict=False)) if names else {}
    markers = dict(zip(few[names[1]], MARKERS, strict=False)) if len(names) > 1 else {}
    return _Styles(colors, markers, names)


def _draw(ax: Axes, trial: Outcome, color: str, marker: str, is_on_front: bool) -> None:
    """A trial with two standard errors each way; hollow where it did not run to its end."""
    assert trial.score and trial.kl
    ax.errorbar(
        trial.kl.value, trial.score.value, xerr=2 * (trial.kl.se or 0),
        yerr=2 * (trial.score.se or 0), fmt=marker, color=color, ms=7,
        mfc=color if trial.is_done else "white", ecolor=color, elinewidth=0.8, alpha=0.9, zorder=3,
    )  # fmt: skip
    ax.annotate(
        str(trial.number), (trial.kl.value, trial.score.value), xytext=(6, 5), fontsize=8,
        textcoords="offset points", color=INK, weight="bold" if is_on_front else "normal",
    )  # fmt: skip


def _steps(trials: Sequence[Outcome]) -> tuple[list[float], list[float]]:
    """The edge of what was reached: the best value at no more than each KL."""
    xs: list[float] = []
    ys: list[float] = []
    for trial in trials:
        assert trial.score and trial.kl
        xs += [trial.kl.value] * (2 if ys else 1)
        ys += [ys[-1], trial.score.value] if ys else [trial.score.value]
    return xs, ys


def _dress(ax: Axes, sweep: Sweep, handles: list[Line2D], has_errors: bool) -> None:
    errors = ", ±2 standard errors" if has_errors else ""
    ax.set_title(
        f"{sweep.metric} against KL, a point a trial{errors}",
        loc="left", fontsize=11, color=INK, parse_math=False,
    )  # fmt: skip
    ax.set_xlabel(f"{kl_key(sweep.metric)}, nats per response", color=INK, parse_math=False)
    ax.set_ylabel(sweep.metric, color=INK, parse_math=False)
    ax.grid(color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=0)
    clear_spines(ax)
    if handles:
        ax.legend(
            handles=handles, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
        )


def _point(marker: str, color: str, label: str, mfc: str | None = None) -> Line2D:
    return Line2D(
        [], [], color=color, marker=marker, ls="", ms=6, mfc=mfc or color,
        label=label.replace("$", r"\$"),
    )  # fmt: skip


def _as_number(text: str) -> tuple[float, str]:
    """Numbers by their size, then words."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
