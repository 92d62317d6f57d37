import random
import re

import pytest

from rewards import (
    RewardConfigError,
    RewardEntry,
    RewardError,
    RewardSet,
    Score,
    Span,
    conformance,
    kinds,
    registry,
    reward,
)
from rewards.checks import CHECKS, EMOJI, LONG
from rewards.conformance import Result, check, examine

NEEDS_A_MODEL = {"style.classifier", "model.preference"}  # the second in test_preference.py
NEEDS_A_SERVER = {"remote.http", "judge.openai"}  # checked in test_remote.py and test_judge.py
OF_TESTS = {kind for kind in kinds() if "tests" in registry.get(kind).source}


@pytest.mark.parametrize("kind", sorted(set(kinds()) - NEEDS_A_MODEL - NEEDS_A_SERVER - OF_TESTS))
def test_every_kind_keeps_the_contract(kind):
    check(kind)


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("lexical.contains", {"words": ["she", "rain", "雨"], "mode": "any"}),
        ("lexical.contains", {"words": ["she", "moon"], "mode": "all"}),
        ("lexical.excludes", {"words": ["rain", "very"], "mode": "count"}),
        ("lexical.word_rate", {"words": ["東京", "in order to", "cafe\u0301"]}),
        ("lexical.pattern", {"pattern": "o", "mode": "count"}),
        ("lexical.pattern", {"pattern": r"(rain|moon)$|very good\b|^\W*$"}),
        ("lexical.diversity", {"n": 1}),
        ("structure.word_count", {"min": 0, "max": 2}),
        ("structure.word_count", {"min": 5, "slack": 3}),
        ("structure.sentences", {"min": 2, "max": 2}),
        ("style.sentiment", {"backend": "vader"}),
        ("structure.ends_cleanly", {"ellipsis": True}),
    ],
)
def test_other_parameters_keep_the_contract(kind, params):
    check(kind, params)


@pytest.mark.parametrize("output", ["probability", "logit"])
def test_a_sequence_classifier_keeps_the_contract(classifier_directory, output):
    check("style.classifier", {"model": str(classifier_directory), "label": 2, "output": output})


SPANS = [
    ("lexical.contains", {"words": ["she", "rain", "outer space", "雨"]}),
    ("lexical.excludes", {"words": ["she", "rain", "outer space", "雨"]}),
    ("lexical.word_rate", {"words": ["she", "rain", "outer space", "雨"]}),
    ("lexical.pattern", {"pattern": r"rain\b|she.{3}|^x|x$", "mode": "count"}),
    ("lexical.diversity", {"n": 1}),
    ("structure.word_count", {"min": 2, "max": 3, "slack": 2}),
    ("structure.sentences", {"min": 1, "max": 2, "slack": 1}),
    ("structure.repetition", {"n": 1}),
]


@pytest.mark.parametrize(("kind", "params"), SPANS)
def test_rewards_with_spans_are_causal_on_random_text(kind, params):
    rng = random.Random(0)
    pieces = ["she", "rain", "outer", " ", " ", " ", "space", "'s", "-", ".", ". ", "!\u201d ",
              "...", "Dr. ", "3", "雨", "。", "\u0301", "🚀", "x", "_", "\u2026"]  # fmt: skip
    texts = ["".join(rng.choices(pieces, k=rng.randint(0, 14))) for _ in range(60)]
    check(kind, params, texts=texts)


@pytest.mark.parametrize(("kind", "params"), SPANS)
def test_the_spans_pay_the_whole_value_behind_words(kind, params):
    """So that all but what an empty text earns, or the words at its end, is paid before the end."""
    text = "She said. The rain, the rain! Dr. X saw rain in outer space twice. It's raining x."
    entry = RewardEntry("it", kind, params)
    value, empty = RewardSet([entry])(["", ""], [text, ""]).values[:, 0]
    (spans,) = RewardSet([entry])([""], [text]).own_spans[0]
    assert len(spans) > 0 and all(0 <= span.end < len(text) for span in spans)
    assert sum(span.credit for span in spans) == pytest.approx(value - empty)


