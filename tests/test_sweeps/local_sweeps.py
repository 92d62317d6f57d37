"""Sweeps on this machine, for the tests of them: files, workers, and what they left."""

import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import yaml
from forked import ended, fork

from rlalign import cli
from rlalign.sweeps.file import read_sweep
from rlalign.sweeps.queue import Queue

READY = Path("runs/sweeps/s/trial-0000/ready")
METRIC = {"name": "score", "goal": "maximize"}
GOOD = {"method": "grid", "metric": METRIC, "parameters": {"x": {"values": [1]}}}

# What a run does that a sweep sees, in a program that starts at once. `does` says how it ends.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = Path(given["run.dir"]) / given["run.name"]
folder.mkdir(exist_ok=True)
with open(folder / "attempts.jsonl", "a") as file:
    file.write(json.dumps(given | {"pid": os.getpid()}) + "\\n")
does, is_resumed = given.get("does", "ends"), given.get("run.resume") == "auto"


def leave(code, message):
    ended = {"exit_code": code, "message": message, "ended_at": time.time()}
    (folder / "run.json").write_text(json.dumps(ended))
    sys.exit(code if does != "hides its code" else min(code, 1))


if does == "hangs once" and not is_resumed:
    signal.signal(signal.SIGTERM, lambda *_: leave(143, "stopped after iteration 3"))
    (folder / "ready").touch()
    time.sleep(120)
if does == "ignores SIGTERM":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "ready").touch()
    time.sleep(120)
if does == "leaves its launcher" and not is_resumed and os.fork() == 0:
    time.sleep(1)
    leave(143, "stopped after iteration 3")
if does == "dies" or (does in ("dies once", "leaves its launcher") and not is_resumed):
    os.kill(os.getpid(), signal.SIGKILL)
if does == "is preempted, then crashes":
    leave(143, "stopped") if not is_resumed else sys.exit("no such model")
if does == "fails":
    leave(5, "reward 'space' failed")
if does == "hides its code" and not is_resumed:
    leave(143, "stopped after iteration 3")
if does == "crashes":
    sys.exit("no such model")
if does.startswith("climbs"):
    waits = does == "climbs and waits"
    if waits:
        signal.signal(signal.SIGTERM, lambda *_: leave(143, "stopped after iteration 4"))
    with open(folder / "metrics.jsonl", "a") as file:
        for row in range(1, 5):
            score = row * float(given["x"]) / (10 if waits else 1)
            file.write(json.dumps({"iteration": row, "score": score}) + "\\n")
    if waits:
        time.sleep(60)
    sys.exit(0)
score = None if does == "null" else float(given.get("x", 0))
rows = [{"score": -1.0}, {"score": score}] if does != "none" else [{"scores": 3.0}]
with open(folder / "metrics.jsonl", "a") as file:
    file.write("".join(json.dumps({"iteration": 1} | row) + "\\n" for row in rows))
"""


def write(parameters: dict[str, Any], **more: Any) -> Path:
    """A sweep file, s.yaml, which runs the program above."""
    content = {"program": "program.py", "method": "grid", "metric": METRIC} | more
    text = yaml.safe_dump(content | {"parameters": parameters}, sort_keys=False)
    Path("s.yaml").write_text(text)
    return Path("s.yaml")


def sweep(*arguments: str) -> int:
    return cli.main(["sweep", "s.yaml", "--local", *arguments])


def queue(grace: int = 60, total: int = 2) -> Queue:
    folder = Path("runs/sweeps/s")
    folder.mkdir(parents=True, exist_ok=True)
    return Queue(folder, read_sweep(Path("s.yaml")), total, grace)


def states() -> list[tuple[str, float | None]]:
    return [(trial.state, trial.value) for trial in queue().table()]


def attempts(trial: str = "trial-0000") -> list[dict[str, Any]]:
    lines = Path("runs/sweeps/s", trial, "attempts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


class Started:
    """A worker in a process of its own, forked because everything is imported here already."""

    def __init__(self, *arguments: str) -> None:
        def work() -> None:
            os._exit(sweep(*arguments))

        gc.collect()  # no connection to the study's file is shared
        self.pid, self.is_over = fork(work), False

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        status = ended(self.pid, time.monotonic() + 120)
        self.is_over = True
        return os.waitstatus_to_exitcode(status)


def wait_for(claim: Any, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
