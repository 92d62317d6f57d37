"""The distributional policy gradient, exactly: every response of a small model, weighed."""

import math
from dataclasses import replace

import builders
import oracle
import pytest
import torch
from enumeration import distance, every_response, gradient, token_logprobs
from ppo_batch import stir
from torch.testing import assert_close

from rlalign.algorithms.dpg import DPG, DPGBatch, DPGRun, optimum_warnings
from rlalign.algorithms.ppo import PPO, PPORun
from rlalign.algorithms.reinforce import Reinforce, ReinforceRun
from rlalign.baseline import leave_one_out
from rlalign.config import ConfigError, from_mapping
from rlalign.divergences import DIVERGENCES, divergence
from rlalign.partition import Partition, keys_of
from rlalign.policy import Policy, logprobs_only, tensors
from rlalign.scoring import score_given
from rlalign.session import Session
from rlalign.trainer import Trainer
from rlalign.types import Norm

ROLLOUT = every_response()
SIZE = len(ROLLOUT)
POTENTIAL = torch.tensor(
    [1.5 * ("d" in text) - 0.4 * text.count("c") for text in ROLLOUT.texts], dtype=torch.float64
)


def settings(model=DPGRun, **sections):
    base = {"sampling": {"max_new_tokens": oracle.MAX_LENGTH, "samples_per_prompt": 8}}
    return from_mapping(model, oracle.config(**(base | sections)), rewards_given=True)


@pytest.fixture
def policy():
    made = Policy(oracle.language_model())
    stir(made)
    return made


def log_of(policy: Policy, rollout=ROLLOUT) -> torch.Tensor:
    """(S,) float64 of every response."""
    return token_logprobs(policy, rollout).double().sum(1)


def log_target(policy: Policy, rollout=ROLLOUT, potential=POTENTIAL) -> torch.Tensor:
    with policy.reference() as reference:
        return (log_of(reference, rollout) + potential).log_softmax(0)


def expected(objective, policy: Policy, batch, draws: torch.Tensor) -> torch.Tensor:
    """The gradient of the loss in expectation: each response's share weighed by its probability."""
    logprobs = token_logprobs(policy, batch.rollout)
    leaf = logprobs.detach().requires_grad_()
    out = {"logprobs": leaf, "values": torch.zeros_like(leaf)}
    loss = objective.loss(lambda *_: out, batch, Norm(1.0, 1.0)).loss
    (by_token,) = torch.autograd.grad(loss, leaf)
    return gradient(policy, (draws.unsqueeze(1) * by_token * logprobs).sum())


def exact(
    policy: Policy, name: str, alpha: float, rollout=ROLLOUT, potential=POTENTIAL
) -> torch.Tensor:
    """The gradient of the divergence itself, by autograd."""
    log_p = log_target(policy, rollout, potential).detach()
    log_pi = log_of(policy, rollout)
    uniform = torch.full_like(log_pi, -math.log(len(rollout)))
    value = divergence(name, alpha).integrand(log_p - uniform, log_pi - uniform).mean()
    return gradient(policy, value)


@pytest.mark.parametrize("name", [*DIVERGENCES, "alpha"])
@pytest.mark.parametrize("is_off_policy", [False, True])
@pytest.mark.parametrize("baseline", [0.0, 0.8])
def test_the_expected_gradient_is_that_of_the_divergence(policy, name, is_off_policy, baseline):
    objective = DPG(settings(dpg={"divergence": name, "alpha": 0.3}))
    with torch.no_grad():
        own, target = log_of(policy), log_target(policy)
        proposal = own
        if is_off_policy:
            other = Policy(oracle.language_model())
            stir(other, seed=7)
            proposal = log_of(other)
    held = torch.full((SIZE,), baseline, dtype=torch.float64)
    batch = DPGBatch(ROLLOUT, proposal, target, held)
    ours = expected(objective, policy, batch, proposal.exp())
    assert distance(ours, exact(policy, name, 0.3)) < 1e-4


SPARSE, SHARES = "sparse", "distributional"


