"""A reward may seed and draw: the run's random numbers are what they were, and its own are the
call's seed's."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards import RewardError, RewardSet, load_file
from rewards.compose import parse_entries

DRAWING_FILE = """
import asyncio
import random

import numpy as np
import torch

from rewards import reward


def draw():
    return random.random() + float(np.random.rand()) + float(torch.rand(()))


random.seed(0), np.random.seed(0), torch.manual_seed(0)
AT_IMPORT = draw()


@reward("drawing.function", cache=False)
def function(completions: list[str], *, factor: float = 1.0) -> list[float]:
    return [factor * draw() for _ in completions]


@reward("drawing.built", cache=False)
class Built:
    def __init__(self, *, factor: float = 1.0) -> None:
        self.start = factor * draw()

    def load(self) -> None:
        self.loaded = draw()

    def __call__(self, completions: list[str]) -> list[float]:
        return [self.start + 10 * self.loaded + 100 * AT_IMPORT for _ in completions]


async def waits(completions, **kwargs):
    async def one():
        await asyncio.sleep(0.001)
        return draw()

    return [await asyncio.create_task(one()) for _ in completions]
"""


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seeded() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def seeds_and_draws(completions):
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return [sum(draws()) for _ in completions]


def seeds_and_fails(completions):
    seeds_and_draws(completions)
    raise ValueError


@pytest.fixture
def drawing_file(tmp_path: Path) -> Path:
    path = tmp_path / "drawing.py"
    path.write_text(DRAWING_FILE)
    load_file(path)
    return path


@pytest.mark.parametrize("function", [seeds_and_draws, seeds_and_fails])
def test_a_reward_that_seeds_and_draws_changes_nothing_outside(function):
    seeded()
    expected = draws()
    seeded()
    rewards = RewardSet([], [function])
    if function is seeds_and_fails:
        with pytest.raises(RewardError):
            rewards([""], ["a"])
    else:
        rewards([""], ["a"])
    assert draws() == expected


def test_importing_building_loading_and_awaiting_change_nothing_outside(tmp_path):
    seeded()
    expected = draws()
    seeded()
    path = tmp_path / "drawing.py"
    path.write_text(DRAWING_FILE)
    load_file(path)
    rewards = RewardSet(parse_entries({"a": {"kind": "drawing.built"}, "b": {"kind": "waits"}}))
    rewards([""] * 2, ["x", "y"])
    assert draws() == expected


def test_a_reward_draws_on_where_its_last_call_stopped():
    def draw(completions):
        return [sum(draws()) for _ in completions]

    seeded()
    numbers = [sum(draws()) for _ in range(3)]
    seeded()
    rewards = RewardSet([], [draw])
    first = rewards([""] * 2, ["a", "b"]).values[:, 0].tolist()
    draws()  # what the run draws in between is not the reward's
    assert [*first, *rewards([""], ["c"]).values[:, 0].tolist()] == numbers


ALONE = {"kind": "drawing.function"}
EVERY_WAY = {
    "called": ALONE,
    "built": {"kind": "drawing.built"},
    "per_prompt": {**ALONE, "factor": {"column": "by"}},
    "built_later": {"kind": "drawing.built", "factor": {"column": "by"}},
    "beside": ALONE,
    "both": {"kind": "combine.all", "parts": {"a": ALONE, "b": ALONE}},
    "waits": {"kind": "waits"},
}
ISOLATED = {n: {**EVERY_WAY[n], "isolate": True} for n in ("called", "built", "per_prompt")}


@pytest.mark.parametrize("section", [EVERY_WAY, ISOLATED], ids=["in process", "isolated"])
def test_a_seed_gives_the_same_values_whatever_was_called_before(drawing_file, section):
    data = [""] * 3, ["a", "b", "c"], {"by": [1.0, 2.0, 2.0]}

    def made() -> RewardSet:
        return RewardSet(parse_entries(section), seed=5)

    unbroken, resumed = made(), made()
    for seed in (1, 2):
        unbroken([""] * 2, ["x", "y"], {"by": [3.0, 3.0]}, seed=seed)
    went_on = unbroken(*data, seed=3).values
    draws()  # the run's generators are elsewhere by then
    anew, other = resumed(*data, seed=3).values, resumed(*data, seed=4).values
    loaded_otherwise = RewardSet(parse_entries({"built": section["built"]}), seed=6)
    assert loaded_otherwise(*data, seed=3).values[0, 0] != anew[0, 1]
    for rewards in (unbroken, resumed, loaded_otherwise):
        rewards.close()
    assert went_on.tolist() == anew.tolist()
    called = [i for i, name in enumerate(unbroken.names) if not name.startswith("built")]
    assert (other[:, called] != anew[:, called]).all()  # and it is the seed that gives them
    assert len({*anew[:, called].flat}) == 3 * len(called)  # each reward and sample has its own
    by_prompt = anew[:, unbroken.names.index("per_prompt")]
    assert by_prompt[1] != 2.0 * by_prompt[0]  # and so has each group of prompts
    assert anew[0, 1] == other[0, 1]  # what was drawn while loading stays


def test_a_worker_that_starts_again_draws_the_same(drawing_file):
    rewards = RewardSet(parse_entries({"x": {"kind": "drawing.function", "isolate": True}}), seed=5)
    before = rewards([""] * 2, ["a", "b"], seed=3).values
    os.kill(rewards._rewards[0]._function._worker._process.pid, signal.SIGKILL)
    rewards._rewards[0]._function._worker._process.wait()
    after = rewards([""] * 2, ["a", "b"], seed=3).values
    rewards.close()
    alone = RewardSet(parse_entries({"x": {"kind": "drawing.function"}}), seed=5)
    assert before.tolist() == after.tolist() == alone([""] * 2, ["a", "b"], seed=3).values.tolist()
