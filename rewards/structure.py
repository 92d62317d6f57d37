"""Rewards on the form of a completion: length, sentences, endings, formats, repetition."""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, NoReturn

import jsonschema
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from pydantic import AfterValidator, Field
from referencing import Registry

from rewards.contract import RewardConfigError, Score, telescope
from rewards.lexical import Order, distinct
from rewards.patterns import Pattern, compile_pattern, encodable
from rewards.registry import reward
from rewards.words import Word, joined_words, split_words

Fewest = Annotated[int, Field(ge=0, description="fewest that are right")]
Most = Annotated[int | None, Field(ge=0, description="most that are right; null: no bound")]
Slack = Annotated[int, Field(ge=0, description="how many outside the range the value reaches 0")]

_CLOSERS = "\"'\u2019\u201d\u00bb\u203a\u300d\u300f)]}*_`"
_MARKS = ".!?\u2026\u3002\uff01\uff1f\u061f\u0964"
_SENTENCE_END = re.compile(
    rf"(?<![{_MARKS}])(?P<marks>[{_MARKS}]++)[{re.escape(_CLOSERS)}]*"
    r"(?:\s+|\Z|(?<=[\u3002\uff01\uff1f]))"
)
_TRAILING_OFF = re.compile(r"\.{2,}|.*\u2026")
_ABBREVIATION = re.compile(
    r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|e\.g|i\.e|cf|Vol|Fig|approx)\Z"
)
_LONGEST = 12  # characters that an abbreviation and what stands before it can take


@reward("structure.word_count", bounds=(0, 1), example={"min": 3, "max": 8, "slack": 4})
class WordCount:
    """1 where the completion has `min` to `max` words, falling linearly to 0 `slack` words outside.

    1 - distance / slack, at least 0; without slack 1 or 0. "don't" and "3.5" are one word each; in
    scripts without spaces a character counts as a word. The credits are the value's differences
    from word to word, negative behind the words beyond `max`.
    """

    def __init__(self, *, min: Fewest = 0, max: Most = None, slack: Slack = 0) -> None:
        self.min, self.max, self.slack = _range(min, max), max, slack

    def __call__(self, completions: list[str]) -> list[float]:
        return [_by_count(_words(text), self.min, self.max, self.slack) for text in completions]


@reward("structure.sentences", bounds=(0, 1), example={"min": 1, "max": 2, "slack": 1})
class Sentences:
    """1 where the completion has `min` to `max` sentences, falling to 0 `slack` sentences outside.

    A sentence ends at . ! ? or an ellipsis before white space or the end; not behind an initial or
    a common abbreviation ("Dr."), nor at an ellipsis that goes on in lower case. A rest with a word
    in it counts as one. The credits are the value's differences, each behind the first word of a
    sentence: only there is it known that the one before is over.
    """

    def __init__(self, *, min: Fewest = 0, max: Most = None, slack: Slack = 0) -> None:
        self.min, self.max, self.slack = _range(min, max), max, slack

    def __call__(self, completions: list[str]) -> list[float]:
        return [_by_count(_openings(text), self.min, self.max, self.slack) for text in completions]


def _range(low: int, high: int | None) -> int:
    if high is not None and low > high:
        raise RewardConfigError(f"min={low} is above max={high}; swap them")
    return low


def _within(count: int, low: int, high: int | None, slack: int) -> float:
    distance = max(low - count, 0 if high is None else count - high, 0)
    return max(0.0, 1 - distance / slack) if slack else float(distance == 0)


def _by_count(counted: Sequence[Word], low: int, high: int | None, slack: int) -> Score:
    """The value of how many there are, with telescoped credit behind each."""
    values = [_within(n, low, high, slack) for n in range(len(counted) + 1)]
    steps = [(w.start, w.end, value) for w, value in zip(counted, values[1:], strict=True)]
    return Score(values[-1], telescope(steps, values[0]))


def _words(text: str) -> list[Word]:
    """The first part of each whole word: behind it the word counts, whatever joins it."""
    return [word for word, is_new in joined_words(text) if is_new]


def _openings(text: str) -> list[Word]:
    """The first word of each sentence."""
    bounds = _boundaries(text)
    piece, found = -1, []
    for word in split_words(text):
        at = bisect_right(bounds, word.start)
        if at > piece:
            found.append(word)
        piece = at
    return found


def split_sentences(text: str) -> list[str]:
    """Sentences by punctuation, each with at least one word; see `Sentences`."""
    cuts = [0, *_boundaries(text), len(text)]
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    return [piece.strip() for piece in pieces if split_words(piece)]


