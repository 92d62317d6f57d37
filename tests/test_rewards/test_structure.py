import pytest

from rewards.contract import RewardConfigError, Score
from rewards.registry import check_params
from rewards.structure import (
    JsonSchema,
    Sentences,
    WordCount,
    ends_cleanly,
    format,
    repetition,
    split_sentences,
)


def test_word_count_falls_off_linearly_outside_its_range():
    reward = WordCount(min=2, max=3, slack=4)
    texts = ["", "a", "a b", "a b c", "a b c d", "a b c d e f", "a b c d e f g", "a " * 90]
    assert reward(texts) == [0.5, 0.75, 1, 1, 0.75, 0.25, 0, 0]


def test_word_count_without_slack_is_one_or_zero():
    assert WordCount(min=1)(["", "?!", "🚀", "don't", "a b c"]) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", [WordCount, Sentences])
def test_reversed_ranges_are_refused(kind):
    with pytest.raises(RewardConfigError, match=r"min=9 is above max=3"):
        kind(min=9, max=3)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("?! ...", 0),
        ("One", 1),
        ("One. Two! Three? Rest", 4),
        ("Dr. Smith met J. Doe. They left.", 2),
        ("Wait... what? Well… yes.", 2),
        ("He paid 3.5 euros at example.com today.", 1),
        ('"Stop!" She ran. (Far.)', 3),
        ("東京に雨が降る。「寒い。」彼は言った。", 3),
        ("Really?! Yes.", 2),
    ],
)
def test_sentences_are_counted(text, count):
    assert len(split_sentences(text)) == count


def test_sentences_scores_the_count():
    assert Sentences(min=1, max=2, slack=2)(["", "Aa.", "Aa. Bb. Cc.", "Aa. Bb. Cc. Dd."]) == [
        0.5,
        1,
        0.5,
        0,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Done.",
        "Done!",
        "Done?",
        "Really?!",
        'He said "no."',
        "(Done.)",
        "Done. \n",
        "雨。",
        "**Done.**",
    ],
)
def test_a_sentence_mark_is_a_clean_end(text):
    assert ends_cleanly([text]) == [1.0]


@pytest.mark.parametrize(
    "text", ["", "Done", "Done,", "Done:", "Done. 🚀", "and then...", "and…", '"']
)
def test_other_ends_are_unclean(text):
    assert ends_cleanly([text]) == [0.0]


def test_trailing_off_is_clean_only_when_asked_for():
    assert ends_cleanly(["and then...", "and…", 'so…"', "and"], ellipsis=True) == [1, 1, 1, 0]


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}},
    "patternProperties": {"^n_": {"type": "integer"}},
    "required": ["name"],
}


def test_json_schema_tells_valid_from_parsing_from_text():
    reward = JsonSchema(schema=SCHEMA, partial=0.25)
    texts = [
        '{"name": "moon"}',
        ' {"name": "x"}\n',
        '{"name": "Moon"}',
        "[]",
        "7",
        '{"name": "a", "n_b": "c"}',
    ]
    assert reward(texts) == [1, 1, 0.25, 0.25, 0.25, 0.25]
    assert (
        reward(["", "moon", '{"name": "moon"', '```json\n{"name": "a"}\n```', '{"name": NaN}'])
        == [0] * 5
    )


def test_json_schema_survives_hostile_text():
    assert JsonSchema(schema={})(["[" * 100_000, "1" * 10_000, '"\\ud800"']) == [0, 0, 1]


def test_a_pattern_that_is_not_re2_is_refused_with_the_schema():
    for schema in ({"pattern": "(?=a)"}, {"patternProperties": {"(?=a)": {}}}):
        with pytest.raises(RewardConfigError, match=r"x\.schema=.* is no JSON Schema: .*\(\?=a\)"):
            check_params("structure.json_schema", {"schema": schema}, "x")


def test_json_schema_runs_patterns_in_re2():
    # `re` knows no \pL, and would take forever on others.
    named = JsonSchema(schema={"type": "string", "pattern": r"^\pL+$"})
    assert named(['"caf\u00e9"', '"cafe1"']) == [1, 0.5]
    keyed = JsonSchema(schema={"patternProperties": {r"^\pN": {"type": "integer"}}})
    assert keyed(['{"1": 2}', '{"1": "a"}', '{"a": "a"}']) == [1, 0.5, 1]


def test_json_schema_fetches_no_reference(monkeypatch):
    asked = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *request, **options: asked.append(request))
    with pytest.raises(Exception, match=r"example\.invalid"):
        JsonSchema(schema={"$ref": "https://example.invalid/x.json"})(["{}"])
    assert asked == []


def test_format_needs_the_whole_text():
    assert format(["ab", "abc", "", "xab"], pattern="ab") == [1, 0, 0, 0]


def test_repetition_is_minus_the_share_of_repeated_ngrams():
    # bigrams: ab ba ab ba -> 2 of 4 repeat
    values = repetition(["a b a b a", "a b c d e", "a", "", "🚀"], n=2)
    assert values == [-0.5, 0, 0, 0, 0]
    assert isinstance(values[0], Score)
    assert [s.credit for s in values[0].spans] == pytest.approx([-1 / 3, -1 / 6])


def test_a_number_that_no_float_holds_is_worth_nothing_under_multiple_of():
    assert JsonSchema(schema={"multipleOf": 0.5})(["9" * 400, "2"]) == [0.0, 1.0]
