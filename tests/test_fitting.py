"""Fitting a target to the reference: what is said in words, and that the means are met."""

import math
from dataclasses import replace

import oracle
import pytest
import torch
from builders import seeded

from rlalign.algorithms.dpg import DPG, DPGRun
from rlalign.algorithms.ppo import PPO, PPORun
from rlalign.config import from_mapping
from rlalign.dual import change_of_log_z, moved
from rlalign.evaluate import evaluate, rescored
from rlalign.fitting import InfeasibleError, fit_target, fitted
from rlalign.moments import Samples
from rlalign.partition import same
from rlalign.session import Session
from rlalign.trainer import Trainer

HIT = {"kind": "lexical.contains", "words": ["d a"]}  # base rates .08 and .08
BEGINS = {"kind": "lexical.pattern", "pattern": "^b", "clip": [0, 1]}  # .50 and .11
NEVER = {"kind": "lexical.contains", "words": ["f"]}


def session_of(rewards, model=PPORun, **sections) -> Session:
    base = {"target": {"samples": 4096}, "sampling": {"samples_per_prompt": 16}}
    base |= {"train": {"samples": 64}, "ppo": {"epochs": 1, "minibatches": 1}}
    config = from_mapping(model, oracle.config(rewards=rewards, **(base | sections)))
    return Session(
        config, lm=oracle.language_model(), tokenizer=oracle.tokenizer(), prompts=oracle.PROMPTS
    )


def exact_mean(session: Session, potential: torch.Tensor, feature: torch.Tensor) -> float:
    """E_x E[feature] under reference exp(potential), over all sequences."""
    means = []
    with session.policy.reference() as reference:
        for prompt in oracle.PROMPTS:
            ids = oracle.tokenizer()(prompt)["input_ids"]
            p = (oracle.sequence_logprobs(reference, ids) + potential).softmax(0)
            means.append(float((p * feature).sum()))
    return sum(means) / len(means)


def indicator(test) -> torch.Tensor:
    return torch.tensor([float(test(text)) for text in oracle.all_sequences().texts]).double()


def test_the_fitted_means_are_met_exactly_enough():
    """One moment and one interval: under the exact distribution, within the errors that it says."""
    session = session_of({"hit": HIT | {"moment": 0.5}, "begins": BEGINS | {"moment": [0.4, 0.9]}})
    target, found = fit_target(session, session.target)
    hit, begins = indicator(lambda t: "d a" in t), indicator(lambda t: t.startswith("b"))
    potential = target.lambdas["hit"] * hit + target.lambdas["begins"] * begins
    # d mean / d lambda is at most 1/4, and a quarter of 3 standard errors is what is left of it.
    for name, feature, wish in (("hit", hit, 0.5), ("begins", begins, 0.4)):
        allowed = 0.25 * 3 * target.errors[name]
        assert exact_mean(session, potential, feature) == pytest.approx(wish, abs=allowed)
        assert 0 < target.errors[name] < 0.3
    assert exact_mean(session, 0 * potential, hit) < 0.1
    rates = {wish.name: wish.base for wish in found.wishes}
    assert rates["hit"] == pytest.approx(0.08, abs=0.02)
    assert "hit: 0.0" in str(found) and "asked 0.5, λ" in str(found)