def _boundaries(text: str) -> list[int]:
    """Where a sentence is over, white space and closing quotes behind it included.

    One before a word is known when the word begins: nothing behind that moves it.
    """
    found, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        marks, following = match["marks"], text[match.end() : match.end() + 1]
        before = text[max(start, match.start() - _LONGEST) : match.start()]
        if marks == "." and following and _ABBREVIATION.search(before):
            continue
        if _TRAILING_OFF.fullmatch(marks) and following.islower():
            continue
        start = match.end()
        found.append(start)
    return found


@reward("structure.ends_cleanly", bounds=(0, 1), example={})
def ends_cleanly(
    completions: list[str],
    *,
    ellipsis: Annotated[bool, Field(description="count trailing off (... or …) as clean")] = False,
) -> list[float]:
    """1 where the completion ends with . ! or ?, quotes or brackets behind it allowed; else 0.

    White space at the end does not matter. Trailing off is unclean unless `ellipsis` is set. All of
    it goes to the last action: what stands before the end decides nothing.
    """
    return [float(_ends_cleanly(text, ellipsis)) for text in completions]


def _ends_cleanly(text: str, ellipsis: bool) -> bool:
    body = text.rstrip().rstrip(_CLOSERS)
    marks = body[len(body.rstrip(_MARKS)) :]
    return bool(marks) and (ellipsis or not _TRAILING_OFF.fullmatch(marks))


def _re2_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Any:
    if isinstance(instance, str) and not compile_pattern(pattern).search(encodable(instance)):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _re2_pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Any:
    if not isinstance(instance, dict):
        return
    for pattern, subschema in patterns.items():
        for name, value in instance.items():
            if compile_pattern(pattern).search(encodable(name)):
                yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _is_re2(pattern: object) -> bool:
    return not isinstance(pattern, str) or compile_pattern(pattern) is not None


def _validator(schema: dict[str, Any]) -> Validator:
    plain = validator_for(schema, default=jsonschema.Draft202012Validator)
    formats = jsonschema.FormatChecker(formats=())
    formats.checks("regex", raises=ValueError)(_is_re2)  # the meta-schema asks for it
    plain.check_schema(schema, format_checker=formats)  # type: ignore[call-arg]
    keywords = {"pattern": _re2_pattern, "patternProperties": _re2_pattern_properties}
    linear: type[Validator] = extend(plain, keywords)  # type: ignore[no-untyped-call]
    return linear(schema, registry=Registry())  # an empty registry: nothing is fetched


def _checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(schema.get("$schema", ""), str):
        raise ValueError(f"is no JSON Schema: $schema is {schema['$schema']!r:.80}, not text")
    try:
        _validator(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"is no JSON Schema: {error.message} at {error.json_path}") from error
    return schema


@reward(
    "structure.json_schema",
    bounds=(0, 1),
    example={"schema": {"type": "object", "required": ["name"]}},
)
class JsonSchema:
    """1 where the whole completion is JSON that the schema accepts, `partial` where it is JSON that
    the schema refuses, 0 where it is no JSON.

    White space around it is allowed, a code fence is not, nor are NaN and Infinity. The schema's
    patterns run in RE2, and references to other documents are not fetched. All of it goes to the
    last action: no beginning of a text is JSON already.
    """

    def __init__(
        self,
        *,
        schema: Annotated[
            dict[str, Any], AfterValidator(_checked_schema), Field(description="a JSON Schema")
        ],
        partial: Annotated[
            float, Field(ge=0, le=1, description="value of JSON that the schema refuses")
        ] = 0.5,
    ) -> None:
        self.validator, self.partial = _validator(schema), partial

    def __call__(self, completions: list[str]) -> list[float]:
        return [self._value(text) for text in completions]

    def _value(self, text: str) -> float:
        try:
            parsed = json.loads(text, parse_constant=_refuse_constant)
            return 1.0 if self.validator.is_valid(parsed) else self.partial
        # Some thousand brackets in a row, and a multipleOf of more than a float can hold.
        except (ValueError, RecursionError, OverflowError):
            return 0.0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


@reward("structure.format", bounds=(0, 1), example={"pattern": r"(?s)\s*\w.*\."})
def format(completions: list[str], *, pattern: Pattern) -> list[float]:
    """1 where the RE2 pattern matches the whole completion, else 0.

    All of it goes to the last action: the whole text decides.
    """
    compiled = compile_pattern(pattern)
    return [float(compiled.fullmatch(encodable(text)) is not None) for text in completions]


@reward("structure.repetition", bounds=(-1, 0), example={"n": 3})
def repetition(completions: list[str], *, n: Order = 3) -> list[float]:
    """Minus the share of the completion's word n-grams that repeat an earlier one: 0 is none.

    distinct-n less 1; 0 for a text of fewer than n words. A penalty, so a positive weight lowers
    repetition. The credits are its differences from word to word.
    """
    scores = [distinct(text, n, empty=1.0) for text in completions]
    return [Score(score - 1, score.spans) for score in scores]
