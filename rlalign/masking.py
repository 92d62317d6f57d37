"""Sums, means and whitening over the tokens that a mask keeps."""

from collections.abc import Callable

import torch
from torch import Tensor

SumOverRanks = Callable[[Tensor], Tensor]


def one_rank(x: Tensor) -> Tensor:
    """The sum over ranks of a run with one process: the tensor itself."""
    return x


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of `x` where `mask`; what lies outside, NaN included, does not count."""
    return torch.where(mask, x, 0.0).sum()


def whole_response(x: Tensor, mask: Tensor) -> Tensor:
    """(B,) float64 sum over the actions of (B, T): of log-probabilities, the whole response's."""
    return torch.where(mask, x, 0.0).double().sum(1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` where `mask`; 0 over an empty mask."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def masked_moments(
    x: Tensor, mask: Tensor, sum_over_ranks: SumOverRanks = one_rank
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over every rank's kept entries, float32; (0, 0) over an empty mask.

    Two passes, because the difference of large sums would lose a small variance in float32.
    """
    count = sum_over_ranks(mask.sum().float()).clamp(min=1)
    mean = sum_over_ranks(masked_sum(x, mask)) / count
    variance = sum_over_ranks(masked_sum((x - mean) ** 2, mask)) / count
    return mean, variance


def masked_whiten(
    x: Tensor, mask: Tensor, sum_over_ranks: SumOverRanks = one_rank
) -> tuple[Tensor, Tensor]:
    """(B, T) centred and scaled over every rank's kept tokens, and the factor that scaled it.

    Biased variance; 0 off the mask. A single token, or tokens that are all equal, become 0.
    """
    mean, variance = masked_moments(x, mask, sum_over_ranks)
    # Below this the spread is rounding noise of the mean, and whitening would blow it up to 1.
    is_constant = variance <= (1e-6 * (1.0 + mean.abs())) ** 2
    factor = torch.where(is_constant, 0.0, (variance + 1e-8).rsqrt())
    return torch.where(mask, (x - mean) * factor, 0.0), factor


def last_index(mask: Tensor) -> Tensor:
    """(B,) position of the last kept token of each row; 0 in an empty row."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return (positions * mask).amax(1)
