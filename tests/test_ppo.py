"""PPO's batch and loss, against numbers computed by hand."""

import json
import math
from dataclasses import replace

import builders
import oracle
import pytest
import torch
from torch.testing import assert_close

from rlalign.algorithms.ppo import PPO, PPOBatch, PPORun, optimum_warnings
from rlalign.config import ConfigError, from_mapping
from rlalign.gae import gae
from rlalign.kl import kl_tokens
from rlalign.masking import masked_whiten
from rlalign.policy import Policy, all_outputs, evaluate_rollout
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


# The loss


def test_the_surrogate_is_clipped_on_the_side_that_would_gain():
    # gains are bounded at 1 +- 0.2, losses are not
    assert_close(by_hand([1.5, 1.5], [1.0, -1.0]).stats["ppo/policy_loss"], torch.tensor(0.15))
    assert_close(by_hand([0.5, 0.5], [1.0, -1.0]).stats["ppo/policy_loss"], torch.tensor(0.15))
    plain = by_hand([1.1, 0.9], [2.0, -1.0]).stats["ppo/policy_loss"]
    assert_close(plain, torch.tensor(-(1.1 * 2 - 0.9) / 2))


def test_dual_clip_bounds_the_loss_of_a_negative_advantage():
    free = by_hand([5.0, 1.0], [-1.0, 0.0])
    assert_close(free.stats["ppo/policy_loss"], torch.tensor(2.5))
    bounded = by_hand([5.0, 1.0], [-1.0, 0.0], ppo={"dual_clip": 3.0})
    assert_close(bounded.stats["ppo/policy_loss"], torch.tensor(1.5))
    positive = by_hand([5.0, 1.0], [1.0, 0.0], ppo={"dual_clip": 3.0})
    assert_close(positive.stats["ppo/policy_loss"], torch.tensor(-0.6))


def test_clip_frac_and_approx_kl_are_over_real_tokens():
    stats = by_hand([1.5, 1.1], [1.0, 1.0]).stats
    assert_close(stats["ppo/clip_frac"], torch.tensor(0.5))
    expected = (1.5 - 1 - math.log(1.5) + 1.1 - 1 - math.log(1.1)) / 2
    assert_close(stats["ppo/approx_kl"], torch.tensor(expected))


def test_values_are_clipped_around_the_rollouts():
    row = builders.rollout(["b c"], extra_padding=1)
    zero = torch.zeros(1, 4)
    old, new = torch.tensor([[1.0, 1.0, 1.0, 9.0]]), torch.tensor([[1.5, 1.5, 1.1, -9.0]])
    returns = torch.tensor([[2.0, 0.0, 1.0, 0.0]])
    batch = PPOBatch(row, zero, zero, old, zero, returns, ONE)

    def value_loss(**section) -> float:
        ppo = PPO(settings(ppo=section))
        return float(ppo.loss(given(zero, new), batch, Norm(3.0, 1.0)).stats["ppo/value_loss"])

    # half of: (1.2 - 2)^2 where clipping is worse, (1.5 - 0)^2 where it is not, (1.1 - 1)^2
    assert value_loss(value_clip=0.2) == pytest.approx(0.5 * (0.64 + 2.25 + 0.01) / 3)
    assert value_loss(value_clip=None) == pytest.approx(0.5 * (0.25 + 2.25 + 0.01) / 3)


def test_the_loss_weighs_its_parts():
    row, zero = builders.rollout([""]), torch.zeros(1, 1)
    batch = PPOBatch(
        row, zero, zero, zero, torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor(0.0)
    )
    ppo = PPO(settings(ppo={"vf_coef": 0.5, "entropy_coef": 0.25, "value_clip": None}))
    loss = ppo.loss(given([[0.0]], [[1.0]], [[0.8]]), batch, Norm(1.0, 1.0)).loss
    # -advantage, half the squared error, and entropy, which is a gain
    assert_close(loss, torch.tensor(-2.0 + 0.5 * 0.5 * 4.0 - 0.25 * 0.8))


def test_the_denominator_is_the_count_that_the_norm_gives():
    policy, ppo, _, batch, _ = prepared(ppo={"entropy_coef": 0.1})
    whole, half = (ppo.loss(policy, batch, Norm(n, 4.0)) for n in (10.0, 20.0))
    assert_close(half.loss * 2, whole.loss)
    for name, x in whole.stats.items():
        assert_close(half.stats[name] * 2, x)


def loss_and_gradients(ppo, policy, batch):
    policy.zero_grad()
    out = ppo.loss(policy, batch, NORM)
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in policy.trainable().items()}


