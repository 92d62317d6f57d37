"""Rewards as a part of a run that can be repeated and resumed to the same numbers."""

import math
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from test_resume import metrics, run

from rewards import load_file
from rewards.contract import RewardError

STATEFUL = """
from rewards import reward


@reward("counting.responses", cache=False)
class Responses:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, completions: list[str]) -> list[float]:
        self.count += len(completions)
        return [float(self.count)] * len(completions)

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]
"""


def rows_of(folder: Path, reward: Any, **sections: Any) -> list[dict[str, Any]]:
    """A short run's rows without what the clock says; it goes on where one was broken off."""
    given = {"eval": {"every": 2, "samples": 8}, "checkpoint": {"every": 1}, **sections}
    return metrics(run(folder, reward=reward, iterations=3, **given))


def noisy(breaks_at: int = 0) -> Any:
    """A reward of chance from every generator, that raises in its nth call."""
    calls = 0

    def noisy(completions: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == breaks_at:
            raise ValueError("the power went out")
        return [random.random() + np.random.rand() + float(torch.rand(())) for _ in completions]

    return noisy


def test_a_reward_that_draws_gives_the_same_run_again_and_over_a_resume(tmp_path):
    unbroken = rows_of(tmp_path / "unbroken", noisy())
    random.seed(8)  # as if the process were another
    assert rows_of(tmp_path / "again", noisy()) == unbroken
    with pytest.raises(RewardError, match="the power went out"):
        # Two probes, the reference, two iterations, an evaluation; then the third iteration.
        rows_of(tmp_path / "broken", noisy(breaks_at=7))
    np.random.seed(8)
    assert rows_of(tmp_path / "broken", noisy()) == unbroken
    scores = [row["score"] for row in unbroken if "score" in row]
    assert len(scores) == 3 == len({*scores})


def sparse(completions: list[str]) -> list[float]:
    return oracle.sparse(completions)


def hostile(completions: list[str]) -> list[float]:
    """The same values, from a reward that changes whatever it can."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    np.seterr(all="raise")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir("/")
    return oracle.sparse(completions)


def test_a_reward_that_changes_its_process_leaves_the_run_its_numbers(tmp_path):
    plain, changing = rows_of(tmp_path / "plain", sparse), rows_of(tmp_path / "changing", hostile)
    assert changing == [
        {key.replace("sparse", "hostile"): value for key, value in row.items()} for row in plain
    ]


def test_evaluations_leave_no_trace_in_a_reward_that_counts(tmp_path):
    (tmp_path / "counting.py").write_text(STATEFUL)
    load_file(tmp_path / "counting.py")
    rewards = {"count": {"kind": "counting.responses", "weight": 0}}
    rows = rows_of(tmp_path, sparse, rewards=rewards)
    assert [row.get("reward/count") for row in rows] == [None, 16, 32, 48]
    # An evaluation goes on from where training is, and is then forgotten.
    assert [row.get("eval/reward/count") for row in rows] == [8, None, 40, 56]


def test_a_reward_that_never_applies_has_no_mean_and_spoils_no_number(tmp_path):
    def never(completions: list[str]) -> list[float | None]:
        return [None] * len(completions)

    rows = rows_of(tmp_path, never, eval={"every": 1, "samples": 1})
    for row in rows:
        assert {key for key in row if key.endswith("reward/never")} == set()
        assert row.get("reward/never/valid", 0) == 0
        assert all(isinstance(v, int | float) and math.isfinite(v) for v in row.values()), row
    assert rows[-1]["score"] == 0.0 and rows[-1]["reward/never/valid"] == 0.0
    assert any((tmp_path / "a/plots").iterdir())
