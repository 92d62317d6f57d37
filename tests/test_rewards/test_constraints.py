"""Moments and hard constraints of a reward entry: what is read, and what is refused."""

import json

import pytest

from rewards.constraints import shaped_range
from rewards.contract import RewardConfigError
from rewards.entries import parse_entries

SAYS = {"kind": "lexical.contains", "words": ["she"]}
COUNT = {"kind": "structure.word_count", "min": 5, "max": 40}


def parsed(**options):
    return parse_entries({"x": SAYS | options})[0]


def test_a_moment_has_no_weight_and_is_an_interval():
    entry = parsed(moment=0.5)
    assert entry.moment == (0.5, 0.5) and entry.weight == 0.0 and entry.is_constraint
    assert parsed(moment=[0.2, 0.4]).moment == (0.2, 0.4)
    assert parsed(hard=True).is_constraint and not parsed().is_constraint


@pytest.mark.parametrize("options", [{"moment": 0.5}, {"moment": [0.2, 0.4]}, {"hard": True}, {}])
def test_an_entry_comes_back_from_what_it_is_saved_as(options):
    entry = parsed(**options)
    assert parse_entries({"x": json.loads(json.dumps(entry.settings()))}) == [entry]


def test_the_range_follows_threshold_scale_and_clip():
    assert shaped_range((0.0, 1.0), {"scale": -2.0}) == (-2.0, 0.0)
    assert shaped_range((-5.0, 5.0), {"threshold": 1.0, "scale": 3.0}) == (0.0, 3.0)
    assert shaped_range((-5.0, 5.0), {"clip": (0.0, 9.0)}) == (0.0, 5.0)
    assert shaped_range(None, {"clip": (0.0, 9.0)}) == (0.0, 9.0)
    assert shaped_range(None, {}) is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (SAYS | {"moment": 0.5, "weight": 2},
         "rewards.x.moment=0.5 beside rewards.x.weight=2: a moment fits its own weight"),
        (SAYS | {"hard": True, "weight": 0}, "rewards.x.hard=true beside rewards.x.weight=0"),
        (SAYS | {"hard": True, "moment": 0.5},
         "rewards.x.moment=0.5 and rewards.x.hard=true ask for two things"),
        (SAYS | {"moment": 1.5}, "rewards.x.moment=1.5 is outside of the reward's range, 0 to 1"),
        (SAYS | {"moment": [1.2, 1.5]}, "rewards.x.moment=[1.2, 1.5] is outside of"),
        (SAYS | {"moment": 1}, "rewards.x.moment=1.0 is the end of the reward's range, 0 to 1"),
        (SAYS | {"moment": 0.0}, "rewards.x.moment=0.0 is the end of the reward's range"),
        (SAYS | {"moment": 0.5, "scale": 0.25}, "rewards.x.moment=0.5 is outside of the"),
        (SAYS | {"moment": [0.6, 0.4]},
         "rewards.x.moment=[0.6, 0.4] must be one number or [low, high]; write [0.4, 0.6]"),
        (SAYS | {"moment": [0.9, 1.5]},
         "rewards.x.moment=[0.9, 1.5] goes beyond the reward's range"),
        (SAYS | {"moment": 2, "scale": -1},
         "rewards.x.moment=2.0 is outside of the reward's range, -1 to 0"),
        (SAYS | {"moment": "half"}, "rewards.x.moment='half'"),
        (SAYS | {"moment": 0.5, "on_error": "skip"},
         "rewards.x.moment=0.5 with rewards.x.on_error=skip: every sample needs a value"),
        (SAYS | {"hard": True, "scale": 2.0}, "rewards.x.hard=true: a response holds it or not"),
        ({"kind": "topic.similarity", "topic": "rain", "hard": True},
         "rewards.x.hard=true needs a value of 0 or 1, and this kind's values are between -1"),
        (SAYS | {"hard": "maybe"}, "rewards.x.hard='maybe'"),
    ],
)  # fmt: skip
def test_a_wish_that_nothing_can_meet_is_refused(entry, message):
    with pytest.raises(RewardConfigError) as caught:
        parse_entries({"x": entry})
    assert str(caught.value).startswith(message)


def test_a_threshold_makes_any_reward_fit_to_be_hard():
    (entry,) = parse_entries({"x": COUNT | {"hard": True, "threshold": 1.0}})
    assert entry.hard and entry.shaped(0.4) == 0.0 and entry.shaped(1.0) == 1.0


def test_a_part_of_a_combination_takes_neither():
    with pytest.raises(RewardConfigError, match=r"moment=0.5 belongs to the combination"):
        parse_entries({"x": {"kind": "combine.min", "parts": {"a": SAYS | {"moment": 0.5}}}})
