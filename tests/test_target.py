"""The declared target: its potential, its printed form, its hash."""

import math

import builders
import oracle
import pytest
import torch
from torch.testing import assert_close

from rewards.contract import RewardError
from rlalign.algorithms.ppo import PPORun
from rlalign.config import ConfigError, from_mapping
from rlalign.target import Target, declare, shaped

HIT = {"kind": "lexical.contains", "words": ["d a"]}
RATE = {"kind": "lexical.word_rate", "words": ["c"]}
FINISHED = [True, True, True, False]
TEXTS = ["d a", "c c", "d a c c", "b"]  # hits 1 0 1 0, rates 0 1 .5 0


def target(rewards, **sections) -> Target:
    config = from_mapping(PPORun, oracle.config(rewards=rewards, **sections))
    return declare(config, builders.reward_set(rewards))


def potential(made: Target, **options) -> torch.Tensor:
    return made.log_potential([""] * 4, TEXTS, finished=FINISHED, **options)


def test_a_weight_over_beta_multiplies_the_value():
    made = target({"rate": RATE | {"weight": 3.0}}, kl={"coef": 0.5})
    assert_close(potential(made), torch.tensor([0.0, 6.0, 3.0, 0.0], dtype=torch.float64))


def test_clip_and_the_missing_end_belong_to_the_potential():
    made = target(
        {"rate": RATE | {"weight": 3.0}},
        kl={"coef": 0.5},
        score={"clip": [0.0, 2.0], "missing_eos_penalty": 0.25},
    )
    assert_close(potential(made), torch.tensor([0.0, 4.0, 3.0, -0.5], dtype=torch.float64))


def test_a_moment_adds_its_lambda_and_what_is_hard_forbids():
    made = target({"rate": RATE | {"moment": 0.4}, "hit": HIT | {"hard": True}})
    assert not made.is_fitted
    fitted = made.fitted({"rate": 2.0}, {"rate": 0.1}, {"hit": 0.08})
    assert fitted.is_fitted
    expected = torch.tensor([0.0, -math.inf, 1.0, -math.inf], dtype=torch.float64)
    assert_close(potential(fitted), expected)


def test_smoothed_what_is_forbidden_keeps_a_share_of_the_base_rate():
    fitted = target({"hit": HIT | {"hard": True}}).fitted({}, {}, {"hit": 0.08})
    features = torch.tensor([[1.0], [0.0]])
    found = fitted.potential_of(features, torch.ones(2).bool(), smooth=True)
    assert_close(found, torch.tensor([0.0, math.log(0.003 * 0.08)], dtype=torch.float64))


def test_as_weights_of_a_score_the_constraints_are_the_same_potential():
    made = target({"rate": RATE | {"moment": 0.4}, "hit": HIT | {"hard": True}}, kl={"coef": 0.3})
    fitted = made.fitted({"rate": 2.0}, {}, {"hit": 0.08})
    weights, features = fitted.weights(), torch.tensor([[0.5, 1.0], [0.2, 0.0]])
    score = features @ torch.tensor([weights["rate"], weights["hit"]])
    smooth = fitted.potential_of(features, torch.ones(2).bool(), smooth=True)
    assert_close((score[0] - score[1]).double() / 0.3, smooth[0] - smooth[1], rtol=1e-5, atol=1e-5)


def test_the_printed_form_is_the_formula():
    rewards = {
        "rate": RATE | {"weight": 3.0},
        "women": RATE | {"moment": 0.4},
        "hit": HIT | {"hard": True},
    }
    made = target(rewards, kl={"coef": 0.5}, score={"missing_eos_penalty": 0.25})
    lines = str(made).splitlines()
    assert lines[0] == (
        "P_T(y|x) ∝ a(y|x) · exp( 6·rate(x, y) + λ_women·women(x, y) - 0.5·[y has no end] ) · "
        "1[hit(x, y) = 1]"
    )
    assert "    λ_women, not fitted yet, so that E[women] = 0.4" in lines
    fitted = str(made.fitted({"women": 2.0}, {"women": 0.1}))
    assert "    λ_women = 2 ± 0.1, so that E[women] = 0.4" in fitted.splitlines()


def test_the_printed_form_holds_every_clip_scale_and_threshold():
    rewards = {
        "rate": RATE | {"weight": 3.0, "scale": 2.0, "clip": [0.0, 0.5]},
        "some": RATE | {"weight": 1.0, "threshold": 0.3},
    }
    made = target(rewards, kl={"coef": 0.5}, score={"clip": [-1.0, 2.0]})
    lines = str(made).splitlines()
    assert lines[0] == "P_T(y|x) ∝ a(y|x) · exp( clip(6·rate(x, y) + 2·some(x, y), -2, 4) )"
    assert "    rate(x, y) = clip(2·value, 0, 0.5)" in lines
    assert "    some(x, y) = [value ≥ 0.3]" in lines
    watched = target({"rate": RATE | {"weight": 1.0}, "some": RATE | {"weight": 0, "scale": 2.0}})
    assert "some" not in str(watched)