@pytest.mark.parametrize("name", [*DIVERGENCES, "alpha"])
@pytest.mark.parametrize("kind", [SPARSE, SHARES])
@pytest.mark.parametrize(("length", "hidden"), [(1, 16), (2, 64), (3, 32), (5, 32)])
def test_the_gradient_is_exact_at_every_size(name, kind, length, hidden):
    """Off-policy, toward what is hard (smoothed where it must be) and toward two moments."""
    rollout = every_response(length)
    objective = DPG(settings(dpg={"divergence": name, "alpha": 0.3}))
    policy, other = (Policy(oracle.language_model(seed=length, hidden=hidden)) for _ in range(2))
    stir(policy)
    stir(other, seed=7)
    allowed = torch.tensor(["d" in text for text in rollout.texts])
    forbidden = math.log(1e-4) if objective.smooths else -math.inf
    potential = torch.where(allowed, 0.0, forbidden).double()
    if kind == SHARES:
        begins = torch.tensor([text.startswith("b") for text in rollout.texts])
        potential = 2.0 * allowed.double() - 0.7 * begins.double()
    with torch.no_grad():
        target, proposal = log_target(policy, rollout, potential), log_of(other, rollout)
    batch = DPGBatch(rollout, proposal, target, torch.zeros(len(rollout), dtype=torch.float64))
    ours = expected(objective, policy, batch, proposal.exp())
    # Autograd of 0 times infinity is nan: what is forbidden has e^-80 for the alpha-divergence.
    finite = potential.clamp(min=-80.0) if name == "alpha" else potential
    assert distance(ours, exact(policy, name, 0.3, rollout, finite)) < 1e-4


def test_a_kl_beside_the_target_would_have_another_gradient(policy):
    """The price of the KL is in the target: REINFORCE's gradient is beta times reverse-KL DPG's."""
    beta = 0.5
    scored = replace(
        score_given(ROLLOUT, (beta * POTENTIAL).tolist(), policy, 10_000, beta),
        log_potential=POTENTIAL,
    )
    reinforce = Reinforce(settings(ReinforceRun, kl={"coef": beta}))
    dpg = DPG(settings(dpg={"divergence": "reverse_kl"}, kl={"coef": beta}))
    with torch.no_grad():
        own = log_of(policy)
    theirs, _ = reinforce.prepare(policy, scored)
    ours, _ = dpg.prepare(policy, scored)
    ours = replace(ours, log_proposal=theirs.log_old, baseline=theirs.baseline / beta)
    # Their baselines differ by log Z, a constant; the sampled gradients are equal, to the digit.
    difference = (dpg.reward(theirs.log_old - ours.log_target) * beta) - (
        theirs.score - beta * (theirs.log_old - theirs.log_ref)
    )
    shift = float(difference[0])
    assert_close(difference, torch.full_like(difference, shift))
    ours = replace(ours, baseline=(theirs.baseline + shift) / beta)
    a = expected(reinforce, policy, theirs, own.exp())
    b = expected(dpg, policy, ours, own.exp())
    assert distance(beta * b, a) < 1e-6


def test_leave_one_out_is_the_mean_of_the_others():
    values = torch.tensor([1.0, 2.0, 6.0, 5.0, 7.0])
    group = torch.tensor([4, 4, 4, 9, 2])
    assert_close(leave_one_out(values, group), torch.tensor([4.0, 3.5, 1.5, 0.0, 0.0]))


def test_z_is_each_prompts_own():
    prompts = builders.prompt_batch(["a", "c b d", "a"])
    keys = keys_of(prompts)
    assert keys[0] == keys[2] != keys[1]
    partition = Partition(memory=100)
    log_z = partition.update(keys, torch.tensor([1.0, 3.0, 3.0]).double().log())
    assert_close(log_z.exp(), torch.tensor([2.0, 3.0, 2.0]).double())
    # A second look at "a" counts with what was seen before.
    again = partition.update(keys[:1], torch.tensor([5.0]).double().log())
    assert float(again.exp()) == pytest.approx((4 * 0.99 + 5) / (2 * 0.99 + 1))


def test_z_forgets_old_samples_and_comes_back_from_its_state():
    partition = Partition(memory=4)
    partition.add([("x", 0.0)] * 100)
    partition.add([("x", math.log(3.0))] * 4)
    assert partition.log_z("x") == pytest.approx(math.log(3.0))
    partition.add([("y", -math.inf)])
    assert partition.log_z("y") == -math.inf and partition.log_z("z") == -math.inf
    other = Partition(memory=4)
    other.load_state_dict(partition.state_dict())
    other.add([("y", 0.0)])
    assert other.log_z("x") == partition.log_z("x")
    assert other.log_z("y") == pytest.approx(-math.log(1.75))


def test_nothing_possible_means_nothing_to_learn(policy):
    """A hard constraint that no sample satisfied: no NaN, and no gradient."""
    rollout = builders.rollout(["b c", "a", "d", "e"])
    scored = score_given(rollout, [0.0] * 4, policy, 1000, 1.0)
    scored = replace(scored, log_potential=torch.full((4,), -math.inf).double())
    for name in (*DIVERGENCES, "alpha"):
        if divergence(name, 0.5).needs_support:
            continue
        objective = DPG(settings(dpg={"divergence": name}))
        batch, stats = objective.prepare(policy, replace_group(scored))
        assert all(math.isfinite(x) for x in stats.values()), (name, stats)
        loss = objective.loss(policy, batch, Norm(1.0, 4.0)).loss
        assert float(gradient(policy, loss).abs().max()) < 1e-6


