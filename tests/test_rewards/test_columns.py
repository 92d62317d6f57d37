"""Parameters that come from the data: `{column: NAME}`."""

import random

import jsonschema
import numpy as np
import pytest

from rewards import (
    RewardConfigError,
    RewardError,
    RewardSet,
    Score,
    Span,
    classifiers,
    columns,
    conformance,
    describe,
    entries_json_schema,
    parse_entries,
    reward,
)

pytestmark = pytest.mark.usefixtures("own_registry")


def made(**entry):
    return RewardSet(parse_entries({"x": {"kind": "lexical.contains", **entry}}))


def register_counted():
    """A reward `own.times` that counts `letter`, and what was built and called."""
    built, called = [], []

    @reward("own.times", bounds=(0, float("inf")))
    class Times:
        def __init__(self, *, letter: str, most: int | bool = 9) -> None:
            built.append(letter)
            self.letter, self.most = letter, most

        def __call__(self, completions: list[str]) -> list[float]:
            called.append((self.letter, list(completions)))
            if self.letter == "!" and "bad" in completions:
                raise ValueError("bad text")
            return [float(min(text.count(self.letter), self.most)) for text in completions]

    return built, called


def counted(**entry):
    params = {"letter": {"column": "key"}, **entry}
    return RewardSet(parse_entries({"x": {"kind": "own.times", **params}}))


def test_each_sample_is_scored_under_its_own_value():
    rewards = made(words={"column": "keywords"}, weight=2.0)
    assert rewards.columns == {"keywords"}
    texts = ["The rain fell.", "The rain fell.", "A cat, a dog", "A cat, a dog"]
    keywords = ["rain", ["sun", "moon"], ["dog", "cat"], ["dog"]]  # one string is a list of one
    out = rewards([""] * 4, texts, {"keywords": keywords})
    assert out.values[:, 0].tolist() == [1, 0, 1, 1]
    assert out.score.tolist() == [2, 0, 2, 2]
    assert out.spans == ((Span(4, 8, 2.0),), (), (Span(2, 5, 2.0),), (Span(9, 12, 2.0),))


def test_several_parameters_and_the_prompt_can_be_columns():
    entry = {"kind": "structure.word_count", "min": {"column": "low"}, "max": {"column": "high"}}
    out = RewardSet(parse_entries({"x": entry}))(
        [""] * 3, ["a b c"] * 3, {"low": [1, 4, 0], "high": [3, None, 2]}
    )
    assert out.values[:, 0].tolist() == [1, 0, 0]
    echo = made(words={"column": "prompts"})
    assert echo(["rain", "sun"], ["rain", "rain"]).score.tolist() == [1, 0]
    assert echo.columns == set()


def test_a_reward_is_built_once_for_a_value_and_called_in_batches():
    built, called = register_counted()
    rewards = counted()
    keys = ["a", "b", "a", "b", "a"]
    out = rewards([""] * 5, ["a", "bb", "aa", "b", "ab"], {"key": keys})
    assert out.values[:, 0].tolist() == [1, 2, 2, 1, 1]
    rewards([""] * 2, ["aaa", "bbb"], {"key": ["a", "b"]})
    assert built == ["a", "b"]
    assert called == [("a", ["a", "aa", "ab"]), ("b", ["bb", "b"]), ("a", ["aaa"]), ("b", ["bbb"])]


def test_no_more_than_so_many_rewards_stay_built(monkeypatch):
    monkeypatch.setattr(columns, "_KEPT", 2)
    built, called = register_counted()
    rewards = counted()
    for key in ("a", "b", "a", "c", "a", "b"):  # c drops b, which was used longest ago
        rewards([""], [f"new text {len(called)}"], {"key": [key]})
    assert built == ["a", "b", "c", "b"]


def test_equal_texts_are_scored_once_under_each_value():
    _, called = register_counted()
    out = counted()([""] * 4, ["ab", "ab", "ab", "abb"], {"key": ["a", "b", "a", "b"]})
    assert out.values[:, 0].tolist() == [1, 1, 1, 2]
    assert called == [("a", ["ab"]), ("b", ["ab", "abb"])]


def test_equal_values_of_another_type_are_told_apart():
    register_counted()
    rewards = counted(letter="a", most={"column": "most"})
    out = rewards([""] * 3, ["aaa"] * 3, {"most": [1, True, 2]})
    assert out.values[:, 0].tolist() == [1, 1, 2]
    assert len(rewards._rewards[0]._kept) == 3


