"""PPO's batch and loss, against numbers computed by hand."""

import json
import math
from dataclasses import replace

import builders
import pytest
import torch
from ppo_batch import (
    MASK,
    NORM,
    ROLLOUT,
    SCORES,
    given,
    moved_policy,
    prepared,
    settings,
)
from torch.testing import assert_close

from rlalign.algorithms.ppo import PPO, PPOBatch, optimum_warnings
from rlalign.config import ConfigError
from rlalign.gae import gae
from rlalign.kl import kl_tokens
from rlalign.masking import masked_whiten
from rlalign.policy import all_outputs, evaluate_rollout
from rlalign.scoring import score_given
from rlalign.types import Norm

# What a batch holds


def test_the_ratio_is_one_before_the_first_update():
    policy, ppo, _, batch, _ = prepared(optim={"micro_batch_tokens": 9}, ppo={"clip": 1e-4})
    new = evaluate_rollout(policy, ROLLOUT, all_outputs, 10_000)["logprobs"]
    assert_close(new, batch.old_logprobs, rtol=0, atol=1e-4)
    stats = ppo.loss(policy, batch, NORM).stats
    assert float(stats["ppo/clip_frac"]) == 0.0
    assert float(stats["ppo/approx_kl"]) < 1e-6


def test_token_rewards_are_the_credit_less_beta_times_k1():
    _, _, scored, batch, _ = prepared(
        kl={"coef": 0.3}, ppo={"advantage_norm": "none", "gae_lambda": 0.9, "gamma": 0.8}
    )
    kl = batch.old_logprobs - scored.ref_logprobs
    rewards = torch.where(MASK, scored.token_rewards - 0.3 * kl, 0.0)
    assert float(kl.abs().max()) > 0.05
    advantages, returns = gae(rewards, batch.old_values, MASK, gamma=0.8, lam=0.9)
    assert_close(batch.advantages, advantages)
    assert_close(batch.returns, returns)


def test_a_score_that_pays_the_kl_pays_all_of_it_at_the_last_action():
    _, _, scored, batch, _ = prepared(
        kl={"coef": 0.3, "placement": "score"},
        ppo={"advantage_norm": "none", "gae_lambda": 0.9, "gamma": 0.8},
    )
    kl = torch.where(MASK, batch.old_logprobs - scored.ref_logprobs, 0.0).sum(1)
    assert float(kl.abs().max()) > 0.05
    rewards = scored.token_rewards.clone()
    for row, nats in enumerate(kl):
        last = int(MASK[row].nonzero().max())
        rewards[row, last] -= 0.3 * nats
    advantages, _ = gae(rewards, batch.old_values, MASK, gamma=0.8, lam=0.9)
    assert_close(batch.advantages, advantages)


@pytest.mark.parametrize("placement, nats", [("score", (-0.5, -1.0)), ("reward", (0.0, -2.0))])
def test_the_kl_that_is_charged_follows_the_policy_through_the_update(placement, nats):
    """By hand: the tokens moved by ln 2 and -2 ln 2, later nats at half their price."""
    row = builders.rollout(["b"])
    zero = torch.zeros(1, 2)
    batch = PPOBatch(row, zero, zero, zero, zero + 1.0, zero, torch.tensor(3.0))
    kl = {"coef": 0.2, "placement": placement}
    ppo = PPO(settings(ppo={"clip": 10.0, "gae_lambda": 0.5}, kl=kl))
    loss = ppo.loss(given(torch.tensor([[2.0, 0.25]]).log()), batch, Norm(2.0, 1.0)).loss
    first, second = (1.0 - 3.0 * 0.2 * math.log(2.0) * n for n in nats)
    assert_close(loss, torch.tensor(-(2.0 * first + 0.25 * second) / 2))


@pytest.mark.parametrize("placement, estimator", [("loss", "k2"), ("ratio_loss", "k3")])
def test_a_kl_in_the_loss_is_not_in_the_reward_as_well(placement, estimator):
    kl = {"coef": 0.3, "placement": placement, "estimator": estimator}
    _, _, scored, batch, _ = prepared(kl=kl, ppo={"advantage_norm": "none"})
    advantages, _ = gae(scored.token_rewards, batch.old_values, MASK, gamma=1.0, lam=0.95)
    assert_close(batch.advantages, advantages)


