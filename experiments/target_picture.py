"""Draws docs/images/target.png: one reference and the three targets that a reward can make of it.

python experiments/target_picture.py
"""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from rlalign.moments import Samples, fit
from rlalign.report.plots import DPI, INK, ORANGE, clear_spines

OUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "target.png"
GREY = "#9a9a9a"
WEIGHT, WISH, LEAST = 4.0, 0.6, 0.7


def main() -> None:
    phi = torch.linspace(0, 1, 401, dtype=torch.float64)
    # What a reference might write: mostly far from what is asked, with a small second mode.
    log_a = torch.logaddexp(-((phi - 0.22) ** 2) / 0.018, -2.2 - (phi - 0.72) ** 2 / 0.012)
    samples = Samples(phi.unsqueeze(1), log_a, torch.zeros(len(phi), dtype=torch.int64))
    wish = float(fit(samples, [(WISH, WISH)]).lambdas[0])
    never = torch.where(phi < LEAST, -torch.inf, 0.0).double()
    targets = {
        f"weight: {WEIGHT:g}, β = 1\nP_T ∝ a · exp({WEIGHT:g} φ)": WEIGHT * phi,
        f"moment: {WISH:g}\nP_T ∝ a · exp(λ φ), λ = {wish:.2f} fitted": wish * phi,
        f"hard: true, threshold: {LEAST:g}\nP_T ∝ a · 1[φ ≥ {LEAST:g}]": never,
    }
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for ax, (title, potential) in zip(figure.subplots(1, 3, sharey=True), targets.items(),
                                      strict=True):  # fmt: skip
        panel(ax, title, phi, log_a.softmax(0), (log_a + potential).softmax(0))
        ax.set_ylim(0, 10)
    FigureCanvasAgg(figure)
    figure.savefig(OUT, dpi=DPI, facecolor="white")


def panel(ax: Axes, title: str, phi: Tensor, a: Tensor, target: Tensor) -> None:
    """Both densities, with their means, and the nats between them."""
    for density, color, name in ((a, GREY, "reference a"), (target, ORANGE, "target P_T")):
        y = (density * len(phi)).numpy()
        mean = float((density * phi).sum())
        ax.fill_between(phi.numpy(), y, color=color, alpha=0.35, lw=0)
        ax.plot(phi.numpy(), y, color=color, lw=1.8, label=f"{name}, mean {mean:.2f}")
        ax.axvline(mean, ymax=0.8, color=color, lw=1.2, ls=":")
    ratio = torch.where(target > 0, target.log() - a.log(), 0.0)
    nats = float((target * ratio).sum())
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.set_xlabel(f"φ(x, y), the reward; KL(P_T‖a) = {nats:.2f} nats", color=INK)
    ax.set_yticks([])
    ax.tick_params(colors=INK, length=0)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    clear_spines(ax)


if __name__ == "__main__":
    main()
