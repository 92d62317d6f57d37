"""Every target of experiments/grid by several methods and seeds, most on the smallest real model.

    python experiments/grid.py                        # what is not done yet; can be cut off at will
    python experiments/grid.py --only word_all --seeds 0 1 --jobs 2
    python experiments/grid.py --table                # the tables of experiments/RESULTS.md

A run goes to runs/grid/TARGET/METHOD-SEED and is measured by `rlalign eval` against the target of
its file. Its numbers then stand as a line in experiments/results/grid.jsonl, and it is not repeated
as long as its settings are the same. Where what `rlalign eval` draws or says has changed (EVAL), it
is measured again, but not trained again as long as its folder is there.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "runs" / "grid"
ROWS = ROOT / "experiments" / "results" / "grid.jsonl"
SEEDS = (0, 1, 2, 3, 4)
# What is done without a price on the KL: the reward alone, from which no target follows.
BARE = ("--kl.coef=0", "--rewards.queen.hard=false", "--rewards.queen.weight=1")
METHODS: dict[str, tuple[str, ...]] = {
    "kl-dpg": ("dpg", "--dpg.divergence=forward_kl"),
    "kl-dpg-bare": ("dpg", "--dpg.divergence=forward_kl", "--dpg.baseline=none"),
    "js-dpg": ("dpg", "--dpg.divergence=js"),
    "tv-dpg": ("dpg", "--dpg.divergence=tv"),
    "rkl-dpg": ("dpg", "--dpg.divergence=reverse_kl"),
    "rloo": ("reinforce",),
    "ppo": ("ppo",),
    "reinforce": ("reinforce", "--reinforce.baseline=none", *BARE),
    "exact-samples": ("experiments/exact_samples.py",),
    # What lambda does while the policy learns.
    "js-dpg-refitted": ("dpg", "--dpg.divergence=js", "--target.update=importance"),
    "js-dpg-as-fitted": ("dpg", "--dpg.divergence=js", "--target.update=none"),
}
ABOUT_LAMBDA = ("js-dpg-refitted", "js-dpg-as-fitted")
THREE = ("js-dpg", "rloo", "ppo")
GRID = {
    "word_all": tuple(name for name in METHODS if name not in ABOUT_LAMBDA),
    "list_all": THREE,
    "word_half": (*THREE, *ABOUT_LAMBDA),
    "shares": THREE,
    "hard_and_moment": THREE,
    "biographies": THREE,
    "space_words": THREE,
}
LARGE = ("biographies", "space_words")  # SmolLM2-135M: every core there is, one seed
EVAL = 2  # of what `rlalign eval` draws and says: 2 since its draws no longer depend on the ranks
Job = tuple[str, str, int]  # target, method, seed
DISTANCES = {
    "forward_kl": "KL(P_T‖π)",
    "reverse_kl": "KL(π‖P_T)",
    "js": "JS",
    "tv": "TV",
}
WHOSE = ("reference", "policy", "target")
TEXTS = {"distinct_2": "distinct-2", "self_bleu_5_words": "self-BLEU-5"}


def main() -> int:
    given = arguments()
    jobs = [
        (target, method, seed)
        for seed in given.seeds  # every method has one seed before any has two
        for target in given.only
        if target not in LARGE or seed == SEEDS[0]
        for method in GRID[target]
        if method in given.methods
    ]
    if not given.table:
        with ThreadPoolExecutor(given.jobs) as pool:
            codes = list(pool.map(done, jobs))
        if failed := [job for job, code in zip(jobs, codes, strict=True) if code]:
            print(f"failed: {failed}", file=sys.stderr)
            return 1
    for target in given.only:
        print(table(target, [job for job in jobs if job[0] == target]))
    print(f"\n{sum(row['seconds'] for row in rows()) / 3600:.2f} hours of one core in all")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(GRID), choices=list(GRID))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1, help="runs of the small model at once")
    parser.add_argument("--table", action="store_true", help="print what is there; run nothing")
    return parser.parse_args()


# -- running ---------------------------------------------------------------------------------------


def done(job: Job) -> int:
    """Train and measure, unless that was done; the exit code."""
    target, method, seed = job
    key = settings_hash(job)
    if any(is_of(row, job, key) for row in rows()):
        return 0
    run = PLACE / target / f"{method}-{seed}-{key[:8]}"
    config = f"--config=experiments/grid/{target}.yaml"
    if not (run / "model").is_dir():
        place = [f"--run.dir={run.parent}", f"--run.name={run.name}", "--run.resume=auto"]
        if code := called(run, *command(job), *place):
            return code
    # One seed for all: the same prompts, and the reference's responses are the same ones.
    if code := called(run, "eval", str(run), config):
        return code
    keep(job, key, run)
    return 0


def command(job: Job) -> list[str]:
    target, method, seed = job
    name, *settings = METHODS[method]
    return [name, f"--config=experiments/grid/{target}.yaml", f"--train.seed={seed}", *settings]


def settings_hash(job: Job) -> str:
    """sha256 of the command and of the file that it names."""
    text = (ROOT / "experiments" / "grid" / f"{job[0]}.yaml").read_text(encoding="utf-8")
    told = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return hashlib.sha256(json.dumps([command(job), told]).encode()).hexdigest()


def called(run: Path, *arguments: str) -> int:
    """Run a command of rlalign, or a script; its seconds are added to those of the run."""
    is_script = arguments[0].endswith(".py")
    run.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with Path(f"{run}.log").open("a") as log:
        code = subprocess.run(
            [sys.executable, *([] if is_script else ["-m", "rlalign"]), *arguments],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False,
            env={**os.environ} | ({} if run.parent.name in LARGE else {"OMP_NUM_THREADS": "1"}),
        ).returncode  # fmt: skip
    seconds = round(time.perf_counter() - start, 1)
    with Path(f"{run}.seconds").open("a") as times:
        times.write(f"{arguments[0]} {seconds} {code}\n")
    print(f"{run.parent.name} {run.name}: {arguments[0]} in {seconds} s, exit {code}", flush=True)
    return code


def keep(job: Job, key: str, run: Path) -> None:
    """A line of experiments/results/grid.jsonl: what the tables and later readers need."""
    found = json.loads((run / "eval.json").read_text(encoding="utf-8"))
    seconds = [line.split() for line in Path(f"{run}.seconds").read_text().splitlines()]
    row = {
        "job": list(job),
        "settings": key,
        "eval": EVAL,
        "seconds": sum(float(each) for _, each, _ in seconds),
        "features": {
            name: {of: [feature[of]["value"], feature[of]["se"]] for of in WHOSE}
            for name, feature in found["features"].items()
        },
        "to_target": {
            name: {of: [each["value"], each["se"]] for of, each in both.items()}
            for name, both in found["to_target"].items()
        },
        "to_reference": {name: each["value"] for name, each in found["to_reference"].items()},
        "ess": found["support"]["ess"],
        "pareto_k": found["support"]["pareto_k"],
        "refusal": found["support"]["refusal"],
        "lambdas": found["target"]["lambdas"],
        "texts": found["texts"],
    }
    ROWS.parent.mkdir(exist_ok=True)
    with ROWS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def is_of(row: dict[str, Any], job: Job, key: str) -> bool:
    return row["job"] == list(job) and row["settings"] == key and row.get("eval", 1) == EVAL


def rows() -> list[dict[str, Any]]:
    """Every kept line."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.is_file() else []
    return [json.loads(line) for line in lines]


