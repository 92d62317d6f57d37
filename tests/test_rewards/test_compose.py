import pickle

import pytest

from rewards import RewardConfigError, RewardError, RewardSet, Score, Span, parse_entries, reward
from rewards.compose import RewardEntry, score_spans


def test_the_score_is_the_weighted_sum_of_clipped_scaled_values():
    entries = parse_entries(
        {
            "she": {"kind": "lexical.contains", "words": "she", "weight": 2},
            "words": {
                "kind": "structure.word_count",
                "min": 2,
                "scale": 3,
                "clip": [0, 2],
                "weight": 0.5,
            },
            "metric": {"kind": "lexical.diversity", "n": 1, "weight": 0},
        }
    )
    out = RewardSet(entries)(["", ""], ["she ran", "he"])
    assert out.names == ("she", "words", "metric")
    assert out.values.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert out.score.tolist() == [2 * 1 + 0.5 * 2, 0]
    assert out.spans == ((Span(0, 3, 2.0), Span(4, 7, 1.0)), ())
    assert out.valid.all() and out.skipped == {}


def test_two_rewards_of_one_name_are_refused():
    entry = RewardEntry("x", "lexical.diversity")
    with pytest.raises(RewardConfigError, match=r"rewards\.x is there twice"):
        RewardSet([entry, entry])


def test_every_check_comes_before_the_first_model_is_loaded():
    loaded = []

    @reward("own.heavy")
    class Heavy:
        def load(self) -> None:
            loaded.append(self)

        def __call__(self, completions: list[str]) -> list[float]:
            return [0.0] * len(completions)

    heavy, wrong = RewardEntry("heavy", "own.heavy"), {"min": 9, "max": 3}
    with pytest.raises(RewardConfigError):
        RewardSet([heavy, RewardEntry("w", "structure.word_count", wrong)])
    assert loaded == []
    RewardSet([heavy])([""], ["a"])
    assert len(loaded) == 1


def test_spans_are_scaled_to_score_units():
    entry = RewardEntry("x", "lexical.contains", weight=2.0, scale=-3.0)
    assert score_spans(entry, Score(0.5, [Span(0, 4, 0.5)])) == [Span(0, 4, -3.0)]


def test_clip_telescopes_credit_without_looking_ahead():
    entry = RewardEntry("x", "lexical.contains", weight=2.0, clip=(0.0, 1.0))
    spans = [Span(0, 1, 0.75), Span(2, 3, 0.75), Span(4, 5, 0.5)]
    clipped = score_spans(entry, Score(2.0, spans))
    # The running sum 0.75, 1.5, 2 is cut to 0.75, 1, 1.
    assert clipped == [Span(0, 1, 1.5), Span(2, 3, 0.5)]
    # The same start of a text that ends unclipped earns the same.
    assert score_spans(entry, Score(0.75, spans[:1])) == clipped[:1]


def test_spans_of_several_rewards_come_by_their_ends():
    entries = parse_entries(
        {
            "b": {"kind": "lexical.contains", "words": ["dog"]},
            "a": {"kind": "lexical.contains", "words": ["cat"], "weight": 0.5},
        }
    )
    out = RewardSet(entries)([""], ["cat dog"])
    assert out.spans == ((Span(0, 3, 0.5), Span(4, 7, 1.0)),)


def test_the_probe_finds_a_reward_that_fails_on_odd_text():
    def average(completions):
        return [sum(map(ord, text)) / len(text) for text in completions]

    def squeezed(completions):
        return 0.0 if len(completions) == 1 else [0.0] * len(completions)

    with pytest.raises(RewardError, match="ZeroDivisionError: division by zero for sample 1: ''"):
        RewardSet([], [average]).probe()
    with pytest.raises(RewardError, match="returned float"):
        RewardSet([], [squeezed]).probe()


def test_the_probe_repeats_prompts_and_columns():
    def echo(completions, prompts, topic):
        return [float(p == t) for p, t in zip(prompts, topic, strict=True)]

    out = RewardSet([], [echo]).probe(["a", "b"], {"topic": ["a", "b"]})
    assert out.score.all() and len(out) > 4


def test_a_score_survives_pickling_and_is_a_float():
    score = Score(0.5, [Span(0, 1, 0.5)])
    copy = pickle.loads(pickle.dumps(score))
    assert copy == 0.5 and copy.spans == score.spans and isinstance(copy, Score)
    assert type(score + 1) is float


def test_what_a_reward_returned_is_kept_whatever_its_weight():
    entries = parse_entries(
        {
            "metric": {"kind": "lexical.contains", "words": ["rain"], "weight": 0},
            "heavy": {"kind": "lexical.contains", "words": ["rain"], "weight": 3, "clip": [0, 0.5]},
            "brief": {"kind": "structure.word_count"},
        }
    )
    output = RewardSet(entries)([""] * 2, ["rain", "sun"])
    assert output.own_spans == (((Span(0, 4, 1.0),), ()),) * 2 + (((), ()),)
    assert output.spans == ((Span(0, 4, 1.5),), ())
