"""PPO's loss: clipping, masks, denominators, micro-batches, the critic's warm-up."""

import math
from dataclasses import replace

import builders
import pytest
import torch
from ppo_batch import (
    MASK,
    NORM,
    ONE,
    ROLLOUT,
    SCORES,
    by_hand,
    given,
    moved_policy,
    prepared,
    settings,
    stir,
)
from torch.testing import assert_close

from rlalign.algorithms.ppo import PPO, PPOBatch
from rlalign.scoring import score_given
from rlalign.types import Norm


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
