"""What each KL estimator's gradient really is in each place, by exact enumeration.

A response's tokens are weighed by its probability, so every sum here is an expectation.
"""

from copy import deepcopy
from dataclasses import replace

import builders
import oracle
import pytest
import torch
from enumeration import distance, every_response, gradient, token_logprobs
from torch import Tensor

from rewards.compose import RewardSet, parse_entries
from rlalign.algorithms.ppo import PPO, PPOBatch, PPORun
from rlalign.config import from_mapping
from rlalign.gae import gae
from rlalign.kl import kl_tokens
from rlalign.policy import Policy, tensors
from rlalign.scoring import score_given, score_rollout
from rlalign.settings.sections import KLSection, ScoreSection
from rlalign.types import Norm, ScoredRollout

ROLLOUT = every_response()
BETA = 0.3


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Some way from its reference, with values of 0 so that advantages are returns."""
    made = Policy(oracle.language_model())
    generator = builders.seeded(1)
    with torch.no_grad():
        for p in made.lm.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
        made.value_head.weight.zero_()
    return made


def log_tables(policy: Policy) -> Tensor:
    """(S, T, V) log-probabilities of every next token."""
    out = policy(*tensors(ROLLOUT), oracle.next_token_logprobs)
    return torch.stack([out[str(token)] for token in range(builders.VOCABULARY)], -1)


def probabilities(policy: Policy) -> Tensor:
    return token_logprobs(policy, ROLLOUT).detach().sum(1).exp()


def reference_logprobs(policy: Policy) -> Tensor:
    with policy.reference() as reference:
        return token_logprobs(reference, ROLLOUT)


def per_token_kl(policy: Policy, direction: str) -> Tensor:
    """Gradient of the exact KL of next-token distributions, at the prefixes that are visited."""
    own = log_tables(policy)
    with policy.reference() as reference:
        ref = log_tables(reference)
    p, q = (own, ref) if direction == "reverse" else (ref, own)
    kl = torch.where(ROLLOUT.response_mask, (p.exp() * (p - q)).sum(-1), 0.0)
    return gradient(policy, (probabilities(policy).unsqueeze(1) * kl).sum())


def sequence_kl(policy: Policy) -> Tensor:
    """Gradient of KL(policy | reference) over whole responses."""
    own = token_logprobs(policy, ROLLOUT).sum(1)
    return gradient(policy, (own.exp() * (own - reference_logprobs(policy).sum(1))).sum())


def in_reward(policy: Policy, estimator: str) -> Tensor:
    """Minus the policy gradient of the reward -KL, whose reward-to-go reaches earlier tokens."""
    logprobs = token_logprobs(policy, ROLLOUT)
    kl = kl_tokens(logprobs.detach(), reference_logprobs(policy), estimator)
    kl = torch.where(ROLLOUT.action_mask, kl, 0.0)
    to_go, _ = gae(-kl, torch.zeros_like(kl), ROLLOUT.action_mask, gamma=1.0, lam=1.0)
    return gradient(policy, -(probabilities(policy).unsqueeze(1) * to_go * logprobs).sum())


def objective(estimator: str, placement: str) -> PPO:
    made = PPO(PPORun(kl=KLSection(coef=1.0)))
    made.kl = KLSection(coef=1.0, estimator=estimator, placement=placement)  # unchecked
    return made


def in_loss(policy: Policy, estimator: str, placement: str) -> Tensor:
    """The gradient of PPO's KL term, each token's share weighed by its response's probability."""
    logprobs = token_logprobs(policy, ROLLOUT)
    leaf = logprobs.detach().requires_grad_()
    ratio = (leaf - logprobs.detach()).exp()
    zero = torch.zeros_like(leaf)
    batch = PPOBatch(ROLLOUT, reference_logprobs(policy), zero, zero, zero, zero, torch.ones(()))
    term = objective(estimator, placement)._kl_loss(leaf, ratio, batch, Norm(1.0, 1.0))
    (by_token,) = torch.autograd.grad(term, leaf)
    weights = probabilities(policy).unsqueeze(1) * by_token
    return gradient(policy, (weights * logprobs).sum())


def test_k1_in_the_reward_is_the_reverse_kl(policy):
    assert distance(in_reward(policy, "k1"), sequence_kl(policy)) < 1e-4


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_are_not(policy, estimator):
    assert distance(in_reward(policy, estimator), sequence_kl(policy)) > 0.02


def test_k1_as_a_loss_has_no_gradient(policy):
    exact = per_token_kl(policy, "reverse")
    assert float(in_loss(policy, "k1", "loss").norm()) < 1e-4 * float(exact.norm())


def test_k2_as_a_loss_is_the_reverse_kl_of_each_token(policy):
    assert distance(in_loss(policy, "k2", "loss"), per_token_kl(policy, "reverse")) < 1e-4


