"""What is known of the responses that a yardstick rests on: who drew them, and how likely they are.

Each prompt's samples of the policy and of its reference are taken as one set, drawn from the
mixture m of the two in the proportion of their counts (the balance heuristic; Veach & Guibas 1995,
Owen & Zhou 2000). So pi / m and a / m are bounded, and a mode of the target that the policy has
lost is still seen where the reference shows it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """N responses to P prompts; all float64 on the CPU but for the last two."""

    log_policy: Tensor  # (N,) log pi(y|x) of the whole response
    log_reference: Tensor  # (N,) log a(y|x)
    log_potential: Tensor  # (N,) log P_T / a up to log Z(x); -inf where it is forbidden
    features: Tensor  # (N, R)
    prompt: Tensor  # (N,) int64, 0..P-1
    is_policys: Tensor  # (N,) bool: drawn by the policy, else by the reference
    fitted: tuple[int, ...] = ()  # columns of the features whose lambda these samples gave

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def prompts(self) -> int:
        return int(self.prompt.max()) + 1 if len(self) else 0

    @property
    def log_mixture(self) -> Tensor:
        """(N,) log density of what drew the samples of a response's prompt."""
        drawn = torch.bincount(self.prompt, minlength=self.prompts).double()
        by_policy = torch.bincount(self.prompt[self.is_policys], minlength=self.prompts).double()
        share = (by_policy / drawn)[self.prompt]
        return torch.logaddexp(
            share.log() + self.log_policy, (1.0 - share).log() + self.log_reference
        )

    @property
    def log_weights(self) -> Tensor:
        """(N,) log P / m, whose mean is Z(x)."""
        return self.log_potential + self.log_reference - self.log_mixture

    def rows(self, index: Tensor) -> "Evidence":
        return Evidence(
            self.log_policy[index],
            self.log_reference[index],
            self.log_potential[index],
            self.features[index],
            self.prompt[index],
            self.is_policys[index],
            self.fitted,
        )

    def by_prompt(self) -> Iterator["Evidence"]:
        """Each prompt's samples, in turn, numbered 0."""
        for number in range(self.prompts):
            part = self.rows((self.prompt == number).nonzero().squeeze(1))
            yield replace(part, prompt=torch.zeros_like(part.prompt))

    def with_potential(self, log_potential: Tensor) -> "Evidence":
        return replace(self, log_potential=log_potential)