def test_a_potential_without_its_lambda_is_refused():
    with pytest.raises(RuntimeError, match="lambda of rate is not fitted yet"):
        target({"rate": RATE | {"moment": 0.4}}).log_potential([""], ["a"])


def test_the_hash_changes_with_the_code_of_a_reward_file(tmp_path):
    file = tmp_path / "own.py"
    rewards, hashes = {"rate": RATE | {"weight": 1.0}}, []
    for factor in (1, 2):
        file.write_text(
            "from rewards import reward\n"
            f"@reward('mine.length_{factor}', bounds=(0, 1))\n"
            "def length(completions):\n"
            f"    return [{factor} * 0.1 for _ in completions]\n"
        )
        settings = oracle.config(rewards=rewards) | {"reward_files": [str(file)]}
        config = from_mapping(PPORun, settings)
        hashes.append(declare(config, builders.reward_set(rewards)).hash)
    assert hashes[0] != hashes[1] != target(rewards).hash


def test_the_printed_form_says_where_beta_moves():
    made = target({"rate": RATE | {"weight": 3.0}}, kl={"coef": 0.5, "target": 2.0})
    note = "    6 = weight 3 / β 0.5 at the start; β is steered to 2 nats of KL"
    assert note in str(made).splitlines()


def test_the_hash_is_of_the_wish_and_of_all_that_the_target_depends_on():
    rewards = {"rate": RATE | {"moment": 0.4}}
    made = target(rewards)
    assert made.hash == target(rewards).hash == made.fitted({"rate": 2.0}, {}).hash
    others = [
        target({"rate": RATE | {"moment": 0.5}}),
        target({"rate": RATE | {"weight": 0.4}}),
        target({"rate": RATE | {"moment": [0.4, 0.5]}}),
        target(rewards, kl={"coef": 0.3}),
        target(rewards, sampling={"temperature": 0.9}),
        target(rewards, sampling={"max_new_tokens": 5}),
        target(rewards, sampling={"stop": ["b"]}),
        target(rewards, score={"missing_eos_penalty": 1.0}),
    ]
    assert len({other.hash for other in others} | {made.hash}) == len(others) + 1
    # How it is approached is not what it is.
    assert made.hash == target(rewards, train={"seed": 3}, ppo={"epochs": 5}).hash


def test_a_missing_value_adds_nothing_to_a_weight_and_is_refused_under_a_constraint():
    nothing = torch.tensor([[math.nan]])
    weighted = target({"rate": RATE | {"weight": 3.0}})
    assert float(weighted.potential_of(weighted.features(nothing), torch.ones(1).bool())) == 0.0
    with pytest.raises(RewardError, match=r"gave sample 0 no value \(None\), and rewards.rate.mom"):
        target({"rate": RATE | {"moment": 0.4}}).features(nothing)


def test_features_are_the_values_that_the_score_weighs():
    """On tensors as `RewardEntry.shaped` one by one."""
    options = [{}, {"scale": -2.0}, {"threshold": 0.4}, {"scale": 3.0, "clip": [0.5, 2.0]}]
    for entry in (target({"rate": RATE | more}).entries[0] for more in options):
        values = [0.0, 0.3, 0.4, 1.0]
        found = shaped(torch.tensor(values, dtype=torch.float64), entry)
        assert found.tolist() == [entry.shaped(value) for value in values]


def test_what_is_hard_must_be_0_or_1():
    made = target({"rate": RATE | {"hard": True}})
    with pytest.raises(RewardError, match=r"is 0.5 for sample 1, and under hard: true it must be"):
        made.features(torch.tensor([[1.0], [0.5]]))


def test_a_clip_of_the_sum_is_refused_beside_a_moment():
    with pytest.raises(ConfigError, match=r"score.clip=\[0.0, 1.0\] bounds a sum of weights"):
        target({"rate": RATE | {"moment": 0.4}}, score={"clip": [0.0, 1.0]})


def test_without_a_price_on_the_kl_there_is_nothing_to_fit():
    with pytest.raises(ConfigError, match=r"kl.coef=0 with a moment or hard: true of rewards.rate"):
        target({"rate": RATE | {"moment": 0.4}}, kl={"coef": 0.0})


def test_its_state_comes_back():
    made = target({"rate": RATE | {"moment": 0.4}, "hit": HIT | {"hard": True}})
    fitted = made.fitted({"rate": 2.0}, {"rate": 0.1}, {"hit": 0.08})
    assert made.restored(fitted.state_dict()) == fitted
