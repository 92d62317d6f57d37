"""Distributions over a few hundred responses, with every divergence known, and samples of them."""

from dataclasses import dataclass

import torch
from builders import seeded
from torch import Tensor

from rlalign.divergences import DIVERGENCES
from rlalign.yardstick.evidence import Evidence

RESPONSES = 400


@dataclass(frozen=True)
class World:
    """A few prompts with their reference, policy and potential; all (P, RESPONSES) float64."""

    log_reference: Tensor
    log_policy: Tensor
    log_potential: Tensor
    feature: Tensor

    @property
    def log_z(self) -> Tensor:
        return (self.log_reference + self.log_potential).logsumexp(1)

    @property
    def log_target(self) -> Tensor:
        return self.log_reference + self.log_potential - self.log_z.unsqueeze(1)

    def divergence(self, name: str, of: Tensor | None = None) -> float:
        """The exact mean over prompts."""
        log_p, log_pi = self.log_target, self.log_policy if of is None else of
        # Any proposal gives the sum; that of the reference has no zeros.
        q = self.log_reference
        return float((q.exp() * DIVERGENCES[name].integrand(log_p - q, log_pi - q)).sum(1).mean())

    def to_reference(self, name: str) -> float:
        q = self.log_reference
        found = DIVERGENCES[name].integrand(torch.zeros_like(q), self.log_policy - q)
        return float((q.exp() * found).sum(1).mean())

    def sample(self, n: int, seed: int) -> Evidence:
        """n of the policy and n of the reference to each prompt."""
        generator, prompts = seeded(seed), len(self.log_policy)
        drawn = [
            torch.multinomial(each.exp(), n, replacement=True, generator=generator)
            for each in (self.log_policy, self.log_reference)
        ]
        ids = torch.cat(drawn, 1)  # (P, 2 n)

        def at(x: Tensor) -> Tensor:
            return x.gather(1, ids).flatten()

        return Evidence(
            log_policy=at(self.log_policy),
            log_reference=at(self.log_reference),
            log_potential=at(self.log_potential),
            features=at(self.feature).unsqueeze(1),
            prompt=torch.arange(prompts).repeat_interleave(2 * n),
            is_policys=(torch.arange(2 * n) < n).repeat(prompts),
        )


def world(prompts: int = 2, hard: bool = False, gap: float = 0.5, seed: int = 0) -> World:
    """A policy that has come most of the way from its reference to its target.

    `gap` is the noise in its log-probabilities; under `hard` a tenth of the responses is allowed,
    and one in a hundred of the policy's is forbidden.
    """
    generator = seeded(seed)
    shape = (prompts, RESPONSES)
    reference = torch.randn(shape, generator=generator, dtype=torch.float64).mul(1.5).log_softmax(1)
    feature = torch.rand(shape, generator=generator, dtype=torch.float64)
    if hard:
        allowed = torch.rand(shape, generator=generator) < 0.1
        potential = torch.where(allowed, 0.0, -torch.inf).double()
        reached = torch.where(allowed, 0.0, -7.0).double()
    else:
        potential = reached = 4.0 * feature
    noise = gap * torch.randn(shape, generator=generator, dtype=torch.float64)
    policy = (reference + reached + noise).log_softmax(1)
    return World(reference, policy, potential, feature)
