import pytest

from rewards.contract import Score, Span
from rewards.lexical import contains, diversity, excludes, pattern, word_rate

EMPTY = ["", "  \n", "?!… --", "🚀👩‍🚀"]


def spans(score: float) -> tuple[Span, ...]:
    assert isinstance(score, Score)
    return score.spans


def test_contains_any_credits_the_first_word_found():
    (score,) = contains(["So she and her dog"], words=["her", "she"])
    assert score == 1.0
    assert spans(score) == (Span(3, 6, 1.0),)


def test_contains_all_credits_the_word_that_completes_the_set():
    full, part = contains(["her she, she her", "her her"], words=["she", "her"], mode="all")
    assert (full, part) == (1.0, 0.0)
    assert spans(full) == (Span(4, 7, 1.0),)
    assert spans(part) == ()


def test_contains_share_credits_each_word_once():
    (score,) = contains(["rain, rain and sun"], words=["sun", "rain", "fog", "ice"], mode="share")
    assert score == 0.5
    assert spans(score) == (Span(0, 4, 0.25), Span(15, 18, 0.25))


def test_contains_is_zero_without_words():
    assert contains(EMPTY, words=["rain"]) == [0.0] * 4


def test_excludes_is_one_without_the_words():
    assert excludes([*EMPTY, "very", "every"], words=["very"]) == [1.0] * 4 + [0.0, 1.0]


def test_excludes_takes_the_one_away_behind_the_first_word():
    (score,) = excludes(["a very very dog"], words=["very"])
    assert spans(score) == (Span(2, 6, -1.0),)


def test_excludes_count_is_minus_the_number_of_occurrences():
    (score,) = excludes(["Very, very in order to be"], words=["very", "in order to"], mode="count")
    assert score == -3.0
    assert [span.credit for span in spans(score)] == [-1.0] * 3


def test_word_rate_is_a_share_of_words():
    assert word_rate(["Rain on the train", "", "rain", "🚀"], words=["rain"]) == [0.25, 0, 1, 0]


def test_word_rate_counts_every_word_of_a_phrase_once():
    (score,) = word_rate(["see outer space now"], words=["outer space", "space"])
    assert score == 0.5


def test_word_rate_credits_are_prefix_differences():
    (score,) = word_rate(["the rain fell"], words=["rain"])
    assert score == pytest.approx(1 / 3)
    # 0 after "the", 1/2 after "rain", 1/3 after "fell"
    assert [(s.start, s.end) for s in spans(score)] == [(4, 8), (9, 13)]
    assert [s.credit for s in spans(score)] == pytest.approx([1 / 2, 1 / 3 - 1 / 2])


@pytest.mark.parametrize("text", ["rain", "rain rain dog", "x y rain z rain", "outer space rain a"])
def test_word_rate_credits_add_up_to_the_rate(text):
    (score,) = word_rate([text], words=["rain", "outer space"])
    assert sum(span.credit for span in spans(score)) == pytest.approx(score, abs=1e-12)


def test_pattern_counts_matches_without_overlap():
    assert pattern(["moon Moonlight, honeymoon", ""], pattern=r"(?i)\bmoon\w*") == [1.0, 0.0]
    assert pattern(["aaaa", "🚀a"], pattern="aa|🚀", mode="count") == [2.0, 1.0]


def test_pattern_runs_in_linear_time():
    assert pattern(["a" * 20_000 + "!"], pattern="(a+)+$") == [0.0]


def test_diversity_is_distinct_n():
    # bigrams of "a b a b": ab, ba, ab -> 2 distinct of 3
    scores = diversity(["a b a B", "a b c", "a", ""], n=2)
    assert scores == [pytest.approx(2 / 3), 1.0, 0.0, 0.0]
    assert [s.credit for s in spans(scores[0])] == pytest.approx([1.0, 2 / 3 - 1])
