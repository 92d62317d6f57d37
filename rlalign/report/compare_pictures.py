"""What `rlalign compare` reads in its runs, and its pictures: what was asked for against KL.

The pictures are PNG within the page. No text of a run is drawn: names stand in the HTML around
them, where they are escaped.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlalign.report.plots import COLORS, GRID, INK, clear_spines, running_mean, series
from rlalign.report.yardstick_table import DIVERGENCES, TO_REFERENCE, number
from rlalign.yardstick.estimators import Z_95

GREY = "#888888"
SIGNS = {"●": "o", "■": "s", "◆": "D", "▲": "^", "▼": "v"}  # in HTML -> in matplotlib
WATCHED = ("judge", "metric")  # the roles of what nobody asked for
TITLES = DIVERGENCES | TO_REFERENCE
Estimate = Mapping[str, Any]
UNKNOWN: Estimate = {"value": None, "low": None, "high": None}


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


# -- what is read ----------------------------------------------------------------------------------


def settings(runs: Sequence[Run]) -> list[Run]:
    """The first run of each target, reference and prompts: their distances compare only within."""
    found: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        content = run.content
        key = content["target"]["hash"], content.get("reference_model"), content["prompts"]
        found.setdefault(key, run)
    return list(found.values())


def all_features(runs: Sequence[Run]) -> dict[str, Mapping[str, Any]]:
    """Every feature of any run, as the first that has it describes it."""
    found: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for name, feature in run.content["features"].items():
            found.setdefault(name, feature)
    return found


def mean(run: Run, name: str, of: str) -> Estimate:
    """A feature's mean under policy, reference or target; unknown where the run has no such."""
    found: Estimate = run.content["features"].get(name, {}).get(of, UNKNOWN)
    return found


def distance(run: Run, name: str, of: str) -> Estimate:
    """A divergence of policy or reference; the reference's to itself is left out."""
    found: Estimate
    if name in TO_REFERENCE:
        found = run.content["to_reference"][name] if of == "policy" else UNKNOWN
    else:
        found = run.content["to_target"][name][of]
    return found


def text_number(run: Run, of: str, key: str) -> float | None:
    found: float | None = run.content["texts"][of][key]
    return found


def drawn(run: Run, by: str, prompt: str) -> list[str]:
    """The responses to a prompt, in the order in which they were drawn."""
    rows = (row for row in run.samples if row["drawn_by"] == by and row["prompt"] == prompt)
    return [str(row["response"]) for row in rows]


def clear_least(estimates: Sequence[Estimate]) -> int | None:
    """The index of the smallest, where its interval lies below all others'."""
    known = [(i, e) for i, e in enumerate(estimates) if e["value"] is not None]
    if len(known) < 2 or any(e["low"] is None for _, e in known):
        return None
    best, least = min(known, key=lambda each: float(each[1]["high"]))
    return best if all(least["high"] < e["low"] for i, e in known if i != best) else None


def moved(run: Run, name: str) -> str:
    """An arrow where the mean of what nobody asked for left the target's interval; else nothing.

    Where the target's own mean is unknown, the reference's stands for it.
    """
    if run.content["features"].get(name, {}).get("role") not in WATCHED:
        return ""
    own, wanted = mean(run, name, "policy"), mean(run, name, "target")
    if wanted["low"] is None:
        wanted = mean(run, name, "reference")
    if own["low"] is None or wanted["low"] is None:
        return ""
    return " ↑" if own["low"] > wanted["high"] else " ↓" if own["high"] < wanted["low"] else ""


def titled(what: str, run: Run, firsts: Sequence[Run]) -> str:
    """`reference`; and of which run, where there are several."""
    return what if len(firsts) == 1 else f"{what} of {run.label}"


def change(after: float | None, before: float | None) -> str:
    """In percent; as it is where there is no percent of it."""
    if after is None or not before:
        return number(after)
    return f"{round(100 * (after / before - 1)):+d}%"


def notes(run: Run) -> Iterator[str]:
    """Why a number of the run is not given, or what it is of."""
    content, refusal = run.content, run.content["support"]["refusal"]
    if refusal:
        yield f"no distance to P_T: {refusal}"
    numbers = {title: distance(run, name, "policy") for name, title in TITLES.items()}
    numbers |= {f"log Z, {side} bound": content["log_z"][side] for side in ("lower", "upper")}
    for title, estimate in numbers.items():
        note = estimate.get("note", "")
        if note and note != refusal:  # the refusal is each number's note
            yield f"{title}: {note}"


# -- what is drawn ---------------------------------------------------------------------------------


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
