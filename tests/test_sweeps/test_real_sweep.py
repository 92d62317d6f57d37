"""A sweep of real runs of the smallest real model."""

import json
import signal
from pathlib import Path

from local_sweeps import sweep, wait_for, write

from rlalign.algorithms.ppo import PPORun
from rlalign.config import load_config
from rlalign.sweeps.queue import Queue, sweep_in

SMALL = """
model: {name: glass-tiny, dtype: float32, lora: {r: 2}}
prompts: {path: prompts.jsonl, eval_fraction: 0}
sampling: {max_new_tokens: 8}
rewards: {short: {kind: structure.word_count, min: 2, max: 6}}
train: {iterations: 40, samples: 4, threads: 1}
ppo: {minibatches: 1, epochs: 1}
eval: {every: 0}
checkpoint: {every: 10}
trackers: [wandb]
"""


def test_a_real_run_that_is_stopped_with_its_worker_goes_on_and_ends_in_results(start, capsys):
    Path("small.yaml").write_text(SMALL)
    Path("prompts.jsonl").write_text('{"prompt": "Once"}\n{"prompt": "Then"}\n')
    words = ["${interpreter}", "-m", "rlalign", "ppo", "--config=small.yaml", "${args}"]
    write({"kl.coef": {"values": [0.1]}}, command=words)
    folder = Path("runs/sweeps/the-group")
    run = folder / "trial-0000"
    stopped = start("--name=the-group")
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text())
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == 143
    assert json.loads((run / "run.json").read_text())["status"] == "preempted"
    assert sweep("--name=the-group") == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(1, 41))
    table = Queue(folder, sweep_in(folder), 1, 60).table()
    assert [(t.state, t.value) for t in table] == [("failed", None), ("done", rows[-1]["score"])]
    about = json.loads((run / "run.json").read_text())
    assert about["resumed_at"] and about["wandb"]["mode"] == "offline"
    records = [path.read_bytes() for path in run.glob("wandb/offline-run-*/*.wandb")]
    assert len(records) == 2  # one of each attempt
    for record in records:
        assert b"the-group" in record and b"trial-0000" in record and b"kl.coef" in record
    best = load_config(PPORun, ["--config", f"{folder}/best.yaml"])
    assert best.kl.coef == 0.1 and best.train.iterations == 40 and best.run.dir == "runs"
    assert f"rlalign ppo --config {folder}/best.yaml" in capsys.readouterr().out
