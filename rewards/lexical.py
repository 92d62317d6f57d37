"""Rewards on the words of a completion. How words are told apart: `rewards/words.py`."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Annotated, Literal

from pydantic import Field

from rewards.contract import Score, Span, telescope
from rewards.patterns import Pattern, compile_pattern, encodable
from rewards.registry import reward
from rewards.words import Hit, Phrases, Words, phrases, split_words, word_spans

# A text of 128 k words is looked at after 128 (1 + ln k) of them, chosen by their place alone.
_EVERY_WORD = 128
_LAST_WORD = 2048  # and behind this one no more, so that a text of any length takes linear time
Order = Annotated[int, Field(ge=1, description="length of the n-grams, in words")]


@reward(
    "lexical.contains", bounds=(0, 1), example={"words": ["she", "outer space"], "mode": "share"}
)
def contains(
    completions: list[str],
    *,
    words: Words,
    mode: Annotated[
        Literal["any", "all", "share"],
        Field(description="one of the words, every one, or the share of them that occurs"),
    ] = "any",
) -> list[float]:
    """Whether the completion holds the listed words: 1 or 0; with `share` the part that it holds.

    The credit lands behind the first occurrence of a word: with `any` of the first word found, with
    `all` of the last one missing, with `share` an equal part behind each.
    """
    wanted = phrases(tuple(words))
    return [_contains(_first_hits(text, wanted), len(wanted), mode) for text in completions]


def _first_hits(text: str, wanted: Phrases) -> list[Hit]:
    first: dict[int, Hit] = {}
    for hit in wanted.hits(split_words(text)):
        first.setdefault(hit.phrase, hit)
    return list(first.values())


def _contains(first: Sequence[Hit], wanted: int, mode: str) -> float:
    if mode == "share":
        return Score(len(first) / wanted, [Span(h.start, h.end, 1 / wanted) for h in first])
    needed = 1 if mode == "any" else wanted
    if len(first) < needed:
        return Score(0.0)
    decisive = first[needed - 1]
    return Score(1.0, [Span(decisive.start, decisive.end, 1.0)])


@reward("lexical.excludes", bounds=(-float("inf"), 1), example={"words": ["very", "in order to"]})
def excludes(
    completions: list[str],
    *,
    words: Words,
    mode: Annotated[
        Literal["none", "count"],
        Field(description="1 where none occurs and else 0, or minus the number of occurrences"),
    ] = "none",
) -> list[float]:
    """Whether the completion avoids the listed words: 1 or 0; with `count` 0, -1, -2 and so on.

    The penalty of 1 lands behind the word: with `count` behind each occurrence, with `none` behind
    the first, while the 1 that every completion starts with is left to the last action.
    """
    wanted = phrases(tuple(words))
    return [_excludes(list(wanted.hits(split_words(text))), mode) for text in completions]


def _excludes(hits: Sequence[Hit], mode: str) -> float:
    if mode == "count":
        return Score(-float(len(hits)), [Span(hit.start, hit.end, -1.0) for hit in hits])
    return Score(0.0 if hits else 1.0, [Span(hit.start, hit.end, -1.0) for hit in hits[:1]])


@reward("lexical.word_rate", bounds=(0, 1), example={"words": ["rain", "outer space"]})
def word_rate(completions: list[str], *, words: Words) -> list[float]:
    """Share of the completion's words that belong to an occurrence of a listed word or phrase.

    0 for a text without words. The credits are the rate's differences from word to word, so they
    are negative behind the words that dilute it, and add up to the rate.
    """
    wanted = phrases(tuple(words))
    return [_word_rate(text, wanted) for text in completions]


def _word_rate(text: str, wanted: Phrases) -> float:
    words = split_words(text)
    ending: dict[int, list[Hit]] = {}
    for hit in wanted.hits(words):
        ending.setdefault(hit.last, []).append(hit)
    covered: set[int] = set()
    steps = []
    for i, word in enumerate(words):
        for hit in ending.get(i, ()):
            covered.update(range(hit.first, i + 1))
        steps.append((word.start, word.end, len(covered) / (i + 1)))
    return Score(steps[-1][2] if steps else 0.0, telescope(steps))


@reward("lexical.pattern", bounds=(0, float("inf")), example={"pattern": r"(?i)\bmoon\w*"})
def pattern(
    completions: list[str],
    *,
    pattern: Pattern,
    mode: Annotated[
        Literal["any", "count"], Field(description="1 or 0, or the number of matches")
    ] = "any",
) -> list[float]:
    """Whether an RE2 pattern matches anywhere in the completion, or how often without overlap.

    What a pattern matches can change with the text behind it, so the credits are the differences
    from word to word of what it matches so far: one that is undone costs what it had earned. In
    texts of more than 128 words they become sparser, to keep the time in bounds, and behind word
    2048 they end: the rest is paid at the last token.
    """
    compiled = compile_pattern(pattern)

    def value(text: str) -> float:
        if mode == "any":
            return float(compiled.search(text) is not None)
        return float(sum(1 for _ in compiled.finditer(text)))

    return [_by_prefixes(encodable(text), value) for text in completions]


def _by_prefixes(text: str, value: Callable[[str], float]) -> Score:
    """The value with telescoped credit: what the text up to and behind each word is worth."""
    whole = value(text)
    steps = [
        (start, end, whole if end + 1 >= len(text) else value(text[: end + 1]))
        for i, (start, end) in enumerate(islice(word_spans(text), _LAST_WORD))
        if i % (1 + i // _EVERY_WORD) == 0
    ]
    return Score(whole, telescope(steps, value("")))


@reward("lexical.diversity", bounds=(0, 1), example={"n": 2})
def diversity(completions: list[str], *, n: Order = 2) -> list[float]:
    """Distinct n-grams of words over all n-grams of the completion: distinct-n.

    0 for a text of fewer than n words. The credits are its differences from word to word.
    Source: Li et al. 2016, A Diversity-Promoting Objective Function (arXiv 1510.03055).
    """
    return [distinct(text, n, empty=0.0) for text in completions]


def distinct(text: str, n: int, *, empty: float) -> Score:
    """Distinct n-grams over all n-grams, `empty` before there is one, with telescoped credit."""
    words = split_words(text)
    seen: set[tuple[str, ...]] = set()
    steps = []
    for i in range(n - 1, len(words)):
        seen.add(tuple(word.text for word in words[i - n + 1 : i + 1]))
        steps.append((words[i].start, words[i].end, len(seen) / (i - n + 2)))
    return Score(steps[-1][2] if steps else empty, telescope(steps, empty))
