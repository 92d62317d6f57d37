"""No text that a policy writes, and no pattern that a user writes, takes more than linear time."""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from rewards import RewardConfigError, registry
from rewards.judge import parse_grade
from rewards.structure import split_sentences
from rewards.words import whole_words
from rlalign.metrics import words_of
from rlalign.redact import redact_text

MEGABYTE = 1_000_000
TEXTS = {
    "one word": "a" * MEGABYTE,
    "words": "aa " * (MEGABYTE // 3),
    "white space": " " * MEGABYTE,
    "characters that are words": "\u96e8" * (MEGABYTE // 3),
    "marks": "." * MEGABYTE,
    "pairs": "x=" * (MEGABYTE // 2),
}
PATTERNS = [
    "(a|a)*b", "(a*)*b", r"(?i)\bmoon\w*", "(x+x+)+y", ".*.*.*=.*;", r"(\w+\s?)+$",
    "(a{1,30}){1,30}b",
]  # fmt: skip


def seconds(job: Callable[[], object]) -> float:
    """Of this process, the fastest of three, so that others on the machine do not count."""
    times = []
    for _ in range(3):
        begun = time.process_time()
        job()
        times.append(time.process_time() - begun)
        if times[-1] < 0.1:
            break
    return min(times)


def built(kind: str, **params: Any) -> Callable[[str], object]:
    function = registry.get(kind).build(registry.check_params(kind, params))
    return lambda text: function([text])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_reads_a_megabyte_in_a_tenth_of_a_second(pattern):
    string = {"type": "string", "pattern": pattern}
    names = {"patternProperties": {pattern: {"type": "null"}}}
    searched = built("lexical.pattern", pattern=pattern)
    matched = built("structure.format", pattern=pattern)
    value = built("structure.json_schema", schema=string)
    keys = built("structure.json_schema", schema=names)
    for name, text in TEXTS.items():
        alone, keyed = (json.dumps(x, ensure_ascii=False) for x in (text, {text: 1}))
        jobs = {searched: text, matched: text, value: alone, keys: keyed}
        for kind, (job, given) in enumerate(jobs.items()):
            assert seconds(partial(job, given)) < 0.1, (name, kind)


BOMBS = ["(a{1000}){1000}", "((a{100}){100}){100}", r"\pL{1,1000}"]


@pytest.mark.parametrize("pattern", BOMBS, ids=lambda pattern: pattern[:12])
def test_a_pattern_that_would_be_huge_is_refused_at_once(pattern):
    def refused() -> None:
        with pytest.raises(RewardConfigError, match="is no RE2 pattern"):
            registry.check_params("lexical.pattern", {"pattern": pattern})

    assert seconds(refused) < 0.5


# Texts that make a backtracking expression try every way of reading them.
HOSTILE = {
    **TEXTS,
    "quotes": "\"'" * (MEGABYTE // 2),
    "sentences": 'A." ' * (MEGABYTE // 4),
    "ellipses": "\u2026 . " * (MEGABYTE // 4),
    "names": "key_token-" * (MEGABYTE // 10),
    "dots": "a.a-" * (MEGABYTE // 4),
    "addresses": "://a:" * (MEGABYTE // 5),
    "digits": "1." * (MEGABYTE // 2),
}
OURS = {
    "words": whole_words, "sentences": split_sentences, "secrets": redact_text,
    "grades": lambda text: parse_grade(text, 10), "metrics": words_of.__wrapped__,
}  # fmt: skip


@pytest.mark.parametrize("reader", OURS)
def test_our_own_expressions_take_linear_time(reader):
    for name, text in HOSTILE.items():
        short, long = text[:5_000], text[:50_000]
        few = max(seconds(lambda t=short: OURS[reader](t)), 0.002)
        assert seconds(lambda t=long: OURS[reader](t)) < 40 * few, name  # ten times as long
