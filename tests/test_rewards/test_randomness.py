"""A reward may seed and draw as it likes: the run's random numbers are what they were."""

import random

import numpy as np
import pytest
import torch

from rewards import RewardError, RewardSet, reward
from rewards.compose import RewardEntry


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


@pytest.mark.usefixtures("own_registry")
def test_loading_a_reward_changes_nothing_outside():
    @reward("own.seeding")
    class Seeding:
        def load(self) -> None:
            seeds_and_draws([""])

        def __call__(self, completions: list[str]) -> list[float]: ...

    seeded()
    expected = draws()
    seeded()
    RewardSet([RewardEntry("x", "own.seeding")])
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