@pytest.mark.parametrize(
    "kl", [{}, {"placement": "score"}, {"placement": "loss", "estimator": "k2"}]
)
def test_the_loss_ignores_tokens_after_eos(kl):
    policy, ppo, _, batch, _ = prepared(kl=kl, ppo={"entropy_coef": 0.1})
    stir(policy)
    clean, gradients = loss_and_gradients(ppo, policy, batch)
    junk = torch.where(MASK, 0.0, 1e4)
    rollout = replace(ROLLOUT, response_ids=torch.where(MASK, ROLLOUT.response_ids, 3))
    scrambled = PPOBatch(
        rollout,
        batch.ref_logprobs - junk,
        batch.old_logprobs - junk,
        batch.old_values + junk,
        batch.advantages + junk,
        batch.returns - junk,
        batch.advantage_scale,
    )
    out, scrambled_gradients = loss_and_gradients(ppo, policy, scrambled)
    assert_close(out.loss, clean.loss)
    assert_close(out.stats, clean.stats)
    assert_close(scrambled_gradients, gradients)


def test_gradients_do_not_depend_on_micro_batches_or_padding():
    policy, ppo, _, batch, _ = prepared(ppo={"entropy_coef": 0.1})
    stir(policy)  # so that a KL since the rollout is charged
    _, whole = loss_and_gradients(ppo, policy, batch)
    policy.zero_grad()
    for rows in ([2], [0, 3], [1]):  # each trimmed to its own longest
        ppo.loss(policy, batch.rows(torch.tensor(rows)), NORM).loss.backward()
    parts = {name: p.grad for name, p in policy.trainable().items()}
    assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_rows_are_trimmed_to_the_longest_of_them():
    batch = prepared()[3].rows(torch.tensor([3, 1]))
    assert batch.rollout.response_ids.tolist() == [[0, 5], [5, 5]]
    assert batch.rollout.texts == ["a", ""] and batch.rollout.prompts.texts == ["c b d"] * 2
    parts = (batch.advantages, batch.returns, batch.old_values)
    parts += (batch.old_logprobs, batch.ref_logprobs)
    assert {x.shape for x in parts} == {(2, 2)}


@pytest.mark.parametrize(
    "kl", [{}, {"placement": "score"}, {"placement": "loss", "estimator": "k2"}]
)
def test_tokens_of_a_tool_are_read_but_neither_priced_nor_learnt(kl):
    """One inside a response and one at its end; whatever stands beside them changes nothing."""
    action_mask = MASK.clone()
    action_mask[2, [1, 3]] = False  # "d e a c": the letters e and c came from a tool
    rollout = replace(ROLLOUT, action_mask=action_mask)
    policy, ppo = moved_policy(), PPO(settings(kl={"coef": 0.3} | kl, ppo={"entropy_coef": 0.1}))
    scored = score_given(rollout, SCORES, policy, 100)
    assert float(scored.token_rewards[2, 2]) == SCORES[2]  # on the last action, the letter a
    batch, stats = ppo.prepare(policy, scored)
    nats = torch.where(action_mask, batch.old_logprobs - scored.ref_logprobs, 0.0).sum(1)
    assert stats["kl/ref"] == pytest.approx(float(nats.mean()), rel=1e-5)
    assert bool((batch.advantages[~action_mask] == 0).all())
    stir(policy)
    clean, gradients = loss_and_gradients(ppo, policy, batch)
    junk = torch.where(action_mask, 0.0, 1e4)
    beside = replace(
        batch,
        ref_logprobs=batch.ref_logprobs - junk,
        old_logprobs=batch.old_logprobs - junk,
        old_values=batch.old_values + junk,
        advantages=batch.advantages + junk,
        returns=batch.returns - junk,
    )
    out, same = loss_and_gradients(ppo, policy, beside)
    assert_close(out.loss, clean.loss)
    assert_close(same, gradients)


def test_while_the_critic_warms_up_nothing_pulls_the_language_model():
    policy, ppo, _, batch, _ = prepared(
        ppo={"critic_warmup": 1, "entropy_coef": 0.1}, kl={"placement": "loss", "estimator": "k2"}
    )
    _, gradients = loss_and_gradients(ppo, policy, batch)
    norms = {name: float(g.norm()) for name, g in gradients.items()}
    assert {name for name, norm in norms.items() if norm > 0} == {
        "value_head.weight",
        "value_head.bias",
    }
    assert ppo.learning_rates()["lm"] == 0.0 < ppo.learning_rates()["value_head"]
    ppo.after_iteration(4)
    _, gradients = loss_and_gradients(ppo, policy, batch)
    assert all(float(g.norm()) > 0 for g in gradients.values())
    assert ppo.learning_rates()["lm"] > 0.0


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
