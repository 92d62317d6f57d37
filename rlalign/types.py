"""The data that flows from a prompt to an update.

Shapes: B samples, P prompt tokens (left-padded), T response tokens (right-padded), V vocabulary,
R rewards. Masks are bool and true on the tokens they keep.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewards.contract import Span
from rewards.trl_style import Logged


@dataclass(frozen=True)
class PromptBatch:
    prompt_ids: Tensor  # (B, P) int64
    prompt_mask: Tensor  # (B, P)
    texts: Sequence[str]  # B prompts as the rewards see them
    columns: Mapping[str, Sequence[Any]]  # every other column of the data, B values each
    messages: Sequence[Any] = ()  # B prompts that are chats, as messages; None for a plain one

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]

    def rows(self, index: Tensor) -> "PromptBatch":
        """The chosen prompts, without columns that are padding in all of them."""
        mask = self.prompt_mask[index]
        first = mask.shape[1] - int(mask.sum(1).amax())
        chosen = index.tolist()
        return PromptBatch(
            prompt_ids=self.prompt_ids[index, first:],
            prompt_mask=mask[:, first:],
            texts=[self.texts[i] for i in chosen],
            columns={name: [column[i] for i in chosen] for name, column in self.columns.items()},
            messages=[self.messages[i] for i in chosen] if self.messages else (),
        )


@dataclass(frozen=True)
class Recorded:
    """What a policy said of its tokens as it drew them: what a pass over them would say again."""

    weights: tuple[str, int]  # `Policy.weights_id` of what sampled
    tokens: tuple[Tensor, ...]  # prompt and response ids and masks, as they were drawn
    outputs: Mapping[str, Tensor]  # (B, T) float32: logprobs, entropy, values; 0 off the mask

    def rows(self, index: Tensor, width: int) -> "Recorded":
        """Of the chosen samples' first `width` tokens."""
        prompts, prompt_mask, responses, mask = self.tokens
        first = prompts.shape[1] - int(prompt_mask[index].sum(1).amax())
        return Recorded(
            self.weights,
            (
                prompts[index, first:],
                prompt_mask[index, first:],
                responses[index, :width],
                mask[index, :width],
            ),
            {name: x[index, :width] for name, x in self.outputs.items()},
        )

    def holds(self, weights: tuple[str, int], tokens: tuple[Tensor, ...]) -> bool:
        """Whether it says of these weights what they make of these tokens."""
        if self.weights != weights:
            return False
        return all(map(torch.equal, self.tokens, tokens))


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
    recorded: Recorded | None = None  # None where a pass of the trainer gives other numbers

    def __len__(self) -> int:
        return self.response_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """(B,) real tokens of prompt and response together."""
        return self.prompts.prompt_mask.sum(1) + self.response_mask.sum(1)

    def rows(self, index: Tensor) -> "Rollout":
        """The chosen samples, without columns that are padding in all of them."""
        mask = self.response_mask[index]
        width = max(int(mask.sum(1).amax()), 1)
        return Rollout(
            prompts=self.prompts.rows(index),
            response_ids=self.response_ids[index, :width],
            response_mask=mask[:, :width],
            action_mask=self.action_mask[index, :width],
            logprobs=None if self.logprobs is None else self.logprobs[index, :width],
            finished=self.finished[index],
            group=self.group[index],
            policy_step=self.policy_step,
            texts=[self.texts[i] for i in index.tolist()],
            recorded=None if self.recorded is None else self.recorded.rows(index, width),
        )


@dataclass(frozen=True)
class ScoredRollout:
    rollout: Rollout
    rewards: Tensor  # (B, R) float64 on the CPU, NaN where a reward did not apply
    valid: Tensor  # (B, R)
    score: Tensor  # (B,) float32: weighted, clipped, less the missing-EOS penalty; never normalised
    token_rewards: Tensor  # (B, T) float32, sums to the score; the KL is not in it
    ref_logprobs: Tensor  # (B, T) float32
    log_potential: Tensor  # (B,) float64 log P_T / reference, up to log Z(x); -inf: it is forbidden
    features: Tensor  # (B, R) float64 on the CPU: rewards as the target reads them; (B, 0): none
    # samples that a reward with on_error: skip or value failed on, by its name
    failures: Mapping[str, int] = field(default_factory=dict)
    # as they were, of the rewards whose weight is on a schedule
    weights: Mapping[str, float] = field(default_factory=dict)
    logged: Logged = field(default_factory=Logged)  # by rewards that are written for TRL
    own_spans: Sequence[Sequence[Sequence[Span]]] = ()  # (R, B), as the rewards returned them

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
