"""A small run for faults to meet: its folder, its command, how it ended."""

import json
import time
from pathlib import Path

import hashes
import pytest
from launching import Server

CONFIG = """
model: {name: glass-tiny, dtype: float32, lora: {r: 2}}
prompts: {path: prompts.jsonl, eval_fraction: 0}
sampling: {max_new_tokens: 8}
rewards:
  short: {kind: structure.word_count, min: 2, max: 4}
  turn: {kind: turn, weight: 0.1}
reward_files: [turn.py]
train: {iterations: 4, samples: 8}
ppo: {minibatches: 2, epochs: 1}
eval: {every: 2, samples: 4}
checkpoint: {every: 3, keep: 2}
trackers: []
"""
TURN = """
from rewards import reward

@reward("turn")
class Turn:
    calls: int = 0

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]

    def __call__(self, completions: list[str]) -> list[float]:
        self.calls += 1
        return [float(self.calls)] * len(completions)
"""
PHASES = ("fit", "generate", "score", "prepare", "update", "evaluate", "save")


def at(phase: str, kind: str, rank: int = 1, iteration: int | None = 2) -> dict:
    return {"phase": phase, "kind": kind, "rank": rank, "iteration": iteration}


def iteration_of(phase: str) -> int | None:
    return None if phase == "fit" else 2


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "run.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "turn.py").write_text(TURN, encoding="utf-8")
    rows = [{"prompt": "Alice saw a"}, {"prompt": "Alice saw the"}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="module")
def unbroken(server, place) -> dict[int, dict[str, str]]:
    """What runs that no fault meets leave, by the number of processes."""
    found = {}
    for ranks in (1, 2):
        job = server.launch(place, command(f"unbroken{ranks}"), ranks)
        assert job.wait(60) == [0] * ranks, job.stderr
        found[ranks] = hashes.of_run(place / f"runs/unbroken{ranks}")
    return found


def command(name: str, *settings: str) -> list[str]:
    return ["ppo", "--config=run.yaml", f"--run.name={name}", "--run.resume=auto", *settings]


def ended(place: Path, name: str) -> dict:
    return json.loads((place / f"runs/{name}/run.json").read_text(encoding="utf-8"))


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def wait_for_fault(place: Path, name: str, job) -> float:
    """Until the run has begun its second iteration; the time then."""
    metrics = place / f"runs/{name}/metrics.jsonl"
    end = time.monotonic() + 60
    while not metrics.exists() or b'"iteration": 1,' not in metrics.read_bytes():
        assert time.monotonic() < end, job.stderr
        time.sleep(0.02)
    return time.monotonic()
