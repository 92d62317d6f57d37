"""Advantages against hand-computed numbers and a brute-force sum."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rlalign.gae import gae

REWARDS = torch.tensor([[0.0, 0.0, 1.0]])
VALUES = torch.tensor([[0.5, 0.2, 0.1]])
ALL = torch.ones(1, 3, dtype=torch.bool)


def test_lambda_one_is_return_minus_value():
    advantages, returns = gae(REWARDS, VALUES, ALL, gamma=1.0, lam=1.0)
    assert_close(advantages, torch.tensor([[0.5, 0.8, 0.9]]))
    assert_close(returns, torch.ones(1, 3))


def test_lambda_zero_is_the_one_step_error():
    advantages, returns = gae(REWARDS, VALUES, ALL, gamma=0.5, lam=0.0)
    assert_close(advantages, torch.tensor([[0.1 - 0.5, 0.05 - 0.2, 1.0 - 0.1]]))
    assert_close(returns, torch.tensor([[0.1, 0.05, 1.0]]))


def test_gamma_and_lambda_by_hand():
    advantages, _ = gae(REWARDS, VALUES, ALL, gamma=0.5, lam=0.8)
    last = 0.9
    middle = (0.05 - 0.2) + 0.4 * last
    first = (0.1 - 0.5) + 0.4 * middle
    assert_close(advantages, torch.tensor([[first, middle, last]]))


def test_other_tokens_are_passed_over():
    """a, tool, tool, b: b's value and advantage reach a as though they stood side by side."""
    mask = torch.tensor([[True, False, False, True]])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 9.0, -9.0, 0.1]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.8)
    assert_close(advantages, torch.tensor([[0.05 - 0.5 + 0.4 * 0.9, 0.0, 0.0, 0.9]]))
    assert_close(returns, torch.tensor([[0.05 + 0.4 * 0.9, 0.0, 0.0, 1.0]]))


def test_rewards_on_other_tokens_count_for_the_action_before():
    mask = torch.tensor([[True, False, True, False]])
    rewards = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    advantages, _ = gae(rewards, torch.zeros(1, 4), mask, gamma=1.0, lam=1.0)
    assert_close(advantages, torch.tensor([[1111.0, 0.0, 1100.0, 0.0]]))


def brute_force(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Equation 16 term by term, one row at a time, over the actions alone."""
    advantages = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        actions = mask[row].nonzero().flatten().tolist()
        ends = [*actions[1:], rewards.shape[1]]
        steps = [float(rewards[row, a:b].sum()) for a, b in zip(actions, ends, strict=True)]
        v = [float(values[row, a]) for a in actions] + [0.0]
        deltas = [steps[i] + gamma * v[i + 1] - v[i] for i in range(len(actions))]
        for i, action in enumerate(actions):
            advantages[row, action] = sum(
                (gamma * lam) ** (k - i) * deltas[k] for k in range(i, len(actions))
            )
    return advantages


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_the_brute_force_sum(gamma, lam):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(20, 9, generator=generator)
    values = torch.randn(20, 9, generator=generator)
    mask = torch.rand(20, 9, generator=generator) < 0.6
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    expected = brute_force(rewards, values, mask, gamma, lam)
    assert_close(advantages, expected, rtol=1e-5, atol=1e-5)
    assert_close(returns, torch.where(mask, expected + values, 0.0), rtol=1e-5, atol=1e-5)


def test_values_off_the_mask_are_not_read():
    mask = torch.tensor([[True, True, False]])
    values = VALUES.masked_fill(~mask, float("nan"))
    advantages, returns = gae(REWARDS, values, mask, 1.0, 0.9)
    assert bool(advantages.isfinite().all()) and bool(returns.isfinite().all())
    assert_close(advantages[0, 1], torch.tensor(1.0 - 0.2))  # the value behind the end is 0
