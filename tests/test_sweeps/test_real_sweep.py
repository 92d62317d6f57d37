"""A sweep of real runs of the smallest real model."""

import json
import signal
from pathlib import Path

import yaml
from local_sweeps import states, sweep, wait_for, write

SMALL = """
model: {name: glass-tiny, dtype: float32, lora: {r: 2}}
prompts: {path: prompts.jsonl, eval_fraction: 0}
sampling: {max_new_tokens: 8}
rewards: {short: {kind: structure.word_count, min: 2, max: 6}}
train: {iterations: 60, samples: 8, threads: 1}
ppo: {minibatches: 1, epochs: 1}
eval: {every: 0}
checkpoint: {every: 10}
trackers: []
"""


def test_a_real_run_that_is_stopped_with_its_worker_goes_on_where_it_was(start):
    Path("small.yaml").write_text(SMALL)
    Path("prompts.jsonl").write_text('{"prompt": "Once"}\n{"prompt": "Then"}\n')
    words = ["${interpreter}", "-m", "rlalign", "ppo", "--config=small.yaml", "${args}"]
    write({"kl.coef": {"values": [0.1]}}, command=words)
    folder = Path("runs/sweeps/s/trial-0000")
    stopped = start()
    wait_for(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text())
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == 143
    assert json.loads((folder / "run.json").read_text())["status"] == "preempted"
    assert sweep() == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(1, 61))
    assert states() == [("failed", None), ("done", rows[-1]["score"])]
    assert json.loads((folder / "run.json").read_text())["resumed_at"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["kl"]["coef"] == 0.1
