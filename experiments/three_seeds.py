"""Train the quickstart with three seeds, measure each on 200 held-out samples, print the table.

    make seeds            # or: python experiments/three_seeds.py [--train.iterations=8 ...]

Runs are kept in runs/seed-0 to seed-2 and go on where they stopped. The table is Markdown, ready
for experiments/RESULTS.md. Each limit that the quickstart promises is checked at the end.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlalign.algorithms.ppo import PPORun
from rlalign.config import load_config, to_flat

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)
SAMPLES = 200
REWARDS = ("light", "space", "cheerful", "length", "ending")
JUDGE = "judge"


def main() -> int:
    rows = [measure(seed, sys.argv[1:]) for seed in SEEDS]
    print(table(rows))
    broken = [f"seed {row['seed']}: {limit}" for row in rows for limit in broken_limits(row)]
    print("\n".join(broken) or "\nEvery limit holds for every seed.")
    return 1 if broken else 0


def measure(seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train and evaluate one seed, unless that was done before."""
    run = ROOT / "runs" / f"seed-{seed}"
    refuse_stale(run, seed, overrides)
    settings = [f"--train.seed={seed}", f"--run.name=seed-{seed}", "--run.resume=auto", *overrides]
    if not (run / "model").is_dir():
        call("launch/ppo.py", *settings)
    found = evaluation(run)
    if found.get("samples") != SAMPLES:
        call(
            "-m",
            "rlalign",
            "eval",
            str(run),
            f"--eval.target_samples={SAMPLES}",
            "--eval.samples_per_prompt=4",
        )
        found = evaluation(run)
    times = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(row.get("time/total", 0.0) for row in times)
    return {"seed": seed, "before": found["reference"], "after": found["policy"], "s": seconds}


def evaluation(run: Path) -> dict[str, Any]:
    """What `rlalign eval` wrote down; empty where it has not been called."""
    file = run / "eval.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def refuse_stale(run: Path, seed: int, overrides: list[str]) -> None:
    """Stop where a kept run was made with other settings than the table would claim."""
    if not (run / "config.yaml").is_file():
        return
    wanted = [f"--train.seed={seed}", *overrides]
    now = to_flat(load_config(PPORun, wanted, ROOT / "experiments/quickstart.yaml"))
    made = to_flat(load_config(PPORun, [], run / "config.yaml"))
    changed = [
        key
        for key in sorted(now.keys() | made.keys())
        if now.get(key) != made.get(key) and not key.startswith("run.")
    ]
    if changed:
        sys.exit(f"{run} was made with another {', '.join(changed)}; remove it to train it anew")


def call(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def gain(row: dict[str, Any]) -> float:
    """Rise of the score in standard deviations that it had across the reference's samples."""
    before, after = row["before"], row["after"]
    return float((after["eval/score"] - before["eval/score"]) / before["eval/score_std"])


def diversity(row: dict[str, Any]) -> float:
    return float(row["after"]["eval/distinct2"] / row["before"]["eval/distinct2"])


def broken_limits(row: dict[str, Any]) -> list[str]:
    """What the quickstart promises and this seed did not keep."""
    before, after = row["before"], row["after"]
    limits = {
        "the score rose by less than 1.0 of its standard deviation": gain(row) >= 1.0,
        "KL to the reference is 12 nats or more": after["eval/kl"] < 12.0,
        "distinct-2 fell below 85% of the reference's": diversity(row) > 0.85,
    }
    for name in (*REWARDS, JUDGE):
        key = f"eval/reward/{name}"
        limits[f"{name} did not rise"] = after[key] > before[key]
    return [claim for claim, holds in limits.items() if not holds]


def table(rows: list[dict[str, Any]]) -> str:
    """One column a seed, before and after in each cell."""

    def cells(label: str, values: list[str]) -> str:
        return f"| {label} | " + " | ".join(values) + " |"

    def change(key: str, digits: int = 3) -> list[str]:
        return [f"{row['before'][key]:.{digits}f} → {row['after'][key]:.{digits}f}" for row in rows]

    lines = [
        cells("", [f"seed {row['seed']}" for row in rows]),
        "|---|" + "---|" * len(rows),
        cells("score", change("eval/score")),
        cells("rise, in starting standard deviations", [f"{gain(row):+.2f}" for row in rows]),
        *(cells(name, change(f"eval/reward/{name}")) for name in REWARDS),
        cells("VADER, not trained on", change(f"eval/reward/{JUDGE}")),
        cells("KL to the reference, nats", [f"{row['after']['eval/kl']:.2f}" for row in rows]),
        cells("distinct-2", change("eval/distinct2")),
        cells("distinct-2, share kept", [f"{diversity(row):.3f}" for row in rows]),
        cells("length, tokens", change("eval/length", 1)),
        cells("iterations alone, minutes", [f"{row['s'] / 60:.1f}" for row in rows]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
