"""Log-probabilities and entropies of tokens from logits, in float32."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class TokenLogprobs(torch.autograd.Function):
    """log softmax(logits)[targets]; going back costs one pass over the logits, not three."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        total = logits.logsumexp(-1, keepdim=True)  # (N, 1)
        ctx.save_for_backward(logits, targets, total)
        return (logits.gather(-1, targets.unsqueeze(-1)) - total).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets, total = ctx.saved_tensors
        grad = grad.unsqueeze(-1)  # (N, 1)
        of_logits = (logits - total).exp_().mul_(-grad)
        return of_logits.scatter_add_(-1, targets.unsqueeze(-1), grad), None


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) float32 log-probability of `targets` (N,) under `logits` (N, V)."""
    logprobs: Tensor = TokenLogprobs.apply(logits.float(), targets)  # type: ignore[no-untyped-call]
    return logprobs


def token_entropy(logits: Tensor) -> Tensor:
    """(N,) float32 entropy in nats of the next-token distribution of `logits` (N, V)."""
    logprobs = logits.float().log_softmax(-1)
    # -inf marks a forbidden token: its probability is 0 and so is its share, but 0 * -inf is NaN.
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(torch.float32).min)).sum(-1)


class Linearised(torch.autograd.Function):
    """A value (N,) whose gradient in x (N, H) is known already: `slope` (N, H), a row a token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grad.unsqueeze(-1).to(slope.dtype)), None, None


def linearised(
    head: nn.Module,
    outputs_of: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]],
    hidden: Tensor,
    targets: Tensor,
) -> dict[str, Tensor]:
    """The outputs (N,) of a chunk, with a slope in `hidden` (N, H) in place of the logits (N, V).

    A token's outputs depend on its own hidden state alone, so their gradients are known as soon as
    the logits are: going forward costs what going back would have, and nothing of the size of the
    vocabulary is kept. Only for a head without gradients; an output may read the logits, or the
    hidden state and what is trained on it, not both.
    """
    leaf = hidden.detach().requires_grad_()
    with torch.enable_grad():
        outputs = outputs_of(hidden, head(leaf), targets)
    kept = {}
    for name, out in outputs.items():
        slope = None
        if out.requires_grad:
            (slope,) = torch.autograd.grad(out.sum(), leaf, retain_graph=True, allow_unused=True)
        is_of_logits = slope is not None
        kept[name] = Linearised.apply(hidden, out.detach(), slope) if is_of_logits else out  # type: ignore[no-untyped-call]
    return kept
