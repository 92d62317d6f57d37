import math

import pytest

from rewards import RewardConfigError, RewardSet, parse_entries
from rewards.entries import entries_json_schema


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "lexical.contains", "words": ["a"], "isolate": "perhaps"},
         "rewards.x.isolate='perhaps': input should be a valid boolean"),
        ({"kind": "lexical.contains", "words": ["a"], "isolate": True, "deadline": 0},
         "rewards.x.deadline=0: input should be greater than 0"),
        ({"kind": "lexical.contains", "words": ["a"], "isolate": True, "deadline": math.inf},
         "rewards.x.deadline=inf: input should be less than or equal to 86400"),
        ({"kind": "lexical.contains", "words": ["a"], "deadline": 5},
         "rewards.x.deadline=5 counts only with isolate: true; set that or remove it"),
        ({"kind": "lexical.contains", "words": ["a"], "on_error": "value"},
         "rewards.x.on_error='value' needs rewards.x.error_value"),
        ({"kind": "lexical.contains", "words": ["a"], "on_error": "skip", "error_value": 0.5},
         "rewards.x.error_value=0.5 counts only with on_error: value"),
        ({"kind": "lexical.contains", "words": ["a"], "on_error": "value",
          "error_value": math.nan}, "rewards.x.error_value=nan: "),
        ({"kind": "lexical.contains", "words": ["a"], "weight": "heavy"},
         "rewards.x.weight='heavy': input should be a valid number"),
        ({"kind": "lexical.contains", "words": ["a"], "weight": math.nan},
         "rewards.x.weight=nan: "),
        ({"kind": "lexical.contains", "words": ["a"], "clip": [1, 0]},
         "rewards.x.clip=[1.0, 0.0] must be"),
        ({"kind": "lexical.contains", "words": ["a"], "clip": 1},
         "rewards.x.clip=1: input should be"),
        ({"kind": "lexical.contains", "words": ["a"], "on_error": "ignore"},
         "rewards.x.on_error='ignore': input should be 'raise', 'skip' or"),
        ({"words": ["a"]}, "rewards.x.kind is missing; kinds: combine.all"),
        ({"kind": 3}, "rewards.x.kind=3 is not text"),
        ({"kind": "lexical.contians"}, "rewards.x.kind='lexical.contians' is unknown; did you"),
        ("lexical.contains", "rewards.x='lexical.contains' must be a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named_as_typed(entry, message):
    with pytest.raises(RewardConfigError) as caught:
        parse_entries({"x": entry})
    assert str(caught.value).startswith(message)


def test_an_isolated_reward_has_a_deadline():
    entry = {"kind": "lexical.contains", "words": ["a"], "isolate": True}
    assert parse_entries({"x": entry})[0].deadline == 30.0
    assert parse_entries({"x": {**entry, "deadline": 5}})[0].deadline == 5.0
    assert parse_entries({"x": {**entry, "isolate": False}})[0].deadline is None


def test_a_cross_check_of_a_reward_names_the_setting():
    entries = parse_entries({"brief": {"kind": "structure.word_count", "min": 9, "max": 3}})
    with pytest.raises(RewardConfigError) as caught:
        RewardSet(entries)
    assert str(caught.value) == "rewards.brief.min=9 is above max=3; swap them"


def test_names_that_cannot_be_typed_are_refused():
    for name in ("a.b", "a/b", "", "1a"):
        with pytest.raises(RewardConfigError, match="a reward's name is letters"):
            parse_entries({name: {"kind": "lexical.diversity"}})
    with pytest.raises(RewardConfigError, match="quote it"):
        parse_entries({True: {"kind": "lexical.diversity"}})


def test_null_removes_an_entry():
    assert parse_entries({"x": None}) == []


def test_the_json_schema_of_a_section_knows_every_kind():
    import jsonschema

    schema = entries_json_schema()
    good = {"x": {"kind": "lexical.contains", "words": ["a"], "weight": 2}, "y": None}
    jsonschema.validate(good, schema)
    for bad in (
        {"kind": "nope"},
        {"kind": "lexical.contains"},
        {"kind": "lexical.diversity", "m": 1},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"x": bad}, schema)
