import math
from dataclasses import replace

import builders
import oracle
import pytest
import torch
from ppo_batch import MASK, NORM, ROLLOUT, SCORES, given, moved_policy, settings, stir
from torch.testing import assert_close

from rlalign.algorithms.ppo import PPO, PPOBatch
from rlalign.algorithms.reinforce import Reinforce, ReinforceBatch
from rlalign.config import from_mapping
from rlalign.importance import sampler_cap, sampler_stats, sampler_weights
from rlalign.methods import METHODS
from rlalign.policy import all_outputs, evaluate_rollout
from rlalign.scoring import score_given
from rlalign.types import Norm

OLD = torch.tensor([[-1.0, -1.0, -1.0, -1.0]])
# ratios trainer / sampler 1/2, 1, 4, and padding
SAMPLER = OLD - torch.tensor([[0.5, 1.0, 4.0, 1e9]]).log()
KEPT = torch.tensor([[True, True, True, False]])


def test_weights_by_hand_are_ratios_up_to_the_cap_and_one_off_the_mask():
    weights = sampler_weights(OLD, SAMPLER, KEPT, 2.0)
    assert_close(weights, torch.tensor([[0.5, 1.0, 2.0, 1.0]]))
    assert_close(sampler_weights(OLD, SAMPLER, KEPT, 8.0), torch.tensor([[0.5, 1.0, 4.0, 1.0]]))


def test_what_cannot_be_corrected_counts_as_it_is():
    assert sampler_weights(OLD, None, KEPT, 2.0).tolist() == [[1.0] * 4]
    assert sampler_weights(OLD, SAMPLER, KEPT, None).tolist() == [[1.0] * 4]
    # a token that the sampler called impossible, and padding that is no number
    weights = sampler_weights(OLD, torch.tensor([[-math.inf, -1.0, -1.0, math.nan]]), KEPT, 2.0)
    assert weights.tolist() == [[2.0, 1.0, 1.0, 1.0]]


def test_weights_carry_no_gradient():
    old, sampler = OLD.clone().requires_grad_(), SAMPLER.clone().requires_grad_()
    assert not sampler_weights(old, sampler, KEPT, 2.0).requires_grad


def test_statistics_by_hand_are_over_real_tokens():
    stats = sampler_stats(OLD, SAMPLER, KEPT, 2.0)
    assert stats["sampler_weight"] == pytest.approx(3.5 / 3)
    assert stats["sampler_capped"] == pytest.approx(1 / 3)
    assert stats["sampler_gap"] == pytest.approx((math.log(2) + math.log(4)) / 3)
    assert sampler_stats(OLD, SAMPLER, KEPT, None).keys() == {"sampler_gap"}
    assert sampler_stats(OLD, None, KEPT, 2.0) == {}


@pytest.mark.parametrize("setting, engine, cap", [
    ("auto", "vllm", 2.0), ("auto", "decode", None), (None, "vllm", None), (3.0, "decode", 3.0),
])  # fmt: skip
def test_the_cap_is_the_setting_and_auto_is_vllms(setting, engine, cap):
    assert sampler_cap(setting, engine) == cap
    ppo = PPO(settings(ppo={"sampler_correction": setting}, sampling={"engine": engine}))
    assert ppo.sampler_cap == cap


def prepared(shift, cap, method=PPO, **sections):
    """A method's loss of four responses whose sampler was `shift` nats below the trainer."""
    policy = moved_policy()
    own = evaluate_rollout(policy, ROLLOUT, all_outputs, 100)["logprobs"]
    rollout = replace(ROLLOUT, logprobs=torch.where(MASK, own - shift, math.nan))
    run = METHODS[method.name].run_model
    sections[method.name] = {"sampler_correction": cap}
    learner = method(from_mapping(run, oracle.config(**sections), rewards_given=True))
    batch, stats = learner.prepare(policy, score_given(rollout, SCORES, policy, 100))
    stir(policy)
    policy.zero_grad()
    out = learner.loss(policy, batch, NORM)
    out.loss.backward()
    return out, stats, {name: p.grad for name, p in policy.trainable().items()}


@pytest.mark.parametrize("kl", [{}, {"placement": "loss", "estimator": "k2"}])
def test_where_sampler_and_trainer_agree_the_loss_is_the_same_bit_for_bit(kl):
    same_bit_for_bit(*(prepared(0.0, cap, kl=kl) for cap in (2.0, None)))


def test_where_they_agree_reinforce_is_the_same_bit_for_bit():
    sections = {"method": Reinforce, "sampling": {"samples_per_prompt": 2}}
    same_bit_for_bit(*(prepared(0.0, cap, **sections) for cap in (2.0, None)))


def same_bit_for_bit(on, off):
    (corrected, stats, gradients), (plain, _, wanted) = on, off
    assert torch.equal(corrected.loss, plain.loss) and stats["sampler_weight"] == 1.0
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kl", [{"coef": 0.1}, {"placement": "loss", "estimator": "k2"}])
def test_every_term_of_the_policy_is_weighted_and_the_values_are_not(kl):
    (on, stats, _), (off, _, _) = (prepared(math.log(1.5), cap, kl=kl) for cap in (2.0, None))
    assert stats["sampler_weight"] == pytest.approx(1.5)
    for name, x in off.stats.items():
        factor = 1.5 if name in ("ppo/policy_loss", "kl/loss") else 1.0
        assert_close(on.stats[name], factor * x)


def test_the_loss_by_hand():
    """Two tokens of advantages 1 and 2 at ratio 1, of weights 1/2 and 4 under a cap of 2."""
    sampler = torch.tensor([[0.5, 4.0, 1e9]]).log().neg()
    row = replace(builders.rollout(["b"], extra_padding=1), logprobs=sampler)
    zero = torch.zeros(1, 3)
    advantages = torch.tensor([[1.0, 2.0, 1e6]])
    batch = PPOBatch(row, zero, zero, zero, advantages, zero, torch.zeros(()))
    ppo = PPO(settings(ppo={"sampler_correction": 2.0, "vf_coef": 0.0}))
    loss = ppo.loss(given(zero), batch, Norm(2.0, 1.0)).loss
    assert_close(loss, torch.tensor(-(0.5 * 1.0 + 2.0 * 2.0) / 2))


def test_the_loss_of_reinforce_by_hand():
    """A gain of 3 over a baseline of 1, and the same two tokens; no KL is charged."""
    sampler = torch.tensor([[0.5, 4.0, 1e9]]).log().neg()
    row = builders.rollout(["b"], extra_padding=1)
    zero, none = torch.zeros(1, 3), torch.zeros(1, dtype=torch.float64)
    weight = sampler_weights(zero, sampler, row.action_mask, 2.0)
    batch = ReinforceBatch(row, none, none, none + 3.0, none + 1.0, weight)
    logprobs = zero.clone().requires_grad_()
    kl = {"coef": 0.0}
    config = oracle.config(kl=kl, sampling={"samples_per_prompt": 2})
    run = METHODS["reinforce"].run_model
    loss = Reinforce(from_mapping(run, config, rewards_given=True)).loss(
        given(logprobs), batch, Norm(2.0, 1.0)
    )
    loss.loss.backward()
    assert_close(logprobs.grad, torch.tensor([[-2.0 * 0.5, -2.0 * 2.0, 0.0]]))
