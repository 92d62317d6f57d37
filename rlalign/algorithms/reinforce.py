"""REINFORCE with a leave-one-out baseline (RLOO): the plain policy gradient on whole responses.

Williams 1992; Kool et al. 2019; Ahmadian et al. 2024. The KL to the reference is part of what is
rewarded, so with a price above 0 it descends KL(policy || P_T); at 0 nothing holds it, and it
collapses onto whatever scores most.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rlalign.baseline import leave_one_out
from rlalign.batches import rows_of, shuffled_parts
from rlalign.behaviour import behaviour
from rlalign.config import ConfigError
from rlalign.importance import sampler_cap, sampler_stats, sampler_weights
from rlalign.kl import KLController
from rlalign.masking import SumOverRanks, masked_moments, one_rank, whole_response
from rlalign.optimum import shared_warnings
from rlalign.partition import Gather, same
from rlalign.policy import Policy, logprobs_and_values, tensors
from rlalign.settings.method_sections import ReinforceRun
from rlalign.sizes import MOST
from rlalign.types import LossOutput, Norm, Rollout, ScoredRollout


@dataclass(frozen=True)
class ReinforceBatch:
    rollout: Rollout
    log_old: Tensor  # (B,) of whole responses, before the update
    log_ref: Tensor  # (B,)
    score: Tensor  # (B,)
    baseline: Tensor  # (B,) of the gain, score - beta log(policy / reference)
    sampler_weight: Tensor  # (B, T) correction for a sampler that is not the trainer

    def rows(self, index: Tensor) -> "ReinforceBatch":
        """The chosen samples, trimmed to the longest of them."""
        return ReinforceBatch(**rows_of(self, index))


class Reinforce:
    """Maximises E[score] - beta KL(policy | reference) by plain policy gradients."""

    name, title = "reinforce", "REINFORCE"
    smooths = True
    reads_tokens = False

    def __init__(self, config: ReinforceRun) -> None:
        check(config)
        self.config = config.reinforce
        self.warnings = shared_warnings(config)
        self.controller = KLController(config.kl)
        self.sampler_cap = sampler_cap(self.config.sampler_correction, config.sampling.engine)
        self.sum_over_ranks: SumOverRanks = one_rank
        self.gather: Gather = same
        self.budget = MOST
        self.last_kl = torch.zeros(0)  # (B,) nats of each response prepared last
        self._measured_kl = 0.0

    @property
    def kl_coef(self) -> float:
        return self.controller.coef

    @property
    def last_log_ratio(self) -> Tensor:
        return -self.last_kl  # what draws is the policy

    def proposal(self, policy: Policy) -> AbstractContextManager[None]:
        return nullcontext()

    # -- before the update ---------------------------------------------------------------------

    @torch.no_grad()
    def prepare(
        self, policy: Policy, scored: ScoredRollout
    ) -> tuple[ReinforceBatch, dict[str, float]]:
        """Each response's log-probabilities and baseline, and what to log about them."""
        rollout, mask = scored.rollout, scored.rollout.action_mask
        old, read = behaviour(policy, rollout, self.budget)
        log_old = whole_response(old["logprobs"], mask)
        log_ref = whole_response(scored.ref_logprobs, mask)
        self.last_kl = log_old - log_ref
        gain = scored.score.double() - self.kl_coef * self.last_kl
        baseline = torch.zeros_like(gain)
        if self.config.baseline == "leave_one_out":
            baseline = leave_one_out(gain, rollout.group)
        everyone = torch.ones_like(gain, dtype=torch.bool)
        kl, _ = masked_moments(self.last_kl.float(), everyone, self.sum_over_ranks)
        _, spread = masked_moments((gain - baseline).float(), everyone, self.sum_over_ranks)
        entropy, _ = masked_moments(old["entropy"], mask, self.sum_over_ranks)
        self._measured_kl = float(kl)
        sampler = old["logprobs"], rollout.logprobs
        weight = sampler_weights(*sampler, mask, self.sampler_cap)
        score = scored.score.double()
        batch = ReinforceBatch(rollout, log_old, log_ref, score, baseline, weight)
        return batch, {
            **sampler_stats(*sampler, mask & read, self.sampler_cap, self.sum_over_ranks),
            "kl/ref": self._measured_kl,
            "kl/coef": self.kl_coef,
            "entropy": float(entropy),
            "reinforce/advantage_std": float(spread.sqrt()),
        }

    # -- the update ----------------------------------------------------------------------------

    def minibatches(self, batch: ReinforceBatch, generator: torch.Generator) -> Iterator[Tensor]:
        """Row indices of each optimiser step."""
        size, device = len(batch.rollout), batch.rollout.response_ids.device
        return shuffled_parts(size, self.config.minibatches, 1, generator, device)

    def loss(self, policy: torch.nn.Module, batch: ReinforceBatch, norm: Norm) -> LossOutput:
        """Whose gradient is minus that of E_old[pi/old (gain - b) log pi], gain and b held still.

        The gain's KL is that of the policy as it is now, as in PPO; so is the correction of a
        sampler that is not the trainer, token by token.
        """
        mask = batch.rollout.action_mask
        out = policy(*tensors(batch.rollout), logprobs_and_values)
        log_policy = whole_response(out["logprobs"], mask)
        held = log_policy.detach()
        gain = batch.score - self.kl_coef * (held - batch.log_ref)
        advantage = (held - batch.log_old).exp() * (gain - batch.baseline)
        weighted = whole_response(batch.sampler_weight * out["logprobs"], mask)
        loss = -(advantage * weighted).sum() / norm.sequences
        # Weight 0 rather than left out: every parameter has a gradient in every step.
        loss = loss + 0.0 * out["values"].sum()
        return LossOutput(loss, {"reinforce/loss": loss.detach()})

    def stops_early(self, stats: dict[str, float]) -> bool:
        return False

    def after_iteration(self, samples: int) -> None:
        self.controller.update(self._measured_kl, samples)

    def retarget(self, log_z: float) -> None:
        """Nothing here is normalised."""

    def learning_rates(self) -> dict[str, float]:
        return {"lm": self.config.lr, "value_head": 0.0}

    def state_dict(self) -> dict[str, Any]:
        return {"controller": self.controller.state_dict()}

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(
        self, state: dict[str, Any], tensors: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        self.controller.load_state_dict(state["controller"])


def check(config: ReinforceRun) -> None:
    """Refuse settings that have no meaning under this method."""
    n, section = config.sampling.samples_per_prompt, config.reinforce
    if section.baseline == "leave_one_out" and n < 2:
        raise ConfigError(
            f"sampling.samples_per_prompt={n} leaves no other sample of a prompt to be the "
            "baseline; set sampling.samples_per_prompt=4, or reinforce.baseline=none"
        )
    if config.score.normalize:
        raise ConfigError(
            "score.normalize=true is PPO's; Adam makes up for the score's scale under reinforce"
        )
    if (config.kl.placement, config.kl.estimator) not in (("reward", "k1"), ("score", "k1")):
        raise ConfigError(
            f"kl.placement={config.kl.placement} with kl.estimator={config.kl.estimator}: under "
            "reinforce the KL is part of what a response gains; leave both as they are"
        )
    if config.kl.coef == 0 and config.kl.target is not None:
        raise ConfigError("kl.coef=0 with kl.target: a price of 0 stays 0; start from kl.coef=0.1")