def test_advantages_are_whitened_and_returns_are_from_before():
    _, _, _, plain, _ = prepared(ppo={"advantage_norm": "none"})
    _, _, _, batch, _ = prepared(ppo={"advantage_norm": "whiten"})
    kept = batch.advantages[MASK]
    assert_close(kept.mean(), torch.tensor(0.0), rtol=0, atol=1e-6)
    assert_close(kept.std(correction=0), torch.tensor(1.0))
    assert_close(batch.advantages, masked_whiten(plain.advantages, MASK)[0])
    assert bool((batch.advantages[~MASK] == 0).all())
    assert_close(batch.returns, torch.where(MASK, plain.advantages + plain.old_values, 0.0))


def test_normalising_divides_score_and_kl_alike():
    _, _, scored, plain, _ = prepared(kl={"coef": 0.3}, ppo={"advantage_norm": "none"})
    kl = torch.where(MASK, plain.old_logprobs - scored.ref_logprobs, 0.0)
    rewards = (scored.token_rewards - 0.3 * kl) / torch.tensor(SCORES).std(correction=0)
    expected, _ = gae(rewards, plain.old_values, MASK, gamma=1.0, lam=0.95)
    _, _, _, batch, _ = prepared(
        kl={"coef": 0.3}, ppo={"advantage_norm": "none"}, score={"normalize": True}
    )
    assert_close(batch.advantages, expected)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_kl_in_the_loss_is_divided_like_the_score(normalize):
    policy, ppo, _, batch, _ = prepared(
        kl={"coef": 0.3, "placement": "loss", "estimator": "k2"},
        score={"normalize": normalize},
        ppo={"advantage_norm": "none"},
    )
    kl = kl_tokens(batch.old_logprobs, batch.ref_logprobs, "k2")[MASK].mean()
    spread = float(torch.tensor(SCORES).std(correction=0)) if normalize else 1.0
    assert_close(ppo.loss(policy, batch, NORM).stats["kl/loss"], 0.3 / spread * kl)


def test_whitening_leaves_the_kl_in_the_loss_its_share():
    """Or beta would be measured in another iteration's spread every time."""
    kl = {"coef": 0.3, "placement": "loss", "estimator": "k2"}
    policy, ppo, _, plain, _ = prepared(kl=kl, ppo={"advantage_norm": "none"})
    _, _, _, white, _ = prepared(kl=kl)
    factor = plain.advantages[MASK].std(correction=0) / white.advantages[MASK].std(correction=0)
    terms = [ppo.loss(policy, batch, NORM).stats["kl/loss"] for batch in (plain, white)]
    assert_close(terms[0], terms[1] * factor)
    assert abs(float(factor) - 1.0) > 0.1


def test_equal_advantages_leave_the_kl_its_price():
    kl = {"coef": 0.3, "placement": "loss", "estimator": "k2"}
    policy, ppo = moved_policy(), PPO(settings(kl=kl))
    with torch.no_grad():
        policy.value_head.weight.zero_()
    scored = score_given(ROLLOUT, [1.0] * 4, policy, 100)
    batch, _ = ppo.prepare(policy, replace(scored, token_rewards=0 * scored.token_rewards))
    assert bool((batch.advantages == 0).all()) and float(batch.advantage_scale) == 1.0


def test_the_logged_kl_is_that_of_whole_responses_under_the_reward():
    _, ppo, scored, batch, stats = prepared(kl={"coef": 0.3})
    kl = torch.where(MASK, batch.old_logprobs - scored.ref_logprobs, 0.0).sum(1)
    assert_close(ppo.last_kl, kl)
    assert stats["kl/ref"] == pytest.approx(float(kl.mean()), rel=1e-5)
    assert stats["kl/coef"] == ppo.kl_coef == 0.3


def test_statistics_of_the_rollout_are_over_real_tokens():
    policy, _, _, batch, stats = prepared()
    old = evaluate_rollout(policy, ROLLOUT, all_outputs, 10_000)
    assert stats["entropy"] == pytest.approx(float(old["entropy"][MASK].mean()), rel=1e-5)
    assert 0 < stats["entropy"] < math.log(builders.VOCABULARY)
    returns, values = batch.returns[MASK], batch.old_values[MASK]
    explained = 1 - (returns - values).var() / returns.var()
    assert stats["ppo/explained_variance"] == pytest.approx(float(explained), rel=1e-4)


