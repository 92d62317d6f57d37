"""What spans buy: a keyword task with credit at the words, and with all of it at the last token.

    python experiments/dense_credit.py [--jobs 2] [--seeds 0 1 2] [--train.threads=1 ...]

Six runs of experiments/dense_credit.yaml, three seeds of each arm, kept in runs/dense-credit-*; one
that was stopped goes on where it stood. Printed is a table for experiments/RESULTS.md, of the runs
that are complete; docs/images/dense_credit.png shows their curves.

Stated before the runs: a score is the mean over the last 5 iterations. The mark of a seed lies 80%
of the way from where both arms start, their common first iteration, to where the arm without spans
ends. Counted are the samples until the score first reaches it. Half of the way stands beside it.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from rlalign.algorithms.ppo import PPORun
from rlalign.config import load_config, to_flat

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "experiments/dense_credit.yaml"
PICTURE = ROOT / "docs/images/dense_credit.png"
ARMS = {"spans": "credit at the words", "last": "credit at the last token"}
WINDOW = 5  # iterations
WAYS = (0.8, 0.5)  # the first is the one that counts
Curve = list[tuple[int, float]]  # samples so far, mean score of the iteration


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    own, overrides = parser.parse_known_args()
    runs = [(arm, seed) for seed in own.seeds for arm in ARMS]
    for arm, seed in runs:
        refuse_stale(arm, seed, overrides)
    with ThreadPoolExecutor(own.jobs) as pool:
        list(pool.map(lambda run: train(*run, overrides), runs))
    curves = {run: curve(*run) for run in runs}
    print(table(curves, own.seeds))
    draw(curves, own.seeds)
    return 0


def folder(arm: str, seed: int) -> Path:
    return ROOT / "runs" / f"dense-credit-{arm}-{seed}"


def settings(arm: str, seed: int, overrides: list[str]) -> list[str]:
    run = [f"--run.name={folder(arm, seed).name}", "--run.resume=auto"]
    return [f"--score.credit={arm}", f"--train.seed={seed}", *run, *overrides]


def refuse_stale(arm: str, seed: int, overrides: list[str]) -> None:
    """Stop where a kept run was made with other settings than the table would claim."""
    made = folder(arm, seed) / "config.yaml"
    if not made.is_file():
        return
    now = to_flat(load_config(PPORun, settings(arm, seed, overrides), CONFIG))
    then = to_flat(load_config(PPORun, [], made))
    changed = [k for k in sorted(now.keys() | then.keys()) if now.get(k) != then.get(k)]
    if changed := [key for key in changed if not key.startswith("run.")]:
        sys.exit(f"{made.parent} was made with another {', '.join(changed)}; remove it")


def train(arm: str, seed: int, overrides: list[str]) -> None:
    """One run to its end, unless that was done before; its output goes to train.log in `runs`."""
    if (folder(arm, seed) / "model").is_dir():
        return
    command = [sys.executable, "launch/ppo.py", "--config", str(CONFIG)]
    log = folder(arm, seed).with_suffix(".log")
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as file:
        command += settings(arm, seed, overrides)
        subprocess.run(command, cwd=ROOT, check=True, stdout=file, stderr=subprocess.STDOUT)


def curve(arm: str, seed: int) -> Curve:
    """A run's score by samples; an iteration that was run again after a stop counts once."""
    lines = (folder(arm, seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["iteration"]: row for row in map(json.loads, lines)}
    return [(int(row["samples"]), row["score"]) for _, row in sorted(rows.items())]


def smooth(points: Curve) -> Curve:
    scores = [score for _, score in points]
    means = [fmean(scores[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(scores))]
    return [(samples, mean) for (samples, _), mean in zip(points, means, strict=True)]


def samples_to(points: Curve, mark: float) -> int | None:
    """Samples at the first full window whose mean is the mark or more."""
    full = smooth(points)[WINDOW - 1 :]
    return next((samples for samples, mean in full if mean >= mark), None)


def table(curves: dict[tuple[str, int], Curve], seeds: list[int]) -> str:
    ways = [f"{way:.0%}: mark, samples with and without spans, share" for way in WAYS]
    head = ["seed", "start", "end without spans", "end with spans", *ways]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    shares: dict[float, list[float]] = {way: [] for way in WAYS}
    for seed in seeds:
        dense, sparse = curves["spans", seed], curves["last", seed]
        start, end = fmean((dense[0][1], sparse[0][1])), smooth(sparse)[-1][1]
        cells = [str(seed), f"{start:.2f}", f"{end:.2f}", f"{smooth(dense)[-1][1]:.2f}"]
        for way in WAYS:
            mark = start + way * (end - start)
            with_spans, without = samples_to(dense, mark), samples_to(sparse, mark)
            share = "-"
            if with_spans is not None and without is not None:
                shares[way].append(with_spans / without)
                share = f"{with_spans / without:.0%}"
            cells.append(f"{mark:.2f}: {with_spans}, {without}, {share}")
        lines.append("| " + " | ".join(cells) + " |")
    means = [f"{fmean(shares[way]):.0%}" if shares[way] else "-" for way in WAYS]
    return "\n".join([*lines, "| mean |  |  |  | " + " | ".join(means) + " |"])


def draw(curves: dict[tuple[str, int], Curve], seeds: list[int]) -> None:
    figure, axes = pyplot.subplots(figsize=(5, 3), dpi=100)
    for arm, colour in zip(ARMS, ("tab:blue", "tab:orange"), strict=True):
        for seed in seeds:
            points = smooth(curves[arm, seed])
            label = ARMS[arm] if seed == seeds[0] else None
            axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.2)
    axes.set(xlabel="samples", ylabel=f"score, mean of {WINDOW} iterations")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Software": None})


if __name__ == "__main__":
    sys.exit(main())
