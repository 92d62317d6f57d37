"""log Z lies between its bounds, and there is an upper one only where P_T can be sampled."""

import itertools
from typing import Any

import pytest
import torch
from builders import seeded
from exact_evidence import world

from rewards import parse_entries
from rlalign.settings.sections import ScoreSection
from rlalign.target import Target
from rlalign.yardstick.log_z import highest_potential, log_z_bounds


@pytest.mark.parametrize("prompts", [1, 3])
@pytest.mark.parametrize("hard", [False, True])
def test_log_z_lies_between_its_bounds(hard, prompts):
    """The mean of many lower bounds is below it, of many upper bounds above; neither by much."""
    this, highest = world(prompts, hard=hard, gap=1.0), 0.0 if hard else 4.0
    exact = float(this.log_z.mean())
    found = [log_z_bounds(this.sample(512, s), highest, seeded(s)) for s in range(200)]
    lower = torch.tensor([each.lower.value for each in found])
    upper = torch.tensor([each.upper.value for each in found])
    error = 2 * float(torch.maximum(lower.std(), upper.std())) / 200**0.5
    assert exact - 0.05 < lower.mean() < exact + error
    assert exact - error < upper.mean() < exact + 0.05
    holds = [each.lower.interval[0] <= exact and exact <= each.upper.interval[1] for each in found]
    assert sum(holds) >= 178


def test_a_single_sample_bounds_log_z_from_both_sides_by_far():
    """K = 1 or so: the gap is the two KLs between the mixture and the target."""
    this = world(1, gap=1.0)
    found = [log_z_bounds(this.sample(48, s), 4.0, seeded(s)) for s in range(200)]
    exact = float(this.log_z.mean())
    two_sided = [each for each in found if each.upper.value is not None]
    assert len(two_sided) > 50
    lower = sum(each.lower.value for each in found) / len(found)
    upper = sum(each.upper.value for each in two_sided) / len(two_sided)
    assert lower < exact - 0.01 and exact + 0.01 < upper


def test_without_an_upper_bound_of_the_potential_log_z_is_one_sided():
    found = log_z_bounds(world(1).sample(256, 0), None, seeded(0))
    assert found.lower.value is not None and found.upper.value is None
    assert "one-sided: the potential has no upper bound" in found.upper.note


def test_without_exact_samples_log_z_is_one_sided():
    found = log_z_bounds(world(1).sample(256, 0), 30.0, seeded(0))
    assert "one-sided: rejection found only 0 exact sample(s)" in found.upper.note


# -- the potential's upper bound -------------------------------------------------------------------

CONTAINS = {"kind": "lexical.contains", "words": ["she"]}  # 0 to 1
REPEATS = {"kind": "structure.repetition", "n": 3}  # -1 to 0
PATTERN = {"kind": "lexical.pattern", "pattern": "a"}  # 0 and above
BETA = 0.5


def target(rewards: dict[str, dict[str, Any]], lambdas: dict[str, float], **score: Any) -> Target:
    entries = tuple(parse_entries(rewards))
    declared = Target(entries, BETA, ScoreSection(**score), {})
    return declared.fitted(lambdas, {}, {entry.name: 0.1 for entry in declared.hard})


@pytest.mark.parametrize(
    ("rewards", "lambdas", "score"),
    [
        ({"a": CONTAINS | {"weight": 2.0}}, {}, {}),
        ({"a": CONTAINS | {"weight": -2.0}}, {}, {}),
        ({"a": CONTAINS | {"weight": 2.0, "scale": -3.0}}, {}, {}),
        ({"a": CONTAINS | {"weight": 2.0}, "b": REPEATS | {"weight": -1.0}}, {}, {}),
        ({"a": CONTAINS | {"weight": 2.0}}, {}, {"clip": [-1.0, 0.5]}),
        ({"a": CONTAINS | {"moment": 0.5}}, {"a": 3.0}, {}),
        ({"a": CONTAINS | {"moment": 0.1}}, {"a": -3.0}, {}),
        ({"a": REPEATS | {"moment": -0.1}, "b": CONTAINS | {"hard": True}}, {"a": 2.0}, {}),
        ({"a": CONTAINS | {"moment": 0.5, "clip": [0.2, 0.7]}}, {"a": 3.0}, {}),
        ({"a": CONTAINS | {"moment": 0.5}, "b": CONTAINS | {"weight": 1.0}}, {"a": 3.0}, {}),
    ],
)
def test_the_highest_potential_is_that_of_the_best_values(rewards, lambdas, score):
    """By trying every corner of the rewards' ranges."""
    this = target(rewards, lambdas, **score)
    ranges = [(-1.0, 0.0) if each["kind"] == "structure.repetition" else (0.0, 1.0)
              for each in rewards.values()]  # fmt: skip
    corners = torch.tensor(list(itertools.product(*ranges)), dtype=torch.float64)
    finished = torch.ones(len(corners), dtype=torch.bool)
    best = float(this.potential_of(this.features(corners), finished).max())
    assert highest_potential(this) == pytest.approx(best)


def test_a_reward_that_can_grow_for_ever_leaves_no_upper_bound():
    assert highest_potential(target({"a": PATTERN | {"weight": 1.0}}, {})) is None
    # Where it lowers the potential, or is clipped, there is one.
    assert highest_potential(target({"a": PATTERN | {"weight": -1.0}}, {})) == 0.0
    clipped = PATTERN | {"weight": 1.0, "clip": [0.0, 4.0]}
    assert highest_potential(target({"a": clipped}, {})) == 4.0 / BETA


def test_the_value_of_a_failed_sample_counts():
    """What stands for a reward that fails need not lie within its bounds."""
    failing = CONTAINS | {"weight": 1.0, "on_error": "value", "error_value": 5.0}
    assert highest_potential(target({"a": failing}, {})) == 5.0 / BETA