def test_k3_as_a_loss_is_the_forward_kl_of_each_token(policy):
    ours = in_loss(policy, "k3", "loss")
    assert distance(ours, per_token_kl(policy, "forward")) < 1e-4
    assert distance(ours, per_token_kl(policy, "reverse")) > 0.02


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_times_the_ratio_k1_and_k3_are_the_reverse_kl_of_each_token(policy, estimator):
    ours = in_loss(policy, estimator, "ratio_loss")
    assert distance(ours, per_token_kl(policy, "reverse")) < 1e-4


def test_times_the_ratio_k2_is_not(policy):
    ours = in_loss(policy, "k2", "ratio_loss")
    assert distance(ours, per_token_kl(policy, "reverse")) > 0.02


def test_the_kl_of_each_token_drops_what_a_token_does_to_later_ones(policy):
    """Why only k1 in the reward reaches the target."""
    assert distance(per_token_kl(policy, "reverse"), sequence_kl(policy)) > 0.02


def scored_by_rate(policy: Policy) -> ScoredRollout:
    """Every response with three points for its share of 'c', credited word by word."""
    rate = {"rate": {"kind": "lexical.word_rate", "words": ["c"], "weight": 3.0}}
    return score_rollout(
        ROLLOUT, RewardSet(parse_entries(rate)), ScoreSection(), policy, oracle.tokenizer(), 10_000
    )


def ppo_of(
    placement: str, normalize: bool = False, norm: str = "none", gae_lambda: float = 1.0
) -> PPO:
    return PPO(
        from_mapping(
            PPORun,
            oracle.config(
                ppo={
                    "gae_lambda": gae_lambda,
                    "vf_coef": 0.0,
                    "advantage_norm": norm,
                    "clip": 1e3,
                },
                kl={"coef": BETA, "placement": placement},
                score={"normalize": normalize},
            ),
            rewards_given=True,
        )
    )


def of_the_surrogate(ppo: PPO, policy: Policy, batch: PPOBatch, weights: Tensor) -> Tensor:
    """The gradient that PPO's loss climbs, each response weighed by how often it is sampled."""
    by_weight = weights.unsqueeze(1)
    weighed = replace(
        batch,
        advantages=batch.advantages * by_weight,
        advantage_scale=batch.advantage_scale * by_weight,
    )
    return gradient(policy, -ppo.loss(policy, weighed, Norm(1.0, 1.0)).loss)


def of_the_aim(policy: Policy, score: Tensor) -> Tensor:
    """Gradient of E[score] - beta KL(policy | reference)."""
    own = token_logprobs(policy, ROLLOUT).sum(1)
    kl = own - reference_logprobs(policy).sum(1)
    return gradient(policy, (own.exp() * (score - BETA * kl)).sum())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("placement", ["reward", "score"])
def test_ppos_first_gradient_is_that_of_score_less_beta_kl(policy, placement, normalize):
    """prepare and loss together, with dense credit; normalising scales score and KL alike."""
    ppo, scored = ppo_of(placement, normalize), scored_by_rate(policy)
    batch, _ = ppo.prepare(policy, scored)
    ours = of_the_surrogate(ppo, policy, batch, probabilities(policy))
    spread = float(scored.score.std(correction=0)) if normalize else 1.0
    assert abs(spread - 1.0) > 0.05 or not normalize
    assert distance(ours * spread, of_the_aim(policy, scored.score)) < 1e-4


@pytest.mark.parametrize("norm", ["none", "whiten"])
@pytest.mark.parametrize("placement, lam", [("reward", 1.0), ("score", 1.0), ("score", 0.95)])
def test_an_update_that_arrives_at_the_target_rests_there(policy, placement, lam, norm):
    """On samples of before. With their KL alone, later steps are pulled on, past the target.

    Below lambda 1 the score's payment needs a critic with one value a prompt, as here.
    """
    target, aside = deepcopy(policy), builders.seeded(2)
    with torch.no_grad():
        for p in target.lm.parameters():
            p += 0.03 * torch.randn(p.shape, generator=aside)
        ratio = token_logprobs(target, ROLLOUT).sum(1) - reference_logprobs(policy).sum(1)
    scored = score_given(ROLLOUT, (BETA * ratio).tolist(), policy, 10_000)
    ppo = ppo_of(placement, norm=norm, gae_lambda=lam)
    batch, _ = ppo.prepare(policy, scored)
    sampled = probabilities(policy)
    before = of_the_surrogate(ppo, policy, batch, sampled).norm()
    assert float(of_the_surrogate(ppo, target, batch, sampled).norm() / before) < 1e-4
    stale = replace(batch, advantage_scale=torch.tensor(0.0))
    assert float(of_the_surrogate(ppo, target, stale, sampled).norm() / before) > 0.1
