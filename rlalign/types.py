"""The data that flows from a prompt to an update.

Shapes: B samples, P prompt tokens (left-padded), T response tokens (right-padded), V vocabulary,
R rewards. Masks are bool and true on the tokens they keep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptBatch:
    prompt_ids: Tensor  # (B, P) int64
    prompt_mask: Tensor  # (B, P)
    texts: Sequence[str]  # B prompts as the rewards see them
    columns: Mapping[str, Sequence[Any]]  # every other column of the data, B values each

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]


@dataclass(frozen=True)
class Rollout:
    prompts: PromptBatch
    response_ids: Tensor  # (B, T) int64
    response_mask: Tensor  # (B, T), true through the token that ends the response
    action_mask: Tensor  # (B, T), the tokens that the policy chose
    logprobs: Tensor | None  # (B, T) float32, the sampler's: the denominator of importance weights
    finished: Tensor  # (B,), ended by EOS or a stop string rather than by the length limit
    group: Tensor  # (B,) int64, the same number for samples of one prompt
    policy_step: int  # optimiser steps behind the policy that sampled
    texts: Sequence[str]  # B responses, special tokens left out

    def __len__(self) -> int:
        return self.response_ids.shape[0]


@dataclass(frozen=True)
class ScoredRollout:
    rollout: Rollout
    rewards: Tensor  # (B, R) float32, NaN where a reward did not apply
    valid: Tensor  # (B, R)
    score: Tensor  # (B,) float32: weighted, clipped, less the missing-EOS penalty; never normalised
    token_rewards: Tensor  # (B, T) float32, sums to the score; the KL is not in it
    ref_logprobs: Tensor  # (B, T) float32

    def __len__(self) -> int:
        return len(self.rollout)


@dataclass(frozen=True)
class Norm:
    """Denominators of a loss: counts over every rank's part of one minibatch."""

    tokens: float
    sequences: float


@dataclass(frozen=True)
class LossOutput:
    loss: Tensor  # scalar, a sum over this micro-batch divided by the counts in Norm
    stats: dict[str, Tensor]  # scalars divided likewise: adding them up gives the global mean


__all__ = ["LossOutput", "Norm", "PromptBatch", "Rollout", "ScoredRollout", "replace", "torch"]
