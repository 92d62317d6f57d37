"""Proximal policy optimisation with a KL penalty: settings, batch, advantages, loss."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rlalign.batches import rows_of, shuffled_parts
from rlalign.behaviour import behaviour
from rlalign.gae import gae, value_error
from rlalign.importance import sampler_cap, sampler_stats, sampler_weights
from rlalign.kl import IN_THE_LOSS, KLController, check_kl, kl_charge, kl_tokens, safe_exp
from rlalign.masking import SumOverRanks, masked_moments, masked_sum, masked_whiten, one_rank
from rlalign.optimum import shared_warnings
from rlalign.partition import Gather, same
from rlalign.policy import (
    Policy,
    TokenFn,
    all_outputs,
    logprobs_and_detached_values,
    logprobs_and_values,
    tensors,
)
from rlalign.pseudo_reward import PseudoReward
from rlalign.running import RunningScale
from rlalign.settings.method_sections import PPORun
from rlalign.sizes import MOST
from rlalign.types import LossOutput, Norm, Rollout, ScoredRollout


@dataclass(frozen=True)
class PPOBatch:
    rollout: Rollout
    ref_logprobs: Tensor  # (B, T)
    old_logprobs: Tensor  # (B, T), before the update: the trainer's, or notes that it agrees with
    old_values: Tensor  # (B, T)
    advantages: Tensor  # (B, T), whitened over every rank's real tokens
    returns: Tensor  # (B, T)
    advantage_scale: Tensor  # () what a point of score became in the advantages

    def rows(self, index: Tensor) -> "PPOBatch":
        """The chosen samples, trimmed to the longest of them."""
        return PPOBatch(**rows_of(self, index))


class PPO:
    """Maximises E[score] - beta KL(policy | reference) by clipped policy gradients and a critic."""

    name, title = "ppo", "PPO"
    reads_tokens = True

    def __init__(self, config: PPORun) -> None:
        check_kl(config.kl)
        own = self.config = config.ppo
        self.pseudo = None  # the reward in place of score and KL, where a divergence is named
        if own.divergence is not None:
            self.pseudo = PseudoReward(own.divergence, own.alpha, own.z_memory)
            self.pseudo.check(config, "ppo.divergence")
        self.smooths = self.pseudo is None or self.pseudo.divergence.needs_support
        self.kl = config.kl
        self.sampler_cap = sampler_cap(config.ppo.sampler_correction, config.sampling.engine)
        self.warnings = optimum_warnings(config)
        self.sum_over_ranks: SumOverRanks = one_rank  # the trainer puts its own processes' here
        self.gather: Gather = same
        self.budget = MOST  # tokens of a pass; the trainer puts the session's here
        self.controller = KLController(config.kl)
        self.scale = RunningScale() if config.score.normalize else None
        self.iteration = 0
        self.last_kl = torch.zeros(0)  # (B,) nats of each response prepared last
        self._measured_kl = 0.0  # their mean over all ranks

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
    def prepare(self, policy: Policy, scored: ScoredRollout) -> tuple[PPOBatch, dict[str, float]]:
        """Old log-probabilities, values, advantages and returns, and what to log about them."""
        rollout, mask = scored.rollout, scored.rollout.action_mask
        old, read = behaviour(policy, rollout, self.budget)
        kl = torch.where(mask, kl_tokens(old["logprobs"], scored.ref_logprobs), 0.0)  # (B, T), k1
        scale = 1.0
        if self.scale is not None:
            scale = self.scale.update(scored.score, self.sum_over_ranks)
        # Score and KL are divided alike, which leaves the optimum where it was.
        charge = kl_charge(kl, mask, self.kl.placement, self.controller.coef)
        token_rewards = (scored.token_rewards - charge) / scale
        if self.pseudo is not None:
            token_rewards = self.pseudo.at_the_end(scored, old["logprobs"], self.gather)
        config, factor = self.config, kl.new_ones(())
        advantages, returns = gae(
            token_rewards, old["values"], mask, config.gamma, config.gae_lambda
        )
        stats = self._rollout_stats(scored, kl, old, returns)
        stats |= sampler_stats(
            old["logprobs"], rollout.logprobs, mask & read, self.sampler_cap, self.sum_over_ranks
        )
        if config.advantage_norm == "whiten":
            advantages, factor = masked_whiten(advantages, mask, self.sum_over_ranks)
            # Equal advantages are scaled to 0; a KL beside them keeps its price.
            factor = torch.where(factor > 0, factor, 1.0)
        batch = PPOBatch(
            rollout=rollout,
            ref_logprobs=scored.ref_logprobs,
            old_logprobs=old["logprobs"],
            old_values=old["values"],
            advantages=advantages,
            returns=returns,
            advantage_scale=factor / scale,
        )
        return batch, stats

    def _rollout_stats(
        self, scored: ScoredRollout, kl: Tensor, old: dict[str, Tensor], returns: Tensor
    ) -> dict[str, float]:
        mask = scored.rollout.action_mask
        self.last_kl = kl.sum(1)  # (B,)
        everyone = torch.ones_like(self.last_kl, dtype=torch.bool)
        kl_mean, _ = masked_moments(self.last_kl, everyone, self.sum_over_ranks)
        entropy, _ = masked_moments(old["entropy"], mask, self.sum_over_ranks)
        _, residual = masked_moments(returns - old["values"], mask, self.sum_over_ranks)
        _, spread = masked_moments(returns, mask, self.sum_over_ranks)
        self._measured_kl = float(kl_mean)
        return {
            "kl/ref": float(kl_mean),
            "kl/coef": self.controller.coef,
            "entropy": float(entropy),
            "ppo/explained_variance": float(1.0 - residual / spread) if spread > 0 else 0.0,
        }

    # -- the update ----------------------------------------------------------------------------

    def minibatches(self, batch: PPOBatch, generator: torch.Generator) -> Iterator[Tensor]:
        """Row indices of each optimiser step."""
        size, device = len(batch.rollout), batch.rollout.response_ids.device
        return shuffled_parts(size, self.config.minibatches, self.config.epochs, generator, device)

    def loss(self, policy: torch.nn.Module, batch: PPOBatch, norm: Norm) -> LossOutput:
        """Clipped surrogate, clipped value loss and entropy bonus (Schulman 2017, eq. 7 and 9).

        The KL that is charged is the one of the policy as it is now: with the rollout's alone,
        every step after the first would be pulled past the target.
        """
        config, mask = self.config, batch.rollout.action_mask
        out = policy(*tensors(batch.rollout), self._token_fn())
        log_ratio = torch.where(mask, out["logprobs"] - batch.old_logprobs, 0.0)  # (B, T)
        ratio = safe_exp(log_ratio)
        advantages = batch.advantages - self._kl_since(log_ratio.detach(), batch)
        surrogate = torch.min(
            ratio * advantages, ratio.clamp(1 - config.clip, 1 + config.clip) * advantages
        )
        if config.dual_clip is not None:
            floor = config.dual_clip * advantages
            surrogate = torch.where(advantages < 0, surrogate.max(floor), surrogate)
        policy_loss = -masked_sum(self._weights(batch) * surrogate, mask) / norm.tokens
        error = value_error(out["values"], batch.old_values, batch.returns, config.value_clip)
        value_loss = masked_sum(error, mask) / norm.tokens
        loss = config.vf_coef * value_loss
        is_warming_up = self.iteration < config.critic_warmup
        kl_loss = self._kl_loss(out["logprobs"], ratio, batch, norm)
        # Weight 0 rather than left out: every parameter has a gradient in every step.
        loss = loss + (0.0 if is_warming_up else 1.0) * (policy_loss + kl_loss)
        stats = {
            "ppo/policy_loss": policy_loss,
            "ppo/value_loss": value_loss,
            "ppo/clip_frac": masked_sum(((ratio - 1).abs() > config.clip).float(), mask)
            / norm.tokens,
            "ppo/approx_kl": masked_sum(ratio - 1 - log_ratio, mask) / norm.tokens,
        }
        if config.entropy_coef > 0 and not is_warming_up:
            loss = loss - config.entropy_coef * masked_sum(out["entropy"], mask) / norm.tokens
        if self.kl.placement in IN_THE_LOSS:
            stats["kl/loss"] = kl_loss
        return LossOutput(loss, {name: x.detach() for name, x in stats.items()})

    def _kl_since(self, log_ratio: Tensor, batch: PPOBatch) -> Tensor:
        """(B, T) how much the KL that the policy has gained since the rollout takes off.

        Exact at gae_lambda 1. Below it, as for every reward, what the critic does not foresee is
        shortened, and under `score` what it does foresee counts twice: see docs/correctness.md.
        """
        mask, config = batch.rollout.action_mask, self.config
        is_charged = self.pseudo is None and self.kl.placement not in IN_THE_LOSS
        if not is_charged or self.controller.coef == 0:
            return torch.zeros_like(log_ratio)
        charge = kl_charge(log_ratio, mask, self.kl.placement, self.controller.coef)
        no_values = torch.zeros_like(log_ratio)
        lost, _ = gae(charge, no_values, mask, config.gamma, config.gae_lambda)
        return batch.advantage_scale * lost

    def _token_fn(self) -> TokenFn:
        if self.iteration < self.config.critic_warmup:
            return logprobs_and_detached_values
        return all_outputs if self.config.entropy_coef > 0 else logprobs_and_values

    def _weights(self, batch: PPOBatch) -> Tensor:
        """(B, T) correction for a sampler that is not the trainer; 1 where none is made."""
        rollout = batch.rollout
        return sampler_weights(
            batch.old_logprobs, rollout.logprobs, rollout.action_mask, self.sampler_cap
        )

    def _kl_loss(self, logprobs: Tensor, ratio: Tensor, batch: PPOBatch, norm: Norm) -> Tensor:
        """The KL term of the loss; 0 where the KL is part of what is rewarded."""
        if self.kl.placement not in IN_THE_LOSS:
            return ratio.new_zeros(())
        kl = kl_tokens(logprobs, batch.ref_logprobs, self.kl.estimator)
        if self.kl.placement == "ratio_loss":
            kl = ratio * kl
        # Scaled like the advantages beside it, or beta would be another in every iteration.
        total = masked_sum(self._weights(batch) * kl, batch.rollout.action_mask) / norm.tokens
        return self.controller.coef * batch.advantage_scale * total

    def stops_early(self, stats: dict[str, float]) -> bool:
        """Whether the rest of the update is dropped; `stats` are global, so all ranks agree."""
        bound = self.config.target_kl
        return bound is not None and stats["ppo/approx_kl"] > 1.5 * bound

    def after_iteration(self, samples: int) -> None:
        if self.iteration >= self.config.critic_warmup:  # before, the KL is 0 whatever beta is
            self.controller.update(self._measured_kl, samples)
        self.iteration += 1

    def retarget(self, log_z: float) -> None:
        """The target has moved, and with it log Z by about `log_z`."""
        if self.pseudo is not None:
            self.pseudo.partition.shift(log_z)

    def learning_rates(self) -> dict[str, float]:
        """Peak learning rates: of the language model (0 while the critic warms up), of the head."""
        is_warming_up = self.iteration < self.config.critic_warmup
        value_lr = self.config.value_lr or self.config.lr
        return {"lm": 0.0 if is_warming_up else self.config.lr, "value_head": value_lr}

    def state_dict(self) -> dict[str, Any]:
        scale = None if self.scale is None else self.scale.state_dict()
        return {
            "iteration": self.iteration,
            "controller": self.controller.state_dict(),
            "scale": scale,
            "pseudo": None if self.pseudo is None else self.pseudo.state_dict(),
        }

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(
        self, state: dict[str, Any], tensors: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        self.iteration = int(state["iteration"])
        self.controller.load_state_dict(state["controller"])
        if (self.scale is None) != (state["scale"] is None):
            made = "without" if self.scale else "with"
            raise ValueError(f"it was made {made} score.normalize; resume as it was made")
        if self.pseudo is not None and state.get("pseudo") is not None:
            self.pseudo.load_state_dict(state["pseudo"])
        if self.scale is not None:
            self.scale.load_state_dict(state["scale"])


def optimum_warnings(config: PPORun) -> list[str]:
    """One line for each setting that moves the optimum away from ref * exp(score / beta)."""
    ppo, kl, lines = config.ppo, config.kl, []
    if ppo.gamma != 1:
        lines.append(f"ppo.gamma={ppo.gamma}: late rewards count less, so the optimum is another")
    if ppo.entropy_coef > 0:
        lines.append(f"ppo.entropy_coef={ppo.entropy_coef}: the bonus flattens the optimum")
    if kl.placement in IN_THE_LOSS:
        lines.append(
            f"kl.placement={kl.placement}: a token's effect on later KL is dropped, so the optimum "
            "is another; kl.placement=reward and kl.placement=score are exact"
        )
    return lines + shared_warnings(config)
