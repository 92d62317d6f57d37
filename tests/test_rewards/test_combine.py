"""Several rewards as one value, thresholds, and weights on a schedule."""

import json

import jsonschema
import pytest

from rewards import (
    RewardConfigError,
    RewardError,
    RewardSet,
    Score,
    Span,
    conformance,
    describe,
    entries_json_schema,
    parse_entries,
    reward,
)
from rewards.compose import score_spans
from rewards.entries import Ramp, RewardEntry

pytestmark = pytest.mark.usefixtures("own_registry")

RAIN = {"kind": "lexical.contains", "words": ["rain"]}
EXCLAIMS = {"kind": "lexical.pattern", "pattern": "!", "mode": "count"}
RATE = {"kind": "lexical.word_rate", "words": ["rain"]}


def joined(how, **parts):
    return {"kind": f"combine.{how}", "parts": parts}


def scored(entry, *texts, **columns):
    return RewardSet(parse_entries({"x": entry}))([""] * len(texts), texts, columns)


def values(entry, *texts):
    return scored(entry, *texts).values[:, 0].tolist()


def test_the_product_and_the_smallest_of_the_parts_by_hand():
    texts = ["rain rain sun it", "sun", "rain"]  # rates 1/2, 0, 1; exclamations 0
    parts = {"rate": RATE, "three": EXCLAIMS | {"scale": 2, "clip": [0.75, 3]}}
    assert values(joined("all", **parts), *texts) == [0.375, 0, 0.75]
    assert values(joined("min", **parts), *texts) == [0.5, 0, 0.75]
    assert values(joined("all", **parts), "rain !!") == [3]
    assert values(joined("min", **parts), "rain !!") == [1]
    assert values(joined("all", a=EXCLAIMS | {"scale": -1}), "!!", "") == [-2, 0]


def test_the_combination_is_shaped_and_weighed_as_any_value():
    entry = joined("all", a=RATE, b=RAIN) | {"scale": 4, "clip": [0, 1.5], "weight": -2}
    out = scored(entry, "rain sun it so", "rain sun")
    assert out.values[:, 0].tolist() == [0.25, 0.5] and out.score.tolist() == [-2, -3]
    high = joined("min", a=RATE) | {"threshold": 0.5}
    assert scored(high, "rain sun", "rain sun it").score.tolist() == [1, 0]


def test_a_threshold_makes_one_of_what_reaches_it_and_zero_of_the_rest():
    entry = EXCLAIMS | {"threshold": 2, "scale": 3, "weight": 0.5}
    out = scored(entry, "", "!", "!!", "!!!")
    assert out.values[:, 0].tolist() == [0, 1, 2, 3]  # the metric is the reward's own value
    assert out.score.tolist() == [0, 0, 1.5, 1.5]
    assert scored(EXCLAIMS | {"threshold": 0}, "").score.tolist() == [1]
    assert scored(EXCLAIMS | {"threshold": -1.5, "scale": -1}, "!").score.tolist() == [-1]
    parts = {"a": EXCLAIMS | {"threshold": 1}, "b": EXCLAIMS | {"threshold": 3}}
    assert values(joined("all", **parts), "", "!", "!!!") == [0, 0, 1]


def test_credit_under_a_threshold_lands_where_the_running_sum_crosses_it():
    entry = RewardEntry("x", "lexical.contains", weight=2.0, threshold=0.5, scale=3.0)
    spans = [Span(0, 1, 0.25), Span(2, 3, 0.25), Span(4, 5, 0.5), Span(6, 7, -0.75)]
    # The running sum 0.25, 0.5, 1, 0.25 is 0, 1, 1, 0 under the threshold.
    assert score_spans(entry, Score(0.25, spans)) == [Span(2, 3, 6.0), Span(6, 7, -6.0)]
    assert score_spans(entry, Score(1.0, spans[:3])) == [Span(2, 3, 6.0)]
    low = RewardEntry("x", "lexical.contains", threshold=-0.5)  # 1 to begin with
    assert score_spans(low, Score(-1.0, [Span(0, 1, -1.0)])) == [Span(0, 1, -1.0)]


