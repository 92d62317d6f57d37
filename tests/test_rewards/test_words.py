import pytest

from rewards.words import Phrases, fold, split_words, whole_words


def hits(phrase: str, text: str) -> list[str]:
    return [text[hit.start : hit.end] for hit in Phrases([phrase]).hits(split_words(text))]


@pytest.mark.parametrize("text", ["the train is late", "a rainbow", "rain_bow1rain2", "brain-dead"])
def test_a_word_inside_another_is_no_match(text):
    assert hits("rain", text) == (["rain"] if text.startswith("rain_") else [])


@pytest.mark.parametrize("text", ["Rain.", "(RAIN)", "_rain_", "rain's", "rain—rain"[:5], "x rain"])
def test_punctuation_apostrophe_and_underscore_end_a_word(text):
    assert len(hits("rain", text)) == 1


def test_a_clitic_is_a_word_of_its_own():
    assert hits("she", "She's here, she\u2019ll stay; shell") == ["She", "she"]
    assert hits("don't", "I don\u2019t and DON'T but don t") == ["don\u2019t", "DON'T"]


def test_case_folding_is_unicode():
    assert hits("STRASSE", "die Straße") == ["Straße"]
    assert hits("ΟΔΟΣ", "οδός οδος") == ["οδος"]


def test_composed_and_decomposed_letters_are_equal_and_offsets_are_the_original_ones():
    text = "un cafe\u0301 noir, ﬁne, \uff21\uff22\uff23"
    assert hits("café", text) == ["cafe\u0301"]
    assert hits("fine", text) == ["ﬁne"]
    assert hits("abc", text) == ["\uff21\uff22\uff23"]
    assert hits("cafe", text) == []


def test_a_phrase_is_its_words_with_equal_separators():
    assert hits("outer space", "Outer\n  space, outer-space, outer, space, outer spaces") == [
        "Outer\n  space",
        "outer-space",
    ]
    assert hits("U.S.", "the U.S. of A") == ["U.S"]
    assert hits("well-known", "well known") == ["well known"]


def test_scripts_without_spaces_match_as_substrings():
    assert hits("雨", "東京に雨が降る") == ["雨"]
    assert hits("東京", "東京に東、京") == ["東京"]
    assert hits("รัก", "ฉันรักคุณ") == ["รัก"]


def test_hangul_and_cyrillic_match_by_word():
    assert hits("비", "비 비가") == ["비"]
    assert hits("дом", "Дом домой") == ["Дом"]


def test_emoji_and_punctuation_hold_no_words():
    assert split_words("🚀 👩‍🚀 ?! … —") == []
    assert hits("rain", "🚀rain🚀") == ["rain"]


def test_invisible_joiners_do_not_hide_a_word():
    assert hits("rainbow", "rain\u00adbow") == ["rain\u00adbow"]
    assert hits("rain", "rain\u00adbow") == []
    assert fold("ra\u200bin") != "rain" and fold("ra\u200din") == "rain"


def test_lone_surrogates_keep_offsets():
    assert hits("rain", "\ud800 rain") == ["rain"]


def test_whole_words_count_as_readers_do():
    text = "I don't pay 1,000.50, you\u2019ve well-known  3.5"
    assert whole_words(text) == [
        "I",
        "don't",
        "pay",
        "1,000.50",
        "you\u2019ve",
        "well",
        "known",
        "3.5",
    ]
    assert whole_words("one,two") == ["one", "two"]


def test_repeated_phrases_count_once():
    assert len(Phrases(["Rain", "rain", "RAIN"])) == 1


def test_hits_come_in_the_order_of_their_ends():
    words = split_words("outer space rain")
    ends = [hit.end for hit in Phrases(["outer space rain", "rain", "space"]).hits(words)]
    assert ends == [11, 16, 16]
