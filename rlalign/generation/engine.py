"""What every engine is, and how what it drew becomes a rollout."""

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlalign.generation.sampling import Sampler, sample_inverse_cdf
from rlalign.policy import Policy
from rlalign.types import PromptBatch, Rollout


class RolloutEngine(Protocol):
    """Samples from a policy, neutrally: temperature and nothing else.

    No field of the model's own generation configuration is read (no top-k, top-p or repetition
    penalty), so what is sampled is the distribution that the log-probabilities describe.
    """

    talks: bool  # whether the processes must call `generate` at the same time

    def sync(self, policy: Policy, policy_step: int = 0) -> None:
        """Sample from `policy` as it stands from now on, after `policy_step` optimiser steps."""

    def generate(
        self,
        prompts: PromptBatch,
        n: int,
        generator: torch.Generator,
        sampler: Sampler = sample_inverse_cdf,
    ) -> Rollout:
        """`n` responses to each prompt, samples of one prompt side by side."""

    def close(self) -> None:
        """Let go of the policy and of whatever serves it."""


def make_rollout(
    prompts: PromptBatch,
    ids: Tensor,
    logprobs: Tensor | None,
    finished: Tensor,
    group: Tensor,
    policy_step: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Rollout:
    """The rollout of responses `ids` (B, T), -1 behind the end of each; one prompt a response.

    Ends are marked by -1 and not by an id: the pad id of many tokenizers is their EOS id.
    """
    mask = ids >= 0  # (B, T)
    width = max(int(mask.sum(1).amax()), 1)
    ids, mask = ids[:, :width].clamp(min=0), mask[:, :width]
    lengths = mask.sum(1).tolist()
    rows = [row[:n] for row, n in zip(ids.tolist(), lengths, strict=True)]
    return Rollout(
        prompts=prompts,
        response_ids=ids,
        response_mask=mask,
        action_mask=mask,
        logprobs=None if logprobs is None else logprobs[:, :width],
        finished=finished,
        group=group,
        policy_step=policy_step,
        texts=texts_of(rows, tokenizer),
    )


def texts_of(ids: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each row of ids, exactly as written, special tokens left out."""
    texts: list[str] = tokenizer.batch_decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return texts