def fails(function, message, **options):
    with pytest.raises(RewardError, match=message):
        check(function, **options)


def test_faulty_rewards_are_told_apart():
    state = []

    def stateful(completions):
        state.append(1)
        return [float(len(state))] * len(completions)

    def batchwise(completions):
        return [float(len(completions))] * len(completions)

    def positional(completions):
        return [float(i == 0) for i in range(len(completions))]

    def short(completions):
        return [0.0] * (len(completions) - 1)

    def not_finite(completions):
        return [float("inf")] * len(completions)

    def on_empty(completions):
        return [1 / len(text) for text in completions]

    fails(stateful, "called again, but gave")
    fails(batchwise, "alone, but gave")
    fails(positional, "in another order, but gave")
    fails(short, "values for 9 samples")
    fails(not_finite, "returned inf")
    fails(on_empty, "ZeroDivisionError")


def test_values_outside_the_bounds_are_found():
    @reward("own.unbounded", bounds=(0, 1))
    def unbounded(completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    fails(unbounded, r"outside its bounds \(0, 1\)")
    fails("own.unbounded", r"outside its bounds \(0, 1\)")


def test_credit_that_looks_ahead_is_found():
    def by_length(completions):
        """A word's share of the final length: known only at the end."""
        return [
            Score(3 / len(t), [Span(0, 3, 3 / len(t))]) if len(t) > 3 else 0.0 for t in completions
        ]

    def substring(completions):
        """Credit one character before the boundary that settles the word."""
        spans = [(" " + text + " ").find(" rain ") for text in completions]
        return [Score(1.0, [Span(max(at, 0), at + 3, 1.0)]) if at >= 0 else 0.0 for at in spans]

    fails(by_length, "is not causal")
    fails(substring, "is not causal", texts=["a rain b"])


def test_credit_before_a_word_is_over_is_found_for_words_that_no_text_holds():
    """The parameters say what a reward looks for: zebra, which may still become zebras."""

    @reward("own.early", example={"words": ["zebra"]})
    def early(completions: list[str], *, words: list[str]) -> list[float]:
        hits = [re.search(rf"\b({'|'.join(words)})\b", text) for text in completions]
        return [Score(1.0, [Span(h.start(), h.end() - 1, 1.0)]) if h else 0.0 for h in hits]

    @reward("own.late", example={"words": ["zebra"]})
    def late(completions: list[str], *, words: list[str]) -> list[float]:
        hits = [re.search(rf"\b({'|'.join(words)})\b", text) for text in completions]
        return [Score(1.0, [Span(h.start(), h.end(), 1.0)]) if h else 0.0 for h in hits]

    fails("own.early", "is not causal")
    check("own.late")


def test_credit_for_what_will_not_come_is_found():
    @reward("own.promise", example={"words": ["zebra"]})
    def promise(completions: list[str], *, words: list[str]) -> list[float]:
        """1 at the first word for a text that will hold none of the words."""
        clean = [not any(word in text for word in words) for text in completions]
        return [
            Score(1.0, [Span(0, 1, 1.0)]) if good and len(text) > 1 else 0.0
            for good, text in zip(clean, completions, strict=True)
        ]

    fails("own.promise", "is not causal")


def test_credit_that_goes_wrong_late_in_a_text_is_found():
    """Right for the first 60 words of a text, and by the final length from there on."""

    def late(completions):
        return [
            Score(0.0, [Span(m.start(), m.end(), 1.0 if i < 60 else 1 / len(text))
                        for i, m in enumerate(re.finditer(r"[a-z]+", text))])
            for text in completions
        ]  # fmt: skip

    fails(late, "is not causal", texts=["rain " * 100])


def test_columns_come_from_the_example_or_the_call():
    @reward("own.column", bounds=(0, 1), example={"data": {"topic": ["moon", "rain"]}})
    def column(completions: list[str], topic: list[str]) -> list[float]:
        return [float(t in c) for c, t in zip(completions, topic, strict=True)]

    check(column)
    check("own.column", columns={"topic": ["she"]})
    with pytest.raises(RewardConfigError, match=r"the column 'topic' is 'she'; it must be a list"):
        check("own.column", columns={"topic": "she"})


def test_the_texts_hold_what_breaks_rewards():
    assert "" in conformance.TEXTS and any(not text.isascii() for text in conformance.TEXTS)
    assert len(LONG) == 10_000 and not EMOJI.isascii()


# -- every check's outcome


def outcomes(function, **options):
    return {result.check: result.outcome for result in examine(function, **options)}


def failures(function, **options):
    """Check -> reason of those that failed."""
    return {r.check: r.reason for r in examine(function, **options) if r.outcome == "fail"}


def test_a_sound_reward_passes_every_check():
    results = examine("lexical.contains")
    assert [result.check for result in results] == ["load", *CHECKS]
    assert {r.check for r in results if r.outcome != "pass"} == {"state"}  # it keeps none
    assert all(result.seconds > 0 for result in results)


def test_what_a_reward_does_not_have_is_skipped_with_the_reason():
    def plain(completions):
        return [0.5 for _ in completions]

    skipped = {r.check: r.reason for r in examine(plain) if r.outcome == "skipped"}
    assert skipped == {
        "bounds": "the reward states no bounds", "causal": "the reward returns no spans",
        "state": "the reward keeps no state",
    }  # fmt: skip


def test_each_fault_fails_its_own_checks_and_no_other(own_registry):
    def on_empty(completions):
        return [1 / len(text) for text in completions]

    def on_emoji(completions):
        return [
            float(len(text.encode("ascii" if text == EMOJI else "utf-8"))) for text in completions
        ]

    def on_long(completions):
        return [float("nan") if len(text) > 5_000 else 0.0 for text in completions]

    def batchwise(completions):
        return [float(len(completions) == 1)] * len(completions)

    def looks_ahead(completions):
        return [Score(1.0, [Span(0, 1, len(text))]) if text else 0.0 for text in completions]

    calls = []

    def stateful(completions):
        calls.append(1)
        return [float(len(calls))] * len(completions)

    @reward("own.high", bounds=(0, 1))
    def high(completions: list[str]) -> list[float]:
        return [2.0 for _ in completions]

    assert set(failures(on_empty)) == {"finite", "empty"}
    assert set(failures(on_emoji)) == {"emoji"}
    assert set(failures(on_long)) == {"long"}
    assert set(failures(batchwise)) == {"order"}
    assert set(failures(looks_ahead)) == {"causal"}
    assert set(failures(stateful)) == {"determinism", "order"}
    assert set(failures(high)) == {"bounds", "empty", "emoji", "long"}
    assert (
        "raised ZeroDivisionError: division by zero for sample 0: ''" in failures(on_empty)["empty"]
    )


def test_without_values_the_other_checks_are_not_run():
    def short(completions):
        return []

    assert failures(short) == {"length": ANY_LENGTH.format(line=short.__code__.co_firstlineno)}
    assert outcomes(short)["order"] == "skipped" and outcomes(short)["load"] == "pass"


ANY_LENGTH = (
    "reward 'short' (short, tests/test_rewards/test_conformance.py:{line}) returned 0 values for "
    "9 samples"
)


def test_what_cannot_be_loaded_says_why_and_how_to_mend_it(own_registry):
    @reward("own.needy")
    def needy(completions: list[str], *, words: list[str]) -> list[float]: ...

    @reward("own.reads")
    def reads(completions: list[str], topic: list[str]) -> list[float]: ...

    @reward("own.broken")
    class Broken:
        def load(self) -> None:
            raise OSError("no such model")

        def __call__(self, completions: list[str]) -> list[float]: ...

    assert failures(needy)["load"].endswith(
        "needs 'words', which its example does not hold: @reward('own.needy', example={'words': …})"
    )
    assert failures(reads)["load"].endswith("example={'data': {'topic': […]}})")
    assert failures(Broken)["load"].endswith("raised OSError: no such model")
    assert set(outcomes(Broken).values()) == {"fail", "skipped"}
    assert examine(Broken)[1] == Result("own.broken", "length", "skipped", "load failed", 0.0)