def replace_group(scored):
    return replace(scored, rollout=replace(scored.rollout, group=torch.zeros(4).long()))


def test_the_proposal_draws_until_the_policy_is_nearer():
    session = session_of(dpg={"proposal": "best", "proposal_every": 1})
    trainer = Trainer(session, DPG(session.config))
    objective = trainer.objective
    before = {name: p.detach().clone() for name, p in session.policy.trainable().items()}
    trainer.step(trainer.generate())
    replaced = 0.0
    for _ in range(6):
        rollout = trainer.generate()
        with objective.proposal(session.policy):
            drawn = session.policy(*tensors(rollout), logprobs_only)["logprobs"]
        # What drew them says so: off the policy, on the proposal.
        assert_close(rollout.logprobs, drawn, rtol=1e-4, atol=1e-4)
        replaced += trainer.step(rollout)["dpg/replaced"]
    assert replaced > 0
    after = dict(session.policy.trainable())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    other = DPG(session.config)
    other.load_state_dict(objective.state_dict(), objective.tensors())
    assert all(torch.equal(other.tensors()[n], x) for n, x in objective.tensors().items())


def session_of(**sections):
    said = {"said": {"kind": "lexical.contains", "words": ["d"], "weight": 2.0}}
    config = from_mapping(
        DPGRun,
        oracle.config(
            rewards=said,
            kl={"coef": 1.0},
            sampling={"max_new_tokens": 4, "samples_per_prompt": 32},
            train={"samples": 64},
            **sections,
        ),
    )
    return Session(
        config, lm=oracle.language_model(), tokenizer=oracle.tokenizer(), prompts=oracle.PROMPTS
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sampling": {"samples_per_prompt": 1}}, "sampling.samples_per_prompt=1: the distribut"),
        ({"kl": {"coef": 0.0}}, "kl.coef=0: a reward's weight is divided by it"),
        ({"kl": {"coef": 0.1, "target": 3.0}}, "kl.target=3.0 would move the target's beta"),
        ({"kl": {"estimator": "k2", "placement": "loss"}}, "kl.placement=loss would move a KL"),
        ({"score": {"normalize": True}}, "score.normalize=true would move the score's place"),
    ],
)
def test_what_has_no_target_is_refused(sections, message):
    with pytest.raises(ConfigError) as caught:
        DPG(settings(**sections))
    assert str(caught.value).startswith(message)


def test_clipping_says_that_it_moves_the_optimum():
    config = settings(dpg={"clip_reward": 2.0, "clip_ratio": 5.0})
    assert [line.split(":")[0] for line in optimum_warnings(config)] == [
        "dpg.clip_reward=2",
        "dpg.clip_ratio=5",
    ]


def test_ppo_takes_the_pseudo_reward_in_place_of_score_and_kl(policy):
    """At the last action, once; the KL is not charged beside it, in the batch or in the loss."""
    rollout = replace(builders.rollout(["b c", "a", "d", "e d"]), group=torch.zeros(4).long())
    scored = score_given(rollout, [0.0, 1.0, 2.0, 0.5], policy, 1000, 0.5)
    ppo = PPO(
        settings(
            PPORun,
            kl={"coef": 0.5},
            ppo={"divergence": "js", "advantage_norm": "none", "gae_lambda": 1.0},
        )
    )
    dpg = DPG(settings(kl={"coef": 0.5}, dpg={"divergence": "js", "baseline": "none"}))
    ours, _ = ppo.prepare(policy, scored)
    theirs, _ = dpg.prepare(policy, scored)
    reward = dpg.reward(theirs.log_proposal - theirs.log_target).float()
    # With gamma and lambda 1 every return of a response is what it is paid in the end.
    expected = torch.where(rollout.action_mask, reward.unsqueeze(1), 0.0)
    assert_close(ours.returns, expected)
    moved = torch.full_like(ours.old_logprobs, 0.3)
    assert not bool(ppo._kl_since(moved, ours).any())
    # Its Z(x) is part of its state.
    other = PPO(ppo_config := settings(PPORun, kl={"coef": 0.5}, ppo={"divergence": "js"}))
    other.load_state_dict(ppo.state_dict())
    assert other.state_dict() == ppo.state_dict() and ppo_config.ppo.divergence == "js"


def test_ppo_with_a_divergence_needs_samples_to_normalise_by():
    with pytest.raises(ConfigError, match=r"samples_per_prompt=1: ppo.divergence normalises"):
        PPO(settings(PPORun, sampling={"samples_per_prompt": 1}, ppo={"divergence": "js"}))
