"""Generalised advantage estimation over the tokens that the policy chose."""

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T) of per-token `rewards` and `values` (Schulman 2016, eq. 16).

    `mask` marks actions. Other tokens are no steps of the decision process: the value and the
    running sum pass over them unchanged, and a reward on them counts for the action before. The
    value behind the last action is 0. Returns are advantages + values; both are 0 off the mask.
    """
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])  # (B,)
    next_value = torch.zeros_like(running)
    pending = torch.zeros_like(running)  # rewards on tokens behind the current action
    for t in range(rewards.shape[1] - 1, -1, -1):
        is_action = mask[:, t]
        pending = pending + rewards[:, t]
        delta = pending + gamma * next_value - values[:, t]
        running = torch.where(is_action, delta + gamma * lam * running, running)
        next_value = torch.where(is_action, values[:, t], next_value)
        pending = torch.where(is_action, 0.0, pending)
        advantages[:, t] = running
    advantages = torch.where(mask, advantages, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def value_error(values: Tensor, old_values: Tensor, returns: Tensor, bound: float | None) -> Tensor:
    """(B, T) half the squared error; the worse of the free value's and the clipped one's.

    A clipped value lies within `bound` of the rollout's.
    """
    error = (values - returns) ** 2
    if bound is not None:
        near = old_values + (values - old_values).clamp(-bound, bound)
        error = torch.max(error, (near - returns) ** 2)
    return 0.5 * error