def test_the_order_of_samples_does_not_matter():
    rng = random.Random(0)
    words = ["rain", "sun", "moon", "dog"]
    texts = [" ".join(rng.choices(words, k=5)) for _ in range(40)]
    keywords = [rng.sample(words, k=2) for _ in range(40)]
    entry = {"kind": "lexical.word_rate", "words": {"column": "w"}}
    out = RewardSet(parse_entries({"x": entry}))([""] * 40, texts, {"w": keywords})
    order = rng.sample(range(40), k=40)
    turned = RewardSet(parse_entries({"x": entry}))(
        [""] * 40, [texts[i] for i in order], {"w": [keywords[i] for i in order]}
    )
    assert turned.values.tolist() == out.values[order].tolist()
    assert turned.spans == tuple(out.spans[i] for i in order)
    for i in range(40):
        alone = made(kind="lexical.word_rate", words=keywords[i])([""], [texts[i]])
        assert out.spans[i] == alone.spans[0]


def test_dense_credit_under_own_values_keeps_the_contract():
    conformance.check(
        "lexical.word_rate",
        {"words": {"column": "w"}},
        columns={"w": [["she", "moon"], "rain", ["outer space", "雨"]]},
    )

    @reward("own.hasty")
    def hasty(completions: list[str], *, word: str) -> list[float]:
        return [
            Score(1.0, [Span(0, len(word), 1 / len(text))]) if text.startswith(word) else 0.0
            for text in completions
        ]

    with pytest.raises(RewardError, match="is not causal"):
        conformance.check("own.hasty", {"word": {"column": "w"}}, columns={"w": ["She", "rain"]})


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ({"words": {"column": "c"}}, [],
         "rewards.x.words=[]: list should have at least 1 item after validation, not 0 "
         "(from the column 'c')"),
        ({"words": {"column": "c"}}, None,
         "rewards.x.words=None: input should be a valid list (from the column 'c', which is empty "
         "there)"),
        ({"words": {"column": "c"}}, 7,
         "rewards.x.words=7: input should be a valid list (from the column 'c')"),
        ({"words": {"column": "c"}}, ["a", 7],
         "rewards.x.words[1]=7 is not text; quote it (from the column 'c')"),
        ({"words": {"column": "c"}}, "",
         "rewards.x.words=[''] holds '', which has no letter or digit; use lexical.pattern "
         "(from the column 'c')"),
        ({"words": {"column": "c"}}, {"column": "d"},
         "rewards.x.words={'column': 'd'}: input should be a valid list (from the column 'c')"),
        ({"words": "a", "mode": {"column": "c"}}, "most",
         "rewards.x.mode='most': input should be 'any', 'all' or 'share' (from the column 'c')"),
        ({"kind": "structure.word_count", "min": 4, "max": {"column": "c"}}, 3,
         "rewards.x.min=4 is above max=3; swap them (max from the column 'c')"),
        ({"kind": "structure.word_count", "max": {"column": "c"}}, float("nan"),
         "rewards.x.max=nan: input should be a finite number (from the column 'c')"),
        ({"kind": "lexical.pattern", "pattern": {"column": "c"}}, "(",
         "rewards.x.pattern='(' is no RE2 pattern (missing ): (); RE2 has no look-around and no "
         "back-references (from the column 'c')"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_column_and_the_rule(entry, value, message):
    rewards, good = made(**entry), {"words": "a", "mode": "any", "max": 9, "pattern": "a"}
    (name,) = (n for n, v in entry.items() if isinstance(v, dict))
    data = {"c": [good[name], value]}
    for attempt in (
        lambda: rewards.check(["p", "p"], data),
        lambda: rewards(["p", "p"], ["a", "b"], data),
    ):
        with pytest.raises(RewardConfigError) as caught:
            attempt()
        assert str(caught.value) == message
    rewards.check(["p"], {"c": [good[name]]})


def test_a_value_that_cannot_be_compared_is_checked_and_never_remembered():
    @reward("own.any")
    def anything(completions: list[str], *, what: object) -> list[float]:
        return [float(what.shape[0])] * len(completions)

    rewards = RewardSet(parse_entries({"x": {"kind": "own.any", "what": {"column": "w"}}}))
    for sizes in ([1, 2], [3, 3]):
        out = rewards([""] * 2, ["same"] * 2, {"w": [np.zeros(n) for n in sizes]})
        assert out.values[:, 0].tolist() == sizes
    assert rewards._rewards[0]._kept == {}


def test_a_column_that_the_data_lacks_is_named_before_anything_is_scored():
    rewards = made(words={"column": "keywords"})
    message = "reward 'x' needs the column 'keywords'; the data has: completions, id, prompts"
    for attempt in (
        lambda: rewards.check(["p"], {"id": [1]}),
        lambda: rewards.probe(["p"], {"id": [1]}),
        lambda: rewards(["p"], ["a"], {"id": [1]}),
    ):
        with pytest.raises(RewardConfigError) as caught:
            attempt()
        assert str(caught.value) == message


def test_what_cannot_be_a_column_is_refused():
    with pytest.raises(RewardConfigError) as caught:
        made(words={"column": "completions"})
    assert str(caught.value) == (
        "rewards.x.words={'column': 'completions'} is known only once a completion has ended; "
        "name another column"
    )
    for key in ("weight", "scale"):
        with pytest.raises(RewardConfigError, match=rf"^rewards\.x\.{key}={{'column': 'c'}}"):
            made(words="a", **{key: {"column": "c"}})
    with pytest.raises(RewardConfigError, match=r"^rewards\.x\.words={'column': 3}: input should"):
        made(words={"column": 3})
    with pytest.raises(RewardConfigError, match="wrods is not a parameter of"):
        made(words="a", wrods={"column": "c"})


def test_a_failing_sample_has_its_place_in_the_whole_batch():
    register_counted()
    data = {"key": ["a", "!", "!", "a", "a", "a"]}
    texts = ["a", "fine", "bad", "bad", "a", "a"]
    with pytest.raises(RewardError) as caught:
        counted()([""] * 6, texts, data)
    assert str(caught.value).endswith("raised ValueError: bad text for sample 2: 'bad'")
    out = counted(on_error="skip")([""] * 6, texts, data)
    assert out.skipped == {"x": 1} and out.valid[:, 0].tolist() == [True] * 2 + [False] + [True] * 3


def test_an_impure_reward_is_called_every_time_and_an_empty_batch_never():
    calls = []

    @reward("own.impure", cache=False)
    def impure(completions: list[str], *, key: str) -> list[float]:
        calls.append(key)
        return [0.0] * len(completions)

    rewards = RewardSet(parse_entries({"x": {"kind": "own.impure", "key": {"column": "k"}}}))
    for _ in range(2):
        rewards([""], ["a"], {"k": ["one"]})
    rewards([], [], {"k": []})
    assert calls == ["one", "one"]


def test_what_a_model_does_not_know_is_found_before_anything_is_scored():
    entry = {"kind": "style.trained", "path": "example-styles", "label": {"column": "l"}}
    rewards = RewardSet(parse_entries({"x": entry}))
    with pytest.raises(RewardConfigError, match=r"^rewards\.x\.label='nonsense'") as caught:
        rewards.check(["", ""], {"l": ["formal", "nonsense"]})
    assert caught.value.row == 1


def test_a_model_is_read_once_for_all_values(monkeypatch):
    read = []

    class Embedder:
        def __init__(self, model, device):
            read.append(model)

        def encode(self, texts):
            return np.array([[float("sea" in text), float("sky" in text)] for text in texts])

    monkeypatch.setattr(classifiers, "Embedder", Embedder)
    classifiers._embedder.cache_clear()
    try:
        rewards = made(kind="topic.similarity", topic={"column": "topic"})
        out = rewards([""] * 3, ["a sea"] * 3, {"topic": ["the sea", "the sky", "the sea"]})
    finally:
        classifiers._embedder.cache_clear()
    assert out.values[:, 0].tolist() == [1, 0, 1]
    assert read == ["all-minilm-l6-v2"]


def test_the_json_schema_and_the_description_allow_a_column():
    schema = entries_json_schema()
    entry = {"kind": "lexical.contains", "words": {"column": "keywords"}}
    jsonschema.validate({"x": entry}, schema)
    for wrong in ({"column": 3}, {"column": "a", "row": 1}, {"colum": "a"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"x": entry | {"words": wrong}}, schema)
    assert "{column: NAME}" in str(describe("lexical.contains"))