# -- the tables ------------------------------------------------------------------------------------


def table(target: str, jobs: Sequence[Job]) -> str:
    """A row a method: mean over seeds ± its standard error."""
    wanted = [(job, settings_hash(job)) for job in jobs]
    found = [row for row in rows() if any(is_of(row, *each) for each in wanted)]
    if not found:
        return f"\n{target}: nothing is measured yet"
    features = list(found[0]["features"])
    titles = [target, "seeds", *features, *DISTANCES.values(), "KL(π‖a)", *TEXTS.values()]
    lines = [titles, ["---"] * len(titles), reference_cells(found[0])]
    for method in dict.fromkeys(method for _, method, _ in jobs):
        if some := [row for row in found if row["job"][1] == method]:
            lines.append([method, str(len(some)), *cells(some)])
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(found: Sequence[dict[str, Any]]) -> list[str]:
    columns = [
        *([row["features"][name]["policy"] for row in found] for name in found[0]["features"]),
        *([row["to_target"][name]["policy"] for row in found] for name in DISTANCES),
        [[row["to_reference"]["kl_policy_reference"], None] for row in found],
        *([[row["texts"]["policy"][name], None] for row in found] for name in TEXTS),
    ]
    return [over_seeds(column) for column in columns]


def reference_cells(row: dict[str, Any]) -> list[str]:
    numbers: list[Sequence[float | None]] = [
        *(each["reference"] for each in row["features"].values()),
        *(row["to_target"][name]["reference"] for name in DISTANCES),
        [0.0, None],
        *([row["texts"]["reference"][name], None] for name in TEXTS),
    ]
    return ["reference", "", *(over_seeds([number]) for number in numbers)]


def over_seeds(numbers: Sequence[Sequence[float | None]]) -> str:
    """Mean ± standard error over seeds; of one seed that of its samples, where it is known.

    And how many of the seeds have no number, where some have none.
    """
    known = [value for value, _ in numbers if value is not None]
    if not known:
        return "refused"
    shown = f"{statistics.fmean(known):.3f}"
    if len(known) > 1:
        shown += f" ± {statistics.stdev(known) / math.sqrt(len(known)):.3f}"
    elif numbers[0][1] is not None and len(numbers) == 1:
        shown += f" ± {numbers[0][1]:.3f}"
    missing = len(numbers) - len(known)
    return shown + (f" ({missing} refused)" if missing else "")


if __name__ == "__main__":
    raise SystemExit(main())
