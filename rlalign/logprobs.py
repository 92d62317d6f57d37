"""Log-probabilities and entropies of tokens from logits, in float32."""

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) float32 log-probability of `targets` (N,) under `logits` (N, V)."""
    logits = logits.float()
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def token_entropy(logits: Tensor) -> Tensor:
    """(N,) float32 entropy in nats of the next-token distribution of `logits` (N, V)."""
    logprobs = logits.float().log_softmax(-1)
    # -inf marks a forbidden token: its probability is 0 and so is its share, but 0 * -inf is NaN.
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
