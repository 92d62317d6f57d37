"""Every target of experiments/grid by several methods and seeds, on the smallest real model.

    python experiments/grid.py                        # what is not done yet; can be cut off at will
    python experiments/grid.py --only word_all --seeds 0 1 --jobs 2
    python experiments/grid.py --table                # the tables of experiments/RESULTS.md

A run goes to runs/grid/TARGET/METHOD-SEED, is measured by `rlalign eval` against the target of its
file, and is not repeated once `eval.json` is there. `runs/grid/times.jsonl` has every process's
seconds.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "runs" / "grid"
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
}
FOUR = ("kl-dpg", "js-dpg", "rloo", "ppo")
GRID = {
    "word_all": tuple(METHODS),
    "list_all": FOUR,
    "word_half": FOUR,
    "shares": FOUR,
    "hard_and_moment": FOUR,
}
Job = tuple[str, str, int]  # target, method, seed
DISTANCES = {
    "forward_kl": "KL(P_T‖π)",
    "reverse_kl": "KL(π‖P_T)",
    "js": "JS",
    "tv": "TV",
}


def main() -> int:
    given = arguments()
    jobs = [
        (target, method, seed)
        for seed in given.seeds  # every method has one seed before any has two
        for target in given.only
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
    print(f"\n{hours():.2f} hours of one core in all")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(GRID), choices=list(GRID))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, of one thread each")
    parser.add_argument("--table", action="store_true", help="print what is there; run nothing")
    return parser.parse_args()


# -- running ---------------------------------------------------------------------------------------


def folder(job: Job) -> Path:
    target, method, seed = job
    return PLACE / target / f"{method}-{seed}"


def done(job: Job) -> int:
    """Train and measure, unless that was done; the exit code."""
    target, method, seed = job
    run = folder(job)
    if (run / "eval.json").is_file():
        return 0
    config = f"--config=experiments/grid/{target}.yaml"
    if not (run / "model").is_dir():
        command, *settings = METHODS[method]
        place = [f"--run.dir={run.parent}", f"--run.name={run.name}", "--run.resume=auto"]
        if code := timed(job, command, config, f"--train.seed={seed}", *place, *settings):
            return code
    # One seed for all: the same prompts, and the reference's responses are the same ones.
    return timed(job, "eval", str(run), config)


def timed(job: Job, *arguments: str) -> int:
    """Run a command of rlalign with one thread; its seconds are added to times.jsonl."""
    run = folder(job)
    run.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with run.with_suffix(".log").open("a") as log:
        code = subprocess.run(
            [sys.executable, "-m", "rlalign", *arguments],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ).returncode  # fmt: skip
    row = {"job": job, "command": arguments[0], "s": round(time.perf_counter() - start, 1)}
    with (PLACE / "times.jsonl").open("a") as times:
        times.write(json.dumps(row | {"exit_code": code}) + "\n")
    print(
        f"{' '.join(map(str, job))}: {arguments[0]} in {row['s']} s, exit code {code}", flush=True
    )
    return code


def hours() -> float:
    file = PLACE / "times.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return sum(json.loads(line)["s"] for line in lines) / 3600


# -- the tables ------------------------------------------------------------------------------------


def table(target: str, jobs: Sequence[Job]) -> str:
    """A row a method: mean over seeds ± its standard error."""
    found = [(job, json.loads((folder(job) / "eval.json").read_text()))
             for job in jobs if (folder(job) / "eval.json").is_file()]  # fmt: skip
    if not found:
        return f"\n{target}: nothing is measured yet"
    features = list(found[0][1]["features"])
    titles = [target, "seeds", *features, *DISTANCES.values(), "KL(π‖a)", "distinct-2", "self-BLEU"]
    lines = [titles, ["---"] * len(titles), reference_row(found[0][1], features)]
    for method in dict.fromkeys(method for _, method, _ in jobs):
        some = [content for (_, own, _), content in found if own == method]
        if some:
            lines.append([method, str(len(some)), *cells(some, features)])
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(found: Sequence[dict[str, Any]], features: Iterable[str]) -> list[str]:
    return [
        *(over_seeds([each["features"][f]["policy"]["value"] for each in found]) for f in features),
        *(
            over_seeds([each["to_target"][d]["policy"]["value"] for each in found])
            for d in DISTANCES
        ),
        over_seeds([each["to_reference"]["kl_policy_reference"]["value"] for each in found]),
        over_seeds([each["texts"]["policy"]["distinct_2"] for each in found]),
        over_seeds([each["texts"]["policy"]["self_bleu_5_words"] for each in found]),
    ]


def reference_row(content: dict[str, Any], features: Iterable[str]) -> list[str]:
    texts = content["texts"]["reference"]
    return [
        "reference", "",
        *(f"{content['features'][f]['reference']['value']:.3f}" for f in features),
        *(number(content["to_target"][d]["reference"]["value"]) for d in DISTANCES),
        "0", f"{texts['distinct_2']:.3f}", f"{texts['self_bleu_5_words']:.3f}",
    ]  # fmt: skip


def over_seeds(values: Sequence[float | None]) -> str:
    """Mean ± standard error; how many of the seeds have none, where some do."""
    known = [value for value in values if value is not None]
    if not known:
        return "refused"
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    shown = f"{statistics.fmean(known):.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
    missing = len(values) - len(known)
    return shown + (f" ({missing} refused)" if missing else "")


def number(value: float | None) -> str:
    return "refused" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