def test_a_hard_constraint_beside_a_moment_is_part_of_the_base():
    session = session_of({"hit": HIT | {"hard": True}, "begins": BEGINS | {"moment": 0.5}})
    target, _ = fit_target(session, session.target)
    hit, begins = indicator(lambda t: "d a" in t), indicator(lambda t: t.startswith("b"))
    potential = hit.log() + target.lambdas["begins"] * begins
    allowed = 0.25 * 3 * target.errors["begins"]
    assert exact_mean(session, potential, begins) == pytest.approx(0.5, abs=allowed)
    assert target.log_epsilon["hit"] == pytest.approx(math.log(0.003 * 0.08), abs=0.3)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"x": NEVER | {"moment": 0.5}},
         "rewards.x.moment=0.5: its value is 0 in all 4096 responses of the reference: what is "
         "never seen"),
        ({"x": NEVER | {"hard": True}},
         "rewards.x.hard=true: none of 4096 responses of the reference satisfies it: its base rate "
         "is below 0.00073"),
        ({"x": HIT | {"hard": True}, "y": {"kind": "lexical.excludes", "words": ["d"],
                                           "hard": True, "threshold": 1.0}},
         "rewards.x and rewards.y are hard, and none of 4096 responses satisfies all"),
        ({"x": HIT | {"moment": 0.7},
          "y": {"kind": "lexical.contains", "words": ["d"], "moment": 0.3}},
         "rewards.x.moment=0.7 and rewards.y.moment=0.3 contradict each other"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_said_before_any_training(rewards, message):
    session = session_of(rewards)
    with pytest.raises(InfeasibleError) as caught:
        fit_target(session, session.target)
    assert str(caught.value).startswith(message)


def test_out_of_reach_is_said_where_some_prompts_never_show_it():
    by_prompt = {"kind": "lexical.contains", "words": {"column": "words"}, "moment": 0.8}
    config = from_mapping(PPORun, oracle.config(rewards={"x": by_prompt}, target={"samples": 512}))
    rows = [{"prompt": "a", "words": "d"}, {"prompt": "c b d", "words": "f"}]
    session = Session(
        config, lm=oracle.language_model(), tokenizer=oracle.tokenizer(), prompts=rows
    )
    with pytest.raises(InfeasibleError, match=r"moment=0.8 is out of reach: .* can be 0 to 0.5 "):
        fit_target(session, session.target)


@pytest.mark.parametrize(("wish", "said"), [
    (500.0, r"moment=500.0 is out of reach: .*value above .*; ask for less, raise"),
    (-500.0, r"moment=-500.0 is out of reach: .*value below .*; ask for more, raise"),
])  # fmt: skip
def test_out_of_reach_says_in_which_direction(wish, said):
    count = {"kind": "lexical.pattern", "pattern": "[a-f]", "moment": wish}
    count["scale"] = math.copysign(1.0, wish)
    session = session_of({"x": count}, target={"samples": 256})
    with pytest.raises(InfeasibleError, match=said):
        fit_target(session, session.target)


def test_a_lambda_does_not_rest_on_prompts_that_never_show_it():
    """One hit among 32 prompts of 32 samples: every prompt without one is worth all of its own."""
    target = session_of({"hit": HIT | {"moment": 0.028}}).target
    for hits, is_refused in ((1, True), (8, False)):
        features = torch.zeros(32, 32, dtype=torch.float64)
        features[0, :hits] = 1.0
        prompt = torch.arange(32).repeat_interleave(32)
        zeros = torch.zeros(32 * 32, dtype=torch.float64)
        samples = Samples(features.flatten().unsqueeze(1), zeros, prompt)
        if is_refused:
            with pytest.raises(InfeasibleError, match=r"its lambda would rest on 1.0 of 1024 resp"):
                fitted(target, samples)
        else:
            assert fitted(target, samples).means.item() == pytest.approx(0.028)


def test_too_few_samples_to_fit_are_refused():
    few = {"samples": 8, "samples_per_prompt": 4}
    ends = {"kind": "lexical.pattern", "pattern": "[a-c]", "clip": [0, 1], "moment": 0.5}
    session = session_of({"x": ends}, target=few)
    with pytest.raises(InfeasibleError, match=r"would rest on \d\.\d of 8 responses of the ref"):
        fit_target(session, session.target)


@pytest.mark.parametrize(("model", "objective"), [(PPORun, PPO), (DPGRun, DPG)])
def test_training_fits_first_moves_lambda_and_logs_it(model, objective):
    session = session_of({"hit": HIT | {"moment": 0.5}}, model)
    trainer = Trainer(session, objective(session.config))
    rollout = trainer.generate()
    fitted = trainer.target.lambdas["hit"]
    assert fitted == pytest.approx(2.44, abs=0.4) and trainer.feasibility is not None
    # The policy is still the reference: what was fitted waits until it has come half of the way.
    stats = trainer.step(rollout)
    assert stats["target/lambda/hit"] == trainer.target.lambdas["hit"] == fitted


@pytest.mark.parametrize(("mean", "direction"), [(0.1, 0), (0.4, 1), (0.7, -1), (0.95, -1)])
def test_lambda_follows_the_policys_mean_once_it_is_near(mean, direction):
    session = session_of({"hit": HIT | {"moment": 0.5}})
    target, _ = fit_target(session, session.target)
    trainer = Trainer(session, PPO(session.config))
    trainer.target = target
    scored = trainer.score(trainer.generate())
    ones = (torch.arange(len(scored)) < mean * len(scored)).double().unsqueeze(1)
    none = torch.zeros(len(scored))
    now = moved(target, replace(scored, features=ones), none, none, "policy", 0.1, same)
    change = now.lambdas["hit"] - target.lambdas["hit"]
    assert math.copysign(1, change) * (change != 0) == direction
    assert change_of_log_z(target, now) == pytest.approx(0.5 * change)


def test_the_policys_mean_is_that_of_the_policy_whatever_draws():
    """A proposal that hits in .45 of its samples, and a policy that hits twice as often."""
    session = session_of({"hit": HIT | {"moment": 0.5}})
    target, _ = fit_target(session, session.target)
    trainer = Trainer(session, PPO(session.config))
    scored = trainer.score(trainer.generate())
    hits = torch.arange(len(scored)) < 0.45 * len(scored)
    features = replace(scored, features=hits.double().unsqueeze(1))
    log_ratio = torch.randn(len(scored), generator=seeded(0)).double()
    of_policy = torch.where(hits, 2.0, 0.1 / 0.55).log()  # policy / proposal
    for log_kl, direction in ((-log_ratio, 1), (of_policy - log_ratio, -1)):
        now = moved(target, features, log_ratio, log_kl, "policy", 0.1, same)
        assert (now.lambdas["hit"] - target.lambdas["hit"]) * direction > 0.01


@pytest.mark.parametrize("wish", [0.5, [0.2, 0.4], [0.6, 0.9]])
def test_the_change_of_log_z_is_that_of_the_target(wish):
    """Against log Z itself of two rates, fitted to the end of the interval that is nearest."""
    base = 0.5 if wish == [0.2, 0.4] or wish == [0.6, 0.9] else 0.2
    end = wish if isinstance(wish, float) else (0.4 if wish[1] < base else 0.6)
    target = session_of({"hit": HIT | {"moment": wish}}).target
    at = math.log(end / (1 - end) * (1 - base) / base)
    was, now = (target.fitted({"hit": x}, {}) for x in (at, 1.02 * at))
    exact = math.log(1 - base + base * math.exp(1.02 * at)) - math.log(
        1 - base + base * math.exp(at)
    )
    assert change_of_log_z(was, now) == pytest.approx(exact, rel=0.02)


def test_weighted_samples_of_the_reference_hold_the_fitted_lambda():
    """`importance`: drawn from the reference, weighted, the wish is met already; nothing moves."""
    session = session_of({"hit": HIT | {"moment": 0.5}}, train={"samples": 2048},
                         sampling={"samples_per_prompt": 1024})  # fmt: skip
    target, _ = fit_target(session, session.target)
    trainer = Trainer(session, PPO(session.config))
    trainer.target = target
    scored = trainer.score(trainer.generate())
    for shift, direction in ((0.0, 0), (-2.0, 1), (2.0, -1)):
        off = target.fitted({"hit": target.lambdas["hit"] + shift}, {})
        at = replace(scored, log_potential=scored.log_potential + shift * scored.rewards[:, 0])
        none = torch.zeros(len(scored))
        now = moved(off, at, none, none, "importance", 1.0, same)
        change = now.lambdas["hit"] - off.lambdas["hit"]
        assert abs(change) < 0.4 if direction == 0 else change * direction > 0.05


def test_the_score_holds_the_moment_at_the_price_of_a_nat():
    session = session_of({"hit": HIT | {"moment": 0.5}}, kl={"coef": 0.3})
    trainer = Trainer(session, PPO(session.config))
    scored = trainer.score(trainer.generate())
    expected = 0.3 * trainer.target.lambdas["hit"] * scored.rewards[:, 0]
    assert torch.allclose(scored.score, expected.float())
    assert torch.allclose(scored.log_potential, scored.score.double() / 0.3, atol=1e-6)


def test_a_rescored_evaluation_is_that_under_the_other_target():
    rewards = {"hit": HIT | {"moment": 0.5}, "begins": BEGINS | {"weight": 0.7}}
    session = session_of(rewards, eval={"samples": 32, "every": 0})
    first = session.target.fitted({"hit": 1.0}, {})
    second = session.target.fitted({"hit": 2.5}, {})
    before = evaluate(session, 0.5, first)
    wanted = evaluate(session, 0.5, second)
    assert before.stats["eval/score"] != pytest.approx(wanted.stats["eval/score"])
    found = rescored(before, second, 0.5)
    assert found.stats == pytest.approx(wanted.stats, rel=1e-5)
    assert [row["score"] for row in found.rows] == pytest.approx(
        [row["score"] for row in wanted.rows], rel=1e-5
    )
