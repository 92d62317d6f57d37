"""Four responses on the oracle's model, prepared by PPO, for the tests of its update."""

import builders
import oracle
import torch

from rlalign.algorithms.ppo import PPO, PPOBatch, PPORun
from rlalign.config import from_mapping
from rlalign.policy import Policy
from rlalign.scoring import score_given
from rlalign.types import Norm

ROLLOUT = builders.rollout(
    ["b c", "", "d e a c", "a"],
    prompts=["a", "c b d", "a", "c b d"],
    finished=[True, True, False, True],
    extra_padding=1,
)
MASK = ROLLOUT.action_mask
SCORES = [1.0, -2.0, 0.5, 3.0]
ONE = torch.ones(())
NORM = Norm(tokens=float(MASK.sum()), sequences=4.0)


def settings(**sections) -> PPORun:
    return from_mapping(PPORun, oracle.config(**sections), rewards_given=True)


def moved_policy() -> Policy:
    """A policy that has left its reference."""
    policy = Policy(oracle.language_model())
    stir(policy, seed=1)
    return policy


def stir(policy: Policy, seed: int = 2) -> None:
    """Move every weight of the language model a little."""
    generator = builders.seeded(seed)
    with torch.no_grad():
        for p in policy.lm.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)


def prepared(**sections):
    policy, ppo = moved_policy(), PPO(settings(**sections))
    scored = score_given(ROLLOUT, SCORES, policy, 100)
    batch, stats = ppo.prepare(policy, scored)
    return policy, ppo, scored, batch, stats


def given(logprobs, values=None, entropy=None):
    """A policy that answers with these numbers."""
    logprobs = torch.as_tensor(logprobs)
    values = torch.zeros_like(logprobs) if values is None else torch.as_tensor(values)
    out = {"logprobs": logprobs, "values": values}
    return lambda *_: out if entropy is None else out | {"entropy": torch.as_tensor(entropy)}


def by_hand(ratios, advantages, **sections):
    """The policy loss of three tokens, of which the third is padding."""
    row = builders.rollout(["b"], extra_padding=1)
    zero = torch.zeros(1, 3)
    advantages = torch.tensor([[*advantages, 1e6]])
    batch = PPOBatch(row, zero, zero, zero, advantages, zero, 0 * ONE)  # no KL is charged
    logprobs = torch.tensor([[*ratios, 1e6]]).log()
    return PPO(settings(**sections)).loss(given(logprobs), batch, Norm(2.0, 1.0))
