"""Words of a text in any script, and where listed words and phrases occur among them.

A word is a run of letters, digits and the marks on them; everything else separates, the underscore
and the apostrophe too, so "she's" holds the word "she" and "train" does not hold "rain". In scripts
that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character is a
word of its own, so that a listed word is found as a substring there. Words are equal when their
NFKC forms are equal after Unicode case folding ("STRASSE" is "Straße"). A phrase is its words in a
row with the same thing between them; any white space and a hyphen count as the same.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator, Field

from rewards.patterns import compile_pattern, encodable

_UNSPACED = (
    r"\x{E00}-\x{EFF}\x{1000}-\x{109F}\x{1780}-\x{17FF}\x{3005}\x{3007}\x{3040}-\x{30FF}"
    r"\x{31F0}-\x{31FF}\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{FF66}-\x{FF9D}"
    r"\x{20000}-\x{3FFFF}"
)
# Invisible joiners and the half-width voicing marks stay with the letter before them.
_MARKS = r"\p{M}\x{AD}\x{200C}\x{200D}\x{2060}\x{FEFF}\x{FF9E}\x{FF9F}"
_LETTER = rf"[^\P{{L}}{_UNSPACED}\x{{FF9E}}\x{{FF9F}}]|[^\P{{N}}{_UNSPACED}]"
_WORD = rf"[{_UNSPACED}][{_MARKS}]*|(?:{_LETTER})(?:{_LETTER}|[{_MARKS}])*"
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")
_INVISIBLE = re.compile("[\u00ad\u200c\u200d\u2060\ufeff]")
_APOSTROPHES = "'\u2019\u02bc\uff07"
_HYPHENS = re.compile("[-\u2010\u2011\u2012\u2013\u2014\uff0d]")
_HARMLESS_EDGE = re.compile(rf"[\s.,;:!?\"\u201c\u201d\u2018()\[\]{_APOSTROPHES}]*")


@dataclass(frozen=True)
class Word:
    text: str  # folded
    start: int
    end: int
    gap: str  # what stands between it and the word before, folded


@dataclass(frozen=True)
class Hit:
    phrase: int  # which of the listed ones
    first: int  # index of its first word in the text's words
    last: int  # index of its last word
    start: int
    end: int


def fold(text: str) -> str:
    """The form under which words are compared: NFKC and case-folded, invisible joiners left out."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", folded))


def _fold_gap(gap: str) -> str:
    if gap in ("", " "):
        return gap
    plain = "".join("'" if c in _APOSTROPHES else c for c in unicodedata.normalize("NFKC", gap))
    spaced = " ".join(_HYPHENS.sub(" ", plain).split())
    return spaced or " "


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each word begins and ends, in order; a text is read as far as they are taken."""
    pattern = _ASCII_WORD if text.isascii() else compile_pattern(_WORD)
    for match in pattern.finditer(encodable(text)):
        yield match.span()


def split_words(text: str) -> list[Word]:
    """The words of `text` in order, with their character offsets."""
    words, before = [], 0
    for start, end in word_spans(text):
        words.append(Word(fold(text[start:end]), start, end, _fold_gap(text[before:start])))
        before = end
    return words


def whole_words(text: str) -> list[str]:
    """Words as a reader counts them: "don't" and "3.5" are one each."""
    spans: list[list[int]] = []
    for word, is_new in joined_words(text):
        if is_new:
            spans.append([word.start, word.end])
        else:
            spans[-1][1] = word.end
    return [text[start:end] for start, end in spans]


def joined_words(text: str) -> Iterator[tuple[Word, bool]]:
    """Each word, and whether it begins one of `whole_words` rather than going on in it."""
    end = None
    for word in split_words(text):
        yield word, end is None or not _joins(text, end, word.start)
        end = word.end


def _joins(text: str, end: int, start: int) -> bool:
    if start - end != 1:
        return False
    digits = text[end - 1].isdigit() and text[start].isdigit()
    return text[end] in _APOSTROPHES or (digits and text[end] in ".,")


class Phrases:
    """Listed words and phrases, ready to be looked up in many texts; repeats are dropped."""

    def __init__(self, phrases: Iterable[str]) -> None:
        unique = {tuple((word.text, word.gap) for word in split_words(p)): None for p in phrases}
        self._by_first: dict[str, list[tuple[int, tuple[tuple[str, str], ...]]]] = {}
        for index, words in enumerate(unique):
            self._by_first.setdefault(words[0][0], []).append((index, words))
        self._count = len(unique)

    def __len__(self) -> int:
        return self._count

    def hits(self, words: Sequence[Word]) -> Iterator[Hit]:
        """Every occurrence of every phrase, in the order in which they end."""
        found = [
            Hit(index, i, last, word.start, words[last].end)
            for i, word in enumerate(words)
            for index, phrase in self._by_first.get(word.text, ())
            if (last := i + len(phrase) - 1) < len(words)
            and all(
                (other.text, other.gap) == wanted
                for other, wanted in zip(words[i + 1 : last + 1], phrase[1:], strict=True)
            )
        ]
        yield from sorted(found, key=lambda hit: (hit.end, hit.start))


@lru_cache(maxsize=256)
def phrases(listed: tuple[str, ...]) -> Phrases:
    return Phrases(listed)


def _check_listed(listed: list[str]) -> list[str]:
    for phrase in listed:
        words = split_words(phrase)
        if not words:
            raise ValueError(f"holds {phrase!r}, which has no letter or digit; use lexical.pattern")
        for edge in (phrase[: words[0].start], phrase[words[-1].end :]):
            if not _HARMLESS_EDGE.fullmatch(edge):
                raise ValueError(
                    f"holds {phrase!r}, whose {edge.strip()!r} is no part of a word and would be "
                    "ignored; use lexical.pattern"
                )
    return listed


Words = Annotated[
    list[str],
    Field(min_length=1, description="words and phrases; case and Unicode form do not matter"),
    AfterValidator(_check_listed),
]
