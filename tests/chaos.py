"""A run of two processes under faults at random, gone on with until it is done.

    make chaos                                  ten minutes
    python tests/chaos.py --minutes 2 --seed 7  another schedule

It ends with 0 where what the run leaves equals, file by file, what an undisturbed one leaves, and
prints a table of what it met.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import hashes
from launching import Job, Server

CONFIG = """
model: {{name: glass-tiny, dtype: float32, lora: {{r: 2}}}}
prompts: {{path: prompts.jsonl, eval_fraction: 0}}
sampling: {{max_new_tokens: 12, samples_per_prompt: 2}}
rewards:
  short: {{kind: structure.word_count, min: 2, max: 6}}
  queen: {{kind: lexical.contains, words: [queen, she], moment: 0.5, isolate: true, deadline: 3}}
train: {{iterations: {iterations}, samples: 16}}
ppo: {{minibatches: 2, epochs: 2}}
kl: {{target: 1.0}}
score: {{normalize: true}}
target: {{samples: 64, samples_per_prompt: 8}}
eval: {{every: 10, samples: 8}}
checkpoint: {{every: 3, keep: 3}}
run: {{timeout: 6, grace: 5}}
trackers: [tensorboard]
"""
PHASES = ("generate", "score", "prepare", "update", "evaluate", "save")
ENDING = (
    "exception", "kill", "SIGTERM", "SIGTERM to the launcher", "SIGKILL to the launcher",
    "sleep", "loop in C", "freeze",
)  # fmt: skip
PASSING = ("out of memory", "freeze the reward", "kill the reward", "kill the guard")
PATIENCE = 120.0  # seconds without a new iteration and with processes left: then none ends them


@dataclass
class Met:
    """What came of one kind of fault."""

    count: int = 0
    endings: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    slowest: float = 0.0  # seconds from the fault until nobody was left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        same, met = chaos(Path(folder), given.minutes, given.seed)
    print(table(met))
    faults = sum(each.count for each in met.values())
    print(
        f"\n{faults} faults, seed {given.seed}: {'equal to' if same else 'NOT'} an undisturbed run"
    )
    return 0 if same else 1


def chaos(folder: Path, minutes: float, seed: int) -> tuple[bool, dict[str, Met]]:
    """Whether the disturbed run leaves what the undisturbed one does, and what it met."""
    iterations = max(int(minutes * 60), 12)
    (folder / "run.yaml").write_text(CONFIG.format(iterations=iterations), encoding="utf-8")
    rows = [{"prompt": f"Alice saw {what}"} for what in ("a", "the", "her", "him")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = Server()
    try:
        undisturbed = started(server, folder, "undisturbed", [])
        assert undisturbed.wait(60 + 10 * iterations) == [0, 0], undisturbed.stderr
        met = disturbed(server, folder, minutes, random.Random(seed))
    finally:
        server.close()
    left = {name: hashes.of_run(folder / "runs" / name) for name in ("undisturbed", "disturbed")}
    for name, value in left["undisturbed"].items():
        if left["disturbed"].get(name) != value:
            print(f"{name} differs", file=sys.stderr)
    return left["undisturbed"] == left["disturbed"], met


def started(server: Server, folder: Path, name: str, faults: list[dict]) -> Job:
    argv = ["ppo", "--config=run.yaml", f"--run.name={name}", "--run.resume=auto"]
    if name == "undisturbed":  # plots take longer than CONFIG's seconds where others compute, too
        argv.append("--run.timeout=600")
    return server.launch(folder, argv, 2, faults)


def disturbed(
    server: Server, folder: Path, minutes: float, chance: random.Random
) -> dict[str, Met]:
    """Start the run again and again, with faults each time, until it is done."""
    run, met = folder / "runs/disturbed", defaultdict(Met)
    end = time.monotonic() + 60 * minutes
    while status(run) != "done":
        faults = schedule(done(run), chance) if time.monotonic() < end else []
        job = started(server, folder, "disturbed", faults)
        last = watched(job, run, faults)
        for fault in faults:
            kind, was_met = met[fault["kind"]], f"met: {fault['kind']}\n" in job.stderr
            kind.count += was_met
            if fault["kind"] in ENDING and was_met:
                kind.endings[ending(run)] += 1
                kind.slowest = max(kind.slowest, time.monotonic() - last)
        if faults and chance.random() < 0.2 and status(run) != "done":
            met["damaged checkpoint"].count += damage(run, chance)
        print(f"{done(run):5} {faults} -> {ending(run)}", file=sys.stderr, flush=True)
    return met


def schedule(iteration: int, chance: random.Random) -> list[dict]:
    """A fault that ends the run some iterations later, and others that it must pass before."""
    at = iteration + chance.randint(1, 8)
    passing = chance.sample(PASSING, chance.randint(0, 2))
    # Without a guard nobody ends what hangs, until the backend's own timeout does.
    possible = ("exception", "kill", "SIGTERM") if "kill the guard" in passing else ENDING
    kinds = [chance.choice(possible), *passing]
    return [
        {
            "kind": kind,
            "phase": chance.choice(PHASES),
            "iteration": at if kind in ENDING else chance.randint(iteration + 1, at),
            "rank": chance.randint(0, 1),
        }
        for kind in kinds
    ]


def watched(job: Job, run: Path, faults: list[dict]) -> float:
    """Wait until nobody of the job is left; when the iteration before its end was recorded."""
    last, seen = time.monotonic(), done(run)
    while job.survivors() or not job.has_begun:
        if done(run) != seen:
            last, seen = time.monotonic(), done(run)
        if time.monotonic() - last > PATIENCE:
            raise AssertionError(f"{faults}: still there: {job.survivors()}\n{job.stderr}")
        time.sleep(0.05)
    return last


def damage(run: Path, chance: random.Random) -> int:
    """Spoil a byte of the newest checkpoint, where there is one before it; how many were spoilt."""
    steps = sorted((run / "checkpoints").glob("step-*"))
    if len(steps) < 2:
        return 0
    file = chance.choice(sorted(steps[-1].glob("*.safetensors")))
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 0xFF
    file.write_bytes(content)
    return 1


def done(run: Path) -> int:
    """Iterations that are recorded."""
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    try:
        return int(json.loads(lines[-1])["iteration"]) if lines else 0
    except ValueError:  # half a line of a killed process
        return int(json.loads(lines[-2])["iteration"]) if len(lines) > 1 else 0


def told(run: Path) -> dict:
    file = run / "run.json"
    return json.loads(file.read_text()) if file.exists() else {}


def status(run: Path) -> str:
    return str(told(run).get("status", "none"))


def ending(run: Path) -> str:
    return f"{status(run)} {told(run).get('exit_code')}"


def table(met: dict[str, Met]) -> str:
    lines = [
        "| fault | met | run.json says (exit code, times) | seconds until all were gone, at most |"
    ]
    lines.append("|---|---|---|---|")
    for kind, each in sorted(met.items()):
        ends = ", ".join(f"{name} ({n})" for name, n in sorted(each.endings.items())) or "-"
        slowest = f"{each.slowest:.1f}" if each.endings else "-"
        lines.append(f"| {kind} | {each.count} | {ends} | {slowest} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
