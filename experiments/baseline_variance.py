"""How noisy a policy gradient toward a target is, with a baseline and without, exactly.

    python experiments/baseline_variance.py

A small model whose 781 responses to a prompt are enumerated is asked for a phrase in every one
(base rate about an eighth) and moved along the exact gradient of KL(P_T‖π). On the way, for each
divergence: the variance of one sample's gradient, summed over all parameters, without a baseline
and with the mean of the pseudo-reward as one; and, in brackets, the latter over the squared length
of the divergence's own gradient, which has no scale: so many samples make noise and signal equal.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlalign.divergences import DIVERGENCES

LETTERS, LENGTH, EOS = 5, 4, 5
STEPS = (0, 15, 40, 400)  # of Adam at 1e-2, after which the variances are taken
SHOWN = ("forward_kl", "js", "tv", "reverse_kl")


def main() -> None:
    torch.manual_seed(0)
    ids, mask, allowed = responses()
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=LETTERS + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=16, bos_token_id=None,
            eos_token_id=EOS, initializer_range=0.1, attn_implementation="eager",
        )
    )  # fmt: skip
    with torch.no_grad():
        reference = log_of(lm, ids, mask)
        # Smoothed, so that every divergence is finite.
        target = (reference + torch.where(allowed, 0.0, -8.0)).log_softmax(0)
        base = float((reference.exp() * allowed).sum())
    print(f"base rate {base:.3f}; variance of a sample's gradient, without and with a baseline")
    print("| KL(P_T‖π) | " + " | ".join(SHOWN) + " |\n| --- |" + " --- |" * len(SHOWN))
    for distance in along_the_way(lm, ids, mask, target):
        print(f"| {distance:.3f} | " + " | ".join(row(lm, ids, mask, target)) + " |", flush=True)


def responses() -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask (S, T) of every response behind the prompt `0`, and which of them say `3 1`."""
    rows, lengths, allowed = [], [], []
    for n in range(LENGTH + 1):
        for letters in itertools.product(range(LETTERS), repeat=n):
            row = [*letters, EOS][:LENGTH]
            rows.append([0, *row, *[EOS] * (LENGTH - len(row))])
            lengths.append(len(row))
            allowed.append((3, 1) in itertools.pairwise(letters))
    mask = torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)
    return torch.tensor(rows), mask, torch.tensor(allowed)


def log_of(lm: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """(S,) float64 log-probability of each response."""
    logits = lm(input_ids=ids).logits[:, :-1].double()  # position t predicts token t + 1
    by_token = logits.log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
    return torch.where(mask, by_token, 0.0).sum(1)


def along_the_way(lm: nn.Module, ids: Tensor, mask: Tensor, target: Tensor) -> Iterator[float]:
    """KL(P_T‖π) after each of STEPS."""
    optimizer = torch.optim.Adam(lm.parameters(), lr=1e-2)
    for step in range(STEPS[-1] + 1):
        loss = (target.exp() * (target - log_of(lm, ids, mask))).sum()
        if step in STEPS:
            yield float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / STEPS[-1])
        optimizer.step()


def row(lm: nn.Module, ids: Tensor, mask: Tensor, target: Tensor) -> list[str]:
    """Each divergence's two variances."""
    own = log_of(lm, ids, mask).detach()
    gradients = per_response(lm, ids, mask)  # (S, parameters)
    squares, p = (gradients**2).sum(1), own.exp()
    cells = []
    for name in SHOWN:
        reward = DIVERGENCES[name].reward(own - target)
        mean = (p * reward).sum()
        length = float(((p * reward) @ gradients).pow(2).sum())
        bare, based = (
            float((p * (reward - b) ** 2 * squares).sum()) - length
            for b in (torch.zeros_like(mean), mean)
        )
        cells.append(f"{bare:.3g} → {based:.3g} ({based / length:.3g})")
    return cells


def per_response(lm: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """(S, parameters) float64 gradient of each response's log-probability."""
    found = []
    for i in range(len(ids)):
        (value,) = log_of(lm, ids[i : i + 1], mask[i : i + 1])
        parts = torch.autograd.grad(value, list(lm.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found).double()


if __name__ == "__main__":
    main()
