"""The sections and run models of the methods that share this project's loop; no torch for these.

What the settings do is in `rlalign/algorithms/`, a file each.
"""

from typing import Annotated, Literal

from pydantic import Field

from rlalign.settings.fields import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section
from rlalign.settings.sections import RunConfig

Divergence = Literal[
    "forward_kl", "reverse_kl", "js", "tv", "forward_chi2", "reverse_chi2", "hellinger", "alpha"
]
DIVERGENCES = (
    "forward_kl is KL(P_T||policy), reverse_kl KL(policy||P_T), js Jensen-Shannon, tv total "
    "variation; so chi2, too; alpha takes its order from `alpha`"
)
ORDER = "order of the alpha-divergence: forward_kl at 0, reverse_kl at 1"
MEMORY = "samples of a prompt over which its log Z(x) is averaged"
CORRECTION = (
    "cap on each token's weight, its probability under the trainer over that under the sampler; "
    "null: no weights; auto: 2 where `sampling.engine` is vllm, else null"
)


class PPOSection(Section):
    """Proximal policy optimisation: how the samples of an iteration become updates."""

    epochs: Positive = Field(2, description="passes over the samples of an iteration")
    minibatches: Positive = Field(4, description="optimiser steps in an epoch")
    lr: PositiveFloat = Field(1e-4, description="peak learning rate of the language model")
    value_lr: PositiveFloat | None = Field(
        None, description="peak learning rate of the value head; null: lr"
    )
    clip: PositiveFloat = Field(0.2, description="the ratio is trusted within 1 +- clip")
    dual_clip: PositiveFloat | None = Field(
        None, gt=1, description="bound on the ratio where the advantage is negative (Ye 2020)"
    )
    value_clip: PositiveFloat | None = Field(
        0.2, description="values move at most this far from the rollout's; null: freely"
    )
    vf_coef: NonNegativeFloat = Field(0.1, description="weight of the value loss")
    entropy_coef: NonNegativeFloat = Field(
        0.0, description="weight of an entropy bonus; above 0 the optimum is no longer the target"
    )
    gamma: float = Field(
        1.0, gt=0, le=1, description="discount; below 1 the optimum is no longer the target"
    )
    gae_lambda: float = Field(0.95, ge=0, le=1, description="GAE's mix: 1 trusts returns alone")
    advantage_norm: Literal["whiten", "none"] = Field(
        "whiten", description="centre and scale advantages over every rank's tokens"
    )
    divergence: Divergence | None = Field(
        None,
        description="null: the score less the KL; else the pseudo-reward of a divergence to the "
        f"target, at the last token: {DIVERGENCES}",
    )
    alpha: float = Field(0.5, description=ORDER)
    z_memory: Positive = Field(4096, description=MEMORY)
    target_kl: PositiveFloat | None = Field(
        None, description="end an update when a minibatch's approx_kl passes 1.5 times this"
    )
    critic_warmup: NonNegative = Field(
        0, description="iterations at the start in which only the value head learns"
    )
    sampler_correction: Literal["auto"] | Annotated[float, Field(ge=1)] | None = Field(
        "auto", description=CORRECTION
    )


class PPORun(RunConfig):
    """A run of PPO: the shared sections and its own."""

    ppo: PPOSection = PPOSection()

    @property
    def minibatches(self) -> int:
        return self.ppo.minibatches

    @property
    def steps_per_iteration(self) -> int:
        return self.ppo.epochs * self.ppo.minibatches


class DPGSection(Section):
    """Distributional policy gradient: which divergence to the target falls, by what samples."""

    divergence: Divergence = Field(
        "forward_kl",
        description=f"what falls: {DIVERGENCES}",
    )
    alpha: float = Field(0.5, description=ORDER)
    lr: PositiveFloat = Field(1e-4, description="peak learning rate of the language model")
    minibatches: Positive = Field(
        1, description="optimiser steps an iteration; from the second on the samples are off-policy"
    )
    baseline: Literal["leave_one_out", "none"] = Field(
        "leave_one_out",
        description="subtracted from the pseudo-reward: the mean of the prompt's other samples",
    )
    proposal: Literal["policy", "best"] = Field(
        "policy",
        description="what draws: the policy itself, or the best one so far, replaced when the "
        "divergence has improved (off-policy)",
    )
    proposal_every: Positive = Field(
        10, description="iterations between tries to replace the proposal"
    )
    z_memory: Positive = Field(4096, description=MEMORY)
    clip_reward: PositiveFloat | None = Field(
        None, description="bound on the pseudo-reward's size; null: none. It moves the optimum"
    )
    clip_ratio: PositiveFloat | None = Field(
        None, gt=1, description="cap on policy / proposal of a response; null: none"
    )


class DPGRun(RunConfig):
    """A run of the distributional policy gradient: the shared sections and its own."""

    dpg: DPGSection = DPGSection()

    @property
    def minibatches(self) -> int:
        return self.dpg.minibatches


class ReinforceSection(Section):
    """REINFORCE: a policy gradient on whole responses, with the group's mean as baseline."""

    lr: PositiveFloat = Field(1e-4, description="peak learning rate of the language model")
    minibatches: Positive = Field(
        1, description="optimiser steps an iteration; from the second on the samples are off-policy"
    )
    baseline: Literal["leave_one_out", "none"] = Field(
        "leave_one_out",
        description="subtracted from a response's gain: the mean of the prompt's other responses",
    )
    sampler_correction: Literal["auto"] | Annotated[float, Field(ge=1)] | None = Field(
        "auto", description=CORRECTION
    )


class ReinforceRun(RunConfig):
    """A run of REINFORCE: the shared sections and its own."""

    reinforce: ReinforceSection = ReinforceSection()

    @property
    def minibatches(self) -> int:
        return self.reinforce.minibatches


class AnyRun(PPORun):
    """Every method's settings at once: what a configuration file may hold. No run has this model.

    A method reads the shared sections and its own, and leaves the others' alone.
    """

    dpg: DPGSection = DPGSection()
    reinforce: ReinforceSection = ReinforceSection()
