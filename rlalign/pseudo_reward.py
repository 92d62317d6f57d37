"""What a divergence to the target rewards a response with, whatever method does the climbing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlalign.config import ConfigError
from rlalign.divergences import divergence
from rlalign.kl import IN_THE_LOSS
from rlalign.masking import last_index, whole_response
from rlalign.partition import Gather, Partition, keys_of, same
from rlalign.settings.method_sections import Divergence
from rlalign.settings.sections import RunConfig
from rlalign.types import PromptBatch, ScoredRollout


@dataclass(frozen=True)
class Normalised:
    """The target at B responses, as far as its Z(x) are known."""

    log_target: Tensor  # (B,) log P_T; -inf where it forbids; the policy's own where Z is unknown
    log_z: Tensor  # (B,) -inf where no sample of the prompt was possible yet


class PseudoReward:
    """-f'(policy / P_T) for one divergence, with the running log Z(x) that P_T needs."""

    def __init__(
        self, name: Divergence, alpha: float, memory: int, clip: float | None = None
    ) -> None:
        self.divergence = divergence(name, alpha)
        self.clip = clip
        self.partition = Partition(memory)

    def normalise(
        self,
        prompts: PromptBatch,
        log_p: Tensor,
        log_proposal: Tensor,
        log_policy: Tensor,
        gather: Gather = same,
    ) -> Normalised:
        """The target at responses (B,) with unnormalised `log_p`, drawn with `log_proposal`."""
        log_z = self.partition.update(keys_of(prompts), log_p - log_proposal, gather)
        # Where nothing of a prompt was ever possible there is no target to go to: no gradient.
        log_target = torch.where(log_z > -torch.inf, log_p - log_z, log_policy)
        return Normalised(log_target, log_z)

    def __call__(self, log_ratio: Tensor) -> Tensor:
        """(B,) of log policy - log P_T (B,), within `clip` where one is set."""
        reward = self.divergence.reward(log_ratio)
        return reward if self.clip is None else reward.clamp(-self.clip, self.clip)

    def at_the_end(self, scored: ScoredRollout, logprobs: Tensor, gather: Gather = same) -> Tensor:
        """(B, T) at the last actions, of the policy that drew them with `logprobs` (B, T)."""
        rollout, mask = scored.rollout, scored.rollout.action_mask
        log_policy = whole_response(logprobs, mask)
        log_p = whole_response(scored.ref_logprobs, mask) + scored.log_potential
        found = self.normalise(rollout.prompts, log_p, log_policy, log_policy, gather)
        reward = self(log_policy - found.log_target).float().unsqueeze(1)
        return torch.zeros_like(logprobs).scatter_(1, last_index(mask).unsqueeze(1), reward)

    def check(self, config: RunConfig, method: str) -> None:
        """Refuse settings under which the target of `config` has no Z(x), or moves."""
        n = config.sampling.samples_per_prompt
        if n < 4:
            raise ConfigError(
                f"sampling.samples_per_prompt={n}: {method} normalises the target for each prompt "
                "from its own samples, and with fewer than 4 there is no signal; set "
                "sampling.samples_per_prompt=8 or more"
            )
        if config.kl.coef == 0:
            raise ConfigError(
                "kl.coef=0: a reward's weight is divided by it in the target's exponent; set the "
                "price of a nat, such as kl.coef=0.1 (with moments and hard rewards alone any will "
                "do)"
            )
        for is_set, setting, what in (
            (config.kl.target is not None, f"kl.target={config.kl.target}", "the target's beta"),
            (
                config.kl.placement in IN_THE_LOSS,
                f"kl.placement={config.kl.placement}",
                "a KL beside the target, which holds it",
            ),
            (config.score.normalize, "score.normalize=true", "the score's place in the target"),
        ):
            if is_set:
                raise ConfigError(f"{setting} would move {what}; leave it out under {method}")
        for name, entry in config.rewards.items():
            if isinstance(entry.get("weight"), Mapping):
                raise ConfigError(
                    f"rewards.{name}.weight moves with the iteration, and the target of {method} "
                    "is the one of the final weight; give a number"
                )

    def state_dict(self) -> dict[str, Any]:
        return self.partition.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.partition.load_state_dict(dict(state))