def test_a_combination_leaves_all_credit_to_the_last_action():
    both = {"dense": RATE | {"weight": 2.0}, "x": joined("min", a=RATE, b=RAIN)}
    out = RewardSet(parse_entries(both))([""], ["rain sun"])
    assert out.score.tolist() == [2.0 * 0.5 + 0.5]
    assert out.spans == ((Span(0, 4, 2.0), Span(5, 8, -1.0)),)
    alone = RewardSet(parse_entries({"x": joined("all", a=RATE)}))([""], ["rain sun"])
    assert alone.values.tolist() == [[0.5]] and alone.spans == ((),)


@pytest.mark.parametrize("how", ["all", "min"])
def test_combinations_keep_the_contract(how):
    parts = {
        "a": {"kind": "lexical.word_rate", "words": {"column": "w"}, "scale": 4, "clip": [0, 1]},
        "b": joined("all", c={"kind": "lexical.diversity", "threshold": 0.5}, d=EXCLAIMS),
        "e": {"kind": "lexical.excludes", "words": ["very"], "mode": "count"},
    }
    data = {"w": [["she"], "rain", ["moon", "雨"]]}
    conformance.check(f"combine.{how}", {"parts": parts}, columns=data)


def test_the_contract_is_not_kept_by_a_part_that_looks_at_the_batch():
    @reward("own.batch")
    def batch(completions: list[str]) -> list[float]:
        return [float(len(completions))] * len(completions)

    with pytest.raises(RewardError, match=r"combine\.min.* alone, but gave"):
        conformance.check("combine.min", {"parts": {"a": {"kind": "own.batch"}}})


def register_choosy():
    @reward("own.choosy")
    def choosy(completions: list[str]) -> list[float | None]:
        if "bad" in completions:
            raise ValueError("bad text")
        given = {"none": None, "nan": float("nan"), "huge": 1e10}
        return [given.get(text, 1.0) for text in completions]

    return {"kind": "own.choosy"}


@pytest.mark.parametrize("how", ["all", "min"])
def test_a_part_that_gives_none_makes_the_combination_none(how):
    choosy, zero = register_choosy(), EXCLAIMS
    for parts in ({"a": choosy, "b": zero}, {"a": zero, "b": choosy}):
        out = scored(joined(how, **parts), "none", "x")
        assert out.valid.tolist() == [[False], [True]] and out.score.tolist() == [0, 0]


def test_the_order_of_parts_and_samples_does_not_matter():
    parts = {"a": RATE, "b": EXCLAIMS, "c": {"kind": "lexical.diversity", "n": 1}}
    texts = ["rain ! !", "", "rain rain sun !", "sun", "!!! rain rain rain"]
    turned = dict(reversed(parts.items()))
    for how in ("all", "min"):
        expected = values(joined(how, **parts), *texts)
        assert values(joined(how, **turned), *texts) == pytest.approx(expected)
        assert values(joined(how, **parts), *texts[::-1]) == expected[::-1]
        assert len(set(expected)) > 2


def test_a_part_that_fails_is_named_with_the_sample():
    entry = joined("min", fine=RAIN, odd=register_choosy())
    where = r"^reward 'x\.parts\.odd' \(own\.choosy, tests/test_rewards/test_combine\.py:\d+\) "
    with pytest.raises(RewardError, match=where + "raised ValueError: bad text for sample 1: 'bad"):
        scored(entry, "x", "bad", "x")
    with pytest.raises(RewardError, match=where + "returned nan for sample 2: 'nan'$"):
        scored(entry, "x", "none", "nan")
    out = scored(entry | {"on_error": "skip"}, "rain", "nan", "rain", "bad", *["rain"] * 5, "rain!")
    assert out.skipped == {"x": 2} and out.score.tolist() == [1, 0, 1, 0] + [1] * 6
    with pytest.raises(RewardError, match="failed on 1 of 3 samples; on_error: skip allows 20%"):
        scored(entry | {"on_error": "skip"}, "x", "bad", "nan")


