"""Exact expectations: every response of up to four tokens, each weighed by its probability."""

import itertools

import builders
import oracle
import torch
from torch import Tensor

from rlalign.policy import Policy, logprobs_only, tensors
from rlalign.types import Rollout

LENGTH = 4
PROMPT = "c b"


def every_response(length: int = LENGTH) -> Rollout:
    """The responses to one prompt of fewer letters and EOS, or that many: 781 of length 4."""
    letters = [
        pick for n in range(length + 1) for pick in itertools.product(oracle.LETTERS, repeat=n)
    ]
    texts = [" ".join(pick) for pick in letters]
    return builders.rollout(
        texts, prompts=[PROMPT] * len(texts), finished=[len(pick) < length for pick in letters]
    )


def token_logprobs(policy: Policy, rollout: Rollout) -> Tensor:
    """(S, T) with a graph to the policy's parameters."""
    return policy(*tensors(rollout), logprobs_only)["logprobs"]


def gradient(policy: Policy, total: Tensor) -> Tensor:
    """Of a scalar, over all of the language model's parameters, as one vector."""
    parts = torch.autograd.grad(total, [p for p in policy.lm.parameters() if p.requires_grad])
    return torch.cat([part.flatten() for part in parts])


def distance(ours: Tensor, exact: Tensor) -> float:
    """How far two gradients are apart, as a share of the second one's length."""
    return float((ours - exact).norm() / exact.norm())