def test_the_gap_to_the_sampler_is_over_real_tokens():
    policy, ppo = moved_policy(), PPO(settings())
    logprobs = evaluate_rollout(policy, ROLLOUT, all_outputs, 100)["logprobs"]
    sampler = torch.where(MASK, logprobs + 0.25, 1e6)
    scored = score_given(replace(ROLLOUT, logprobs=sampler), SCORES, policy, 100)
    assert ppo.prepare(policy, scored)[1]["sampler_gap"] == pytest.approx(0.25, rel=1e-4)


# Minibatches, control, state


def test_every_epoch_sees_every_sample_once_in_another_order():
    ppo = PPO(settings(ppo={"epochs": 2, "minibatches": 2}))
    batch = prepared()[3]
    parts = [rows.tolist() for rows in ppo.minibatches(batch, builders.seeded(3))]
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    first, second = parts[0] + parts[1], parts[2] + parts[3]
    assert sorted(first) == sorted(second) == [0, 1, 2, 3]
    assert first != second


@pytest.mark.parametrize("minibatches, sizes", [(3, [2, 1, 1]), (4, [1] * 4), (9, [1] * 4)])
def test_there_are_as_many_minibatches_as_configured_or_as_there_are_samples(minibatches, sizes):
    ppo = PPO(settings(ppo={"epochs": 1, "minibatches": minibatches}, train={"samples": 36}))
    batch = prepared()[3]
    assert [len(rows) for rows in ppo.minibatches(batch, builders.seeded())] == sizes


def test_an_update_stops_early_above_one_and_a_half_times_its_target():
    ppo = PPO(settings(ppo={"target_kl": 0.02}))
    assert not ppo.stops_early({"ppo/approx_kl": 0.0299})
    assert ppo.stops_early({"ppo/approx_kl": 0.0301})
    assert not PPO(settings()).stops_early({"ppo/approx_kl": 9.0})


def test_the_controller_follows_the_logged_kl_and_counts_samples():
    _, ppo, _, _, stats = prepared(kl={"coef": 0.3, "target": 5.0, "horizon": 100})
    assert abs(stats["kl/ref"] / 5.0 - 1) > 0.2  # so the clip acts
    ppo.after_iteration(samples=40)
    assert ppo.kl_coef == pytest.approx(0.3 * (1 - 0.2 * 40 / 100))


def test_the_objective_goes_on_from_its_saved_state():
    sections = {"kl": {"coef": 0.3, "target": 5.0}, "score": {"normalize": True}}
    policy, ours, scored, _, _ = prepared(**sections)
    ours.after_iteration(samples=400)
    theirs = PPO(settings(**sections))
    theirs.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    assert (theirs.iteration, theirs.kl_coef) == (1, ours.kl_coef)
    assert theirs.kl_coef != 0.3
    ours_batch, ours_stats = ours.prepare(policy, scored)
    theirs_batch, theirs_stats = theirs.prepare(policy, scored)
    assert theirs_stats == ours_stats
    assert_close(theirs_batch.advantages, ours_batch.advantages, rtol=0, atol=0)
    assert_close(theirs.scale.state_dict(), ours.scale.state_dict())


def test_wrong_kl_placements_are_refused_before_anything_is_made():
    with pytest.raises(ConfigError, match=r"^kl\.estimator=k3 with kl\.placement=reward"):
        PPO(settings(kl={"estimator": "k3"}))


def test_a_coefficient_of_0_cannot_be_steered():
    with pytest.raises(ConfigError, match=r"^kl\.coef=0 with kl\.target=3: .*kl\.coef=0\.1"):
        PPO(settings(kl={"coef": 0.0, "target": 3.0}))


def test_settings_that_move_the_optimum_are_said():
    assert optimum_warnings(settings()) == []
    moved = settings(
        ppo={"gamma": 0.9, "entropy_coef": 0.1},
        kl={"coef": 0.0, "placement": "loss", "estimator": "k2", "target": 3.0},
    )
    lines = optimum_warnings(moved)
    names = ("kl.coef=0", "ppo.gamma=0.9", "ppo.entropy_coef=0.1", "kl.placement=loss", "kl.target")
    assert [any(line.startswith(name) for line in lines) for name in names] == [True] * 5
