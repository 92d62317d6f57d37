"""Distributional policy gradient: descends an f-divergence between the policy and the target.

f-DPG (Go et al. 2023), whose forward KL is GDC (Khalifa et al. 2021) and, with a baseline, GDC++
(Korbak et al. 2022): a policy gradient on the pseudo-reward -f'(pi / P_T), conditional on the
prompt (CDPG, Korbak et al. 2022b). The target holds the KL to the reference already, so none is
charged beside it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rlalign.baseline import leave_one_out
from rlalign.batches import rows_of, shuffled_parts
from rlalign.behaviour import behaviour
from rlalign.masking import SumOverRanks, masked_moments, one_rank, whole_response
from rlalign.optimum import shared_warnings
from rlalign.partition import Gather, same
from rlalign.policy import Policy, logprobs_and_values, tensors
from rlalign.pseudo_reward import PseudoReward
from rlalign.settings.method_sections import DPGRun
from rlalign.sizes import MOST
from rlalign.types import LossOutput, Norm, Rollout, ScoredRollout


@dataclass(frozen=True)
class DPGBatch:
    rollout: Rollout
    log_proposal: Tensor  # (B,) of whole responses, under what drew them
    log_target: Tensor  # (B,) log P_T, normalised by the estimate of Z(x); -inf where hard forbids
    baseline: Tensor  # (B,) of the pseudo-reward

    def rows(self, index: Tensor) -> "DPGBatch":
        """The chosen samples, trimmed to the longest of them."""
        return DPGBatch(**rows_of(self, index))


class DPG:
    """Minimises D_f(policy || P_T), averaged over prompts."""

    name, title = "dpg", "the distributional policy gradient"
    reads_tokens = False

    def __init__(self, config: DPGRun) -> None:
        own = self.config = config.dpg
        self.reward = PseudoReward(own.divergence, own.alpha, own.z_memory, own.clip_reward)
        self.reward.check(config, "the distributional policy gradient")
        self.divergence = self.reward.divergence
        self.smooths = self.divergence.needs_support
        self.warnings = optimum_warnings(config)
        self.kl_coef = config.kl.coef
        self.sum_over_ranks: SumOverRanks = one_rank
        self.gather: Gather = same
        self.budget = MOST
        self.iteration = 0
        self.last_kl = torch.zeros(0)
        self.last_log_ratio = torch.zeros(0)
        self._proposal: dict[str, Tensor] | None = None  # the weights that draw, if not its own

    # -- what draws ----------------------------------------------------------------------------

    @contextmanager
    def proposal(self, policy: Policy) -> Iterator[None]:
        """Within it the policy has the proposal's weights."""
        if self.config.proposal == "policy":
            yield
            return
        parameters = policy.trainable()
        if self._proposal is None:
            self._proposal = snapshot(parameters)
        own = snapshot(parameters)
        put(parameters, self._proposal)
        try:
            yield
        finally:
            put(parameters, own)

    # -- before the update ---------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, policy: Policy, scored: ScoredRollout) -> tuple[DPGBatch, dict[str, float]]:
        """Target and proposal of each response, a baseline, and what to log about them."""
        rollout, mask = scored.rollout, scored.rollout.action_mask
        old, _ = behaviour(policy, rollout, self.budget)
        log_policy = whole_response(old["logprobs"], mask)
        if rollout.logprobs is None and self.config.proposal == "best":
            raise ValueError(
                "dpg.proposal=best needs the sampler's log-probabilities, and this engine gives "
                "none; use dpg.proposal=policy"
            )
        drawn = log_policy if rollout.logprobs is None else whole_response(rollout.logprobs, mask)
        log_ref = whole_response(scored.ref_logprobs, mask)
        log_p = log_ref + scored.log_potential  # (B,) unnormalised
        found = self.reward.normalise(rollout.prompts, log_p, drawn, log_policy, self.gather)
        log_target, log_z = found.log_target, found.log_z
        reward = self.reward(log_policy - log_target)
        ratio = self._ratio(log_policy - drawn)
        baseline = torch.zeros_like(reward)
        if self.config.baseline == "leave_one_out":
            baseline = leave_one_out(ratio * reward, rollout.group)
        self.last_kl, self.last_log_ratio = log_policy - log_ref, log_ref - drawn
        batch = DPGBatch(rollout, drawn, log_target, baseline)
        advantage = ratio * (reward - baseline)
        stats = self._stats(log_policy, log_target, drawn, ratio, advantage, log_z)
        stats |= self._try_proposal(policy, log_policy, log_target, drawn)
        entropy, _ = masked_moments(old["entropy"], mask, self.sum_over_ranks)
        return batch, stats | {"entropy": float(entropy)}

    def _ratio(self, log_ratio: Tensor) -> Tensor:
        ratio = log_ratio.exp()
        return ratio if self.config.clip_ratio is None else ratio.clamp(max=self.config.clip_ratio)

    def _stats(
        self, log_policy: Tensor, log_target: Tensor, drawn: Tensor, ratio: Tensor,
        advantage: Tensor, log_z: Tensor,
    ) -> dict[str, float]:  # fmt: skip
        everyone = torch.ones_like(ratio, dtype=torch.bool)

        def mean(x: Tensor, mask: Tensor = everyone) -> float:
            return float(masked_moments(x.float(), mask, self.sum_over_ranks)[0])

        _, spread = masked_moments(advantage.float(), everyone, self.sum_over_ranks)
        weights = (log_target - drawn).exp()  # P_T / q, of mean 1
        square = mean(weights) ** 2
        return {
            "kl/ref": mean(ratio * self.last_kl),
            "dpg/divergence": mean(
                self.divergence.integrand(log_target - drawn, log_policy - drawn)
            ),
            "dpg/log_z": mean(log_z, log_z > -torch.inf),
            "dpg/ess": square / mean(weights**2) if square > 0 else 0.0,
            "dpg/ratio_max": max(self.gather([float(ratio.max())])),
            "dpg/advantage_std": float(spread.sqrt()),
        }

    def _try_proposal(
        self, policy: Policy, log_policy: Tensor, log_target: Tensor, drawn: Tensor
    ) -> dict[str, float]:
        """Let the policy draw from now on where its divergence is below the proposal's.

        Both are estimated from the same samples of the proposal, so what they share cancels.
        """
        if self.config.proposal == "policy":
            return {}
        everyone = torch.ones_like(drawn, dtype=torch.bool)
        # Of samples of q, log q is what `drawn` is; with it in the policy's place: D_f(q || P_T).
        of_policy, of_proposal = (
            self.divergence.integrand(log_target - drawn, x - drawn) for x in (log_policy, drawn)
        )
        gain, _ = masked_moments((of_proposal - of_policy).float(), everyone, self.sum_over_ranks)
        is_due = (self.iteration + 1) % self.config.proposal_every == 0
        is_replaced = is_due and float(gain) > 0
        if is_replaced:
            self._proposal = snapshot(policy.trainable())
        return {"dpg/gain": float(gain), "dpg/replaced": float(is_replaced)}

    # -- the update ----------------------------------------------------------------------------

    def minibatches(self, batch: DPGBatch, generator: torch.Generator) -> Iterator[Tensor]:
        """Row indices of each optimiser step."""
        size, device = len(batch.rollout), batch.rollout.response_ids.device
        return shuffled_parts(size, self.config.minibatches, 1, generator, device)

    def loss(self, policy: torch.nn.Module, batch: DPGBatch, norm: Norm) -> LossOutput:
        """Whose gradient is minus that of E_q[pi/q (r(pi/P_T) - b) log pi], r and b held still."""
        mask = batch.rollout.action_mask
        out = policy(*tensors(batch.rollout), logprobs_and_values)
        log_policy = whole_response(out["logprobs"], mask)
        held = log_policy.detach()
        ratio = self._ratio(held - batch.log_proposal)
        advantage = ratio * (self.reward(held - batch.log_target) - batch.baseline)
        loss = -(advantage * log_policy).sum() / norm.sequences
        # Weight 0 rather than left out: every parameter has a gradient in every step.
        loss = loss + 0.0 * out["values"].sum()
        return LossOutput(loss, {"dpg/loss": loss.detach()})

    def stops_early(self, stats: dict[str, float]) -> bool:
        return False

    def after_iteration(self, samples: int) -> None:
        self.iteration += 1

    def retarget(self, log_z: float) -> None:
        """The target has moved, and with it log Z by about `log_z`."""
        self.reward.partition.shift(log_z)

    def learning_rates(self) -> dict[str, float]:
        return {"lm": self.config.lr, "value_head": 0.0}

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "partition": self.reward.state_dict()}

    def tensors(self) -> dict[str, Tensor]:
        return self._proposal or {}

    def load_state_dict(
        self, state: dict[str, Any], tensors: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        self.iteration = int(state["iteration"])
        self.reward.load_state_dict(state["partition"])
        self._proposal = dict(tensors) or None


def optimum_warnings(config: DPGRun) -> list[str]:
    """One line for each setting that moves the optimum away from the target."""
    dpg, lines = config.dpg, []
    if dpg.clip_reward is not None:
        lines.append(f"dpg.clip_reward={dpg.clip_reward:g}: rare, good responses count less")
    if dpg.clip_ratio is not None:
        lines.append(f"dpg.clip_ratio={dpg.clip_ratio:g}: off-policy weights are cut")
    return lines + shared_warnings(config)


def snapshot(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


@torch.no_grad()
def put(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
