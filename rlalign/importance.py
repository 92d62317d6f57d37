"""Importance weights between what sampled a response and what learns from it."""

from typing import Literal

import torch
from torch import Tensor

from rlalign.kl import safe_exp
from rlalign.masking import SumOverRanks, masked_moments, one_rank

DEFAULT_CAP = 2.0


def sampler_cap(setting: float | Literal["auto"] | None, engine: str) -> float | None:
    """The cap that `sampler_correction` means under an engine; None: no correction."""
    if setting == "auto":
        return DEFAULT_CAP if engine == "vllm" else None
    return setting


def sampler_weights(
    old_logprobs: Tensor, sampler_logprobs: Tensor | None, mask: Tensor, cap: float | None
) -> Tensor:
    """(B, T) weight of each token: min(trainer's probability / sampler's, cap); 1 where off.

    Truncated importance sampling token by token (Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training"). The cap bounds the variance at the price of a
    bias where the sampler all but misses a token. Exactly 1 where the two agree, and off the mask.
    """
    if sampler_logprobs is None or cap is None:
        return torch.ones_like(old_logprobs)
    gap = torch.where(mask, old_logprobs - sampler_logprobs, 0.0)
    return safe_exp(gap).clamp(max=cap).detach()


def sampler_stats(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor | None,
    mask: Tensor,
    cap: float | None,
    sum_over_ranks: SumOverRanks = one_rank,
) -> dict[str, float]:
    """How far the sampler is from the trainer, over every rank's kept tokens, by metric key."""
    if sampler_logprobs is None:
        return {}
    gap, _ = masked_moments((old_logprobs - sampler_logprobs).abs(), mask, sum_over_ranks)
    stats = {"sampler_gap": float(gap)}
    if cap is not None:
        weights = sampler_weights(old_logprobs, sampler_logprobs, mask, cap)
        mean, _ = masked_moments(weights, mask, sum_over_ranks)
        capped, _ = masked_moments((weights >= cap).float(), mask, sum_over_ranks)
        stats |= {"sampler_weight": float(mean), "sampler_capped": float(capped)}
    return stats