def test_a_product_that_is_too_large_is_no_value():
    choosy = register_choosy()
    where = r"^reward 'x' \(combine\.all, rewards/combine\.py:\d+\) "
    with pytest.raises(
        RewardError, match=where + r"gave 1e\+20 \(the most is 1e\+15\) for sample 1"
    ):
        scored(joined("all", a=choosy, b=choosy), "x", "huge")
    assert values(joined("min", a=choosy, b=choosy), "huge") == [1e10]


def test_a_part_may_take_its_values_from_the_data():
    entry = joined("min", a={"kind": "lexical.contains", "words": {"column": "w"}}, b=RAIN)
    out = scored(entry, "rain sun", "rain sun", "sun", w=["sun", "moon", "sun"])
    assert out.values[:, 0].tolist() == [1, 0, 0]
    rewards = RewardSet(parse_entries({"x": entry}))
    assert rewards.columns == {"w"}
    with pytest.raises(RewardConfigError) as caught:
        rewards.check([""])
    assert str(caught.value) == (
        "reward 'x.parts.a' needs the column 'w'; the data has: completions, prompts"
    )
    with pytest.raises(RewardConfigError) as caught:
        rewards.check([""], {"w": [3]})
    assert str(caught.value) == (
        "rewards.x.parts.a.words=3: input should be a valid list (from the column 'w')"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "combine.min"},
         "rewards.x.parts is missing; combine.min needs it (dict[str, Any])"),
        ({"kind": "combine.min", "parts": [RAIN]},
         "rewards.x.parts=[{'kind': 'lexical.contains', 'words': ['rain']}]: input should be a "
         "valid dictionary"),
        (joined("min"), "rewards.x.parts={} holds no part; name one"),
        (joined("min", a=None), "rewards.x.parts={'a': None} holds no part; name one"),
        (joined("min", a="lexical.contains"),
         "rewards.x.parts.a='lexical.contains' must be a mapping with a kind and its parameters"),
        (joined("min", column="c"),
         "rewards.x.parts.column='c' must be a mapping with a kind and its parameters"),
        (joined("min", a={"kind": "lexical.contians", "words": ["a"]}),
         "rewards.x.parts.a.kind='lexical.contians' is unknown; did you mean 'lexical.contains'?"),
        (joined("min", a=RAIN | {"words": [2024]}),
         "rewards.x.parts.a.words[0]=2024 is not text; quote it"),
        (joined("min", a=joined("all", b=RAIN | {"mode": "most"})),
         "rewards.x.parts.a.parts.b.mode='most': input should be 'any', 'all' or 'share'"),
        (joined("min", a=RAIN | {"weight": 2}),
         "rewards.x.parts.a.weight=2 belongs to the combination; a part takes threshold, scale, "
         "clip"),
        (joined("min", a=RAIN | {"on_error": "skip"}),
         "rewards.x.parts.a.on_error='skip' belongs to the combination; a part takes threshold, "
         "scale, clip"),
        (joined("min", a=RAIN | {"clip": [1, 0]}),
         "rewards.x.parts.a.clip=[1.0, 0.0] must be [low, high]"),
        (joined("min", **{"a.b": RAIN}),
         "rewards.x.parts.a.b: a reward's name is letters, digits, _ and -, a letter first"),
        (RAIN | {"threshold": "high"},
         "rewards.x.threshold='high': input should be a valid number"),
        (RAIN | {"threshold": float("nan")},
         "rewards.x.threshold=nan: input should be a finite number"),
        (RAIN | {"weight": {"from": 0, "to": 1}},
         "rewards.x.weight={'from': 0, 'to': 1} must be a number, or hold from, to and iterations"),
        (RAIN | {"weight": {"from": 0, "to": "up", "iterations": 3}},
         "rewards.x.weight.to='up': input should be a valid number"),
        (RAIN | {"weight": {"from": 0, "to": float("inf"), "iterations": 3}},
         "rewards.x.weight.to=inf: input should be a finite number"),
        (RAIN | {"weight": {"from": 0, "to": 1, "iterations": 0}},
         "rewards.x.weight.iterations=0: input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named_as_typed(entry, message):
    with pytest.raises(RewardConfigError) as caught:
        parse_entries({"x": entry})
    line = str(caught.value)
    # pydantic appends its reason to some of its rules
    assert line == message or line.startswith(f"{message}, unable to parse")


def test_what_a_part_refuses_when_it_is_built_is_named_too():
    entry = joined("min", a={"kind": "structure.word_count", "min": 9, "max": 3})
    with pytest.raises(RewardConfigError) as caught:
        scored(entry, "a")
    assert str(caught.value) == "rewards.x.parts.a.min=9 is above max=3; swap them"


def test_parts_are_completed_and_pass_the_check_again():
    section = {"x": joined("min", a=RATE | {"threshold": 0.5}, b=None, c=joined("all", d=RAIN))}
    (entry,) = parse_entries(section)
    plain = {"threshold": None, "scale": 1.0, "clip": None}
    assert entry.settings() == {
        "kind": "combine.min", "weight": 1.0, "on_error": "raise", **plain,
        "error_value": None, "isolate": False, "deadline": None, "moment": None, "hard": False,
        "parts": {
            "a": RATE | plain | {"threshold": 0.5},
            "c": {"kind": "combine.all", **plain, "parts": {"d": RAIN | {"mode": "any"} | plain}},
        },
    }  # fmt: skip
    assert parse_entries({"x": json.loads(json.dumps(entry.settings()))}) == [entry]


def test_the_json_schema_knows_parts_thresholds_and_schedules():
    schema = entries_json_schema()
    nested = joined("min", a=RAIN | {"threshold": 0.5}, b=joined("all", c=RATE, d=None))
    ramp = {"from": 0, "to": 1.5, "iterations": 3}
    jsonschema.validate({"x": nested, "y": RAIN | {"weight": ramp}}, schema)
    for bad in (
        joined("min", a={"kind": "nope"}),
        joined("min", a=joined("all", b={"kind": "lexical.contains"})),
        joined("min", a=RAIN | {"weight": 2}),
        RAIN | {"weight": {"from": 0}},
        RAIN | {"weight": "heavy"},
        RAIN | {"threshold": "high"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"x": bad}, schema)


def test_the_description_says_what_a_combination_reads():
    page = str(describe("combine.all"))
    assert "reads: what its parts read" in page and "parts: dict[str, Any]   (required)" in page
    assert "rewards/combine.py:" in page and "{column: NAME}" not in page


def test_a_ramp_goes_in_equal_steps_and_stays():
    ramp = Ramp(1.0, -1.0, 4)
    assert [ramp.at(i) for i in (0, 1, 2, 3, 4, 5, 99)] == [1, 0.5, 0, -0.5, -1, -1, -1]
    assert ramp.at(None) == -1
    assert Ramp(0.0, 0.3, 1).at(1) == 0.3


def test_score_and_credit_follow_the_weight_of_the_iteration():
    entry = RATE | {"weight": {"from": 0, "to": 2, "iterations": 4}}
    rewards = RewardSet(parse_entries({"x": entry, "y": RAIN}))
    assert rewards.weights == (2.0, 1.0)
    for iteration, weight in ((0, 0.0), (1, 0.5), (4, 2.0), (None, 2.0)):
        out = rewards([""], ["rain sun"], iteration=iteration)
        assert out.weights == {"x": weight}
        assert out.score.tolist() == [0.5 * weight + 1]
        assert sum(span.credit for span in out.spans[0]) == 0.5 * weight + 1
        assert out.values.tolist() == [[0.5, 1]]
