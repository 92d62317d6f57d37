"""What a reward model is worth when it is optimised hard: proxy and judge against KL.

    python experiments/overoptimisation.py [--train.iterations=40 ...]

Trains the reward model of experiments/reward_model.yaml, then PPO on it as in
experiments/overoptimisation.yaml, and draws docs/images/overoptimisation.png from the run's
samples.jsonl. What is there already is kept, and a PPO run that was stopped goes on from its last
checkpoint. The table is Markdown, ready for experiments/RESULTS.md.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlalign.report.plots import BLUE, DPI, GRID, INK, RED

ROOT = Path(__file__).resolve().parents[1]
MODEL, RUN = ROOT / "runs" / "reward-model", ROOT / "runs" / "overoptimisation"
PAIRS = ROOT / "experiments" / "data" / "preferences.jsonl"
PICTURE = ROOT / "docs" / "images" / "overoptimisation.png"
WINDOW = 4  # iterations in a point of the curve


def main() -> int:
    if not (MODEL / "report.json").is_file():
        call("launch/reward_model.py", "--run.name=reward-model")
    if not (RUN / "model").is_dir():
        file = "--config=experiments/overoptimisation.yaml"
        call("launch/ppo.py", file, "--run.resume=auto", *sys.argv[1:])
    points = curve(read_lines(RUN / "samples.jsonl"), scales(), WINDOW)
    print(table(points))
    print(f"\n{verdict(points)}\n\n{draw(points, PICTURE).relative_to(ROOT)}")
    return 0


def call(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def scales() -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of proxy and judge on samples of the reference.

    The proxy's are those of held-out pairs, the judge's of all pairs: it has seen none of them.
    """
    found = json.loads((MODEL / "report.json").read_text(encoding="utf-8"))
    pairs = read_lines(PAIRS)
    judged = [pair[f"judge_{side}"] for pair in pairs for side in ("chosen", "rejected")]
    return {
        "taste": (found["mean"], found["std"]),
        "judge": (float(np.mean(judged)), float(np.std(judged))),
    }


def curve(
    rows: Sequence[Mapping[str, Any]], scale: Mapping[str, tuple[float, float]], window: int
) -> list[dict[str, float]]:
    """A point every `window` iterations: mean KL, proxy and judge, each with its standard error.

    Proxy and judge are in standard deviations above the reference's mean.
    """
    points = []
    for start in range(1, max(row["iteration"] for row in rows) + 1, window):
        chosen = [row for row in rows if start <= row["iteration"] < start + window]
        point = {"first": start, "last": max(row["iteration"] for row in chosen)}
        columns = {"kl": [row["kl"] for row in chosen]}
        for name, (mean, std) in scale.items():
            columns[name] = [(row["rewards"][name] - mean) / std for row in chosen]
        for name, values in columns.items():
            point[name] = float(np.mean(values))
            point[f"{name}_se"] = float(np.std(values, ddof=1) / np.sqrt(len(values)))
        points.append(point)
    return points


def fit(points: Sequence[Mapping[str, float]], name: str) -> tuple[float, float]:
    """a and b of gain = d (a - b log d), d = sqrt(KL), by least squares (Gao et al. 2022, RL)."""
    d = np.sqrt([max(point["kl"], 1e-6) for point in points])
    gains = np.array([point[name] for point in points])
    (a, b), *_ = np.linalg.lstsq(np.stack([d, -d * np.log(d)], 1), gains, rcond=None)
    return float(a), float(b)


def peak(points: Sequence[Mapping[str, float]], name: str = "judge") -> Mapping[str, float]:
    return max(points, key=lambda point: point[name])


def verdict(points: Sequence[Mapping[str, float]]) -> str:
    """Whether the judge fell while the proxy rose, with the numbers."""
    top, end = peak(points), points[-1]
    if top is end:
        return (
            f"The judge was at its best at the end ({end['judge']:+.2f} standard deviations, the "
            f"proxy {end['taste']:+.2f}): no fall was seen."
        )
    fall = top["judge"] - end["judge"]
    error = float(np.hypot(top["judge_se"], end["judge_se"]))
    return (
        f"From {top['kl']:.1f} to {end['kl']:.1f} nats the proxy went from {top['taste']:+.2f} to "
        f"{end['taste']:+.2f} and the judge from its best, {top['judge']:+.2f}, to "
        f"{end['judge']:+.2f}: a fall of {fall:.2f} ± {error:.2f} standard deviations."
    )


def table(points: Sequence[Mapping[str, float]]) -> str:
    lines = ["| iterations | KL, nats | proxy | judge |", "|---|---|---|---|"]
    for point in points:
        cells = [f"{point['first']:.0f} to {point['last']:.0f}"]
        cells += [f"{point[k]:.2f} ± {point[f'{k}_se']:.2f}" for k in ("kl", "taste", "judge")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(points: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Proxy and judge against KL, with their fits, as a PNG."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    ax = figure.add_subplot()
    names = {"taste": ("reward model (optimised)", BLUE), "judge": ("judge (held out)", RED)}
    kl = np.array([point["kl"] for point in points])
    grid = np.linspace(max(kl.min(), 0.01), kl.max(), 200)
    for name, (label, color) in names.items():
        a, b = fit(points, name)
        ax.errorbar(
            kl, [point[name] for point in points], yerr=[point[f"{name}_se"] for point in points],
            fmt="o", ms=5, mfc="white", mec=color, mew=1.5, ecolor=color, capsize=2.5, label=label,
        )  # fmt: skip
        root = np.sqrt(grid)
        ax.plot(grid, root * (a - b * np.log(root)), color=color, lw=1.6)
    ax.axhline(0, color="#777777", lw=1, ls=":")
    ax.set_title("Optimising a reward model too far", loc="left", fontsize=11, color=INK)
    ax.set_xlabel("KL to the reference, nats a response", color=INK)
    ax.set_ylabel("standard deviations above the reference", color=INK)
    ax.grid(axis="y", color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#999999")
    ax.legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, facecolor="white")
    return path


if __name__ == "__main__":
    sys.exit(main())
