"""Prompts and learning rates of whole runs, whatever the number of processes, stopped or not."""

import math

import exact_runs
import hashes
import pytest

PROMPTS = ("a", "b", "c b d", "d", "e", "a a")
EPOCHS = {
    "prompts": PROMPTS,
    "train": {"iterations": 5, "samples": 8},
    "sampling": {"samples_per_prompt": 2},
    "eval": {"every": 0},
}


def order(run) -> list[str]:
    """The prompts in the order in which they were met, each once for its two samples."""
    met = [row["prompt"] for row in hashes.samples(run)]
    assert met[::2] == met[1::2]
    return met[::2]


def test_two_processes_and_a_resumed_run_meet_every_prompt_once_an_epoch(tmp_path):
    one = order(exact_runs.whole(tmp_path / "one", "reinforce", **EPOCHS))
    two = order(exact_runs.whole(tmp_path / "two", "reinforce", 2, **EPOCHS))
    exact_runs.killed(tmp_path, "reinforce", 2, world=2, **EPOCHS)
    resumed = order(exact_runs.whole(tmp_path, "reinforce", 2, **EPOCHS))
    assert one == two == resumed
    assert len(one) == 20
    epochs = [one[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(epoch) == sorted(PROMPTS) for epoch in epochs)
    assert epochs[0] != epochs[1]


CLOSED_FORM = {
    "linear": [1 / 3, 2 / 3, 1.0, 0.7, 0.4],  # two of warm-up, then from 1 to 0.1 over three
    "cosine": [1 / 3, 2 / 3, *(0.1 + 0.45 * (1 + math.cos(math.pi * p / 3)) for p in range(3))],
    "constant": [1 / 3, 2 / 3, 1.0, 1.0, 1.0],
}


OTHERS = [("linear", "two"), ("cosine", "micro-batches"), ("cosine", "resumed")]


@pytest.mark.parametrize(
    ("schedule", "way"), [*((schedule, "one") for schedule in CLOSED_FORM), *OTHERS]
)
def test_the_learning_rate_is_its_closed_form(tmp_path, schedule, way):
    optim = {"schedule": schedule, "warmup_iterations": 2, "final_lr_fraction": 0.1}
    sections = {
        "train": {"iterations": 5, "samples": 16},
        "eval": {"every": 0},
        "reinforce": {"lr": 1e-3, "minibatches": 2},
        "optim": optim | ({"micro_batch_tokens": 16} if way == "micro-batches" else {}),
    }
    world = 2 if way == "two" else 1
    if way == "resumed":
        exact_runs.killed(tmp_path, "reinforce", 1, **sections)
        exact_runs.killed(tmp_path, "reinforce", 3, **sections)
    rows = hashes.metrics(exact_runs.whole(tmp_path, "reinforce", world, **sections))
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 * x for x in CLOSED_FORM[schedule]])
    assert [row["optimizer_steps"] for row in rows] == [2, 4, 6, 8, 10]
