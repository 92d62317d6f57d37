"""The test that every reward must pass: `check("lexical.contains")` or `check(my_function)`.

`examine` runs the same checks (`rewards/checks.py`) to the end and says how each went.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewards import compose, registry, schema
from rewards.calling import Columns, Scorer
from rewards.checks import CHECKS, PROMPT, Subject
from rewards.contract import RewardConfigError, RewardError, brief, described
from rewards.entries import RewardEntry
from rewards.spec import RewardSpec

TEXTS = (
    "She looked at the moon, and the moon looked back at her in outer space.",
    "",
    "   \n",
    "?!... -- ...",
    "rain",
    "Rain rain RAIN; very very good. It's raining in order to rain",
    "\U0001f680 \U0001f469‍\U0001f680 東京に雨が降る。 Stra\u00dfe cafe\u0301",
    '{"name": "moon", "words": ["she", "rain"]}',
    "A sports match? The politics of science! " * 40,
)
ABOUT = ("{0}", "A {0}, {0}s and one {0}.")  # whole, with more behind it, at the end
_SHORT, _FEW = 40, 4  # letters of a parameter that is taken for words, and how many are


@dataclass(frozen=True)
class Result:
    """How one check of one reward went."""

    kind: str
    check: str  # `load`, or a name of CHECKS
    outcome: Literal["pass", "fail", "skipped"]
    reason: str  # of what did not pass
    seconds: float


def check(
    reward: str | Callable[..., Any],
    params: Mapping[str, Any] | None = None,
    *,
    columns: Columns | None = None,
    texts: Sequence[str] | None = None,
) -> None:
    """Raise RewardError where a kind or a function breaks the contract of rewards.

    One finite number or None a sample, within the bounds, for any text; the same for the same text
    in any batch and order; spans within the text whose credit no later text changes; a state, where
    the reward keeps one, that survives `state_dict` and `load_state_dict`. `params` and `columns`
    default to the registered example's; columns are repeated in turn over the texts, by default
    TEXTS and some that hold the words of the parameters.
    """
    subject = build(_spec(reward), params, columns=columns, texts=texts)
    for one in CHECKS.values():
        one(subject)


def examine(
    reward: str | Callable[..., Any],
    params: Mapping[str, Any] | None = None,
    *,
    columns: Columns | None = None,
    texts: Sequence[str] | None = None,
) -> list[Result]:
    """How every check of `check` goes, and before them whether the reward can be built and loaded.

    What the reward raises ends up in a result. The rest is skipped where there are no values to
    look at, because it cannot be loaded or returns something else than a value a sample.
    """
    spec, start = _spec(reward), time.perf_counter()
    try:
        subject = build(spec, params, columns=columns, texts=texts)
    except (Exception, SystemExit) as error:
        told = isinstance(error, RewardConfigError)
        reason = str(error) if told else f"{spec.kind} ({spec.source}) raised {described(error)}"
        loading = Result(spec.kind, "load", "fail", reason, time.perf_counter() - start)
        return [loading, *(_not_run(spec, name, "load") for name in CHECKS)]
    results = [Result(spec.kind, "load", "pass", "", time.perf_counter() - start)]
    for name in CHECKS:
        has_values = len(results) == 1 or results[1].outcome == "pass"
        results.append(_run(subject, name) if has_values else _not_run(spec, name, "length"))
    return results


def build(
    spec: RewardSpec,
    params: Mapping[str, Any] | None = None,
    *,
    columns: Columns | None = None,
    texts: Sequence[str] | None = None,
) -> Subject:
    """The reward built and loaded, with a value of each column for each text; as in `check`.

    RewardConfigError where the example lacks something that the reward needs.
    """
    example = dict(spec.example or {})
    example_columns = example.pop("data", {})
    if params is None:
        absent = [name for name in spec.signature.required if name not in example]
        _require(spec, absent, ", ".join(f"{name!r}: …" for name in absent))
    given = example_columns if columns is None else columns
    needed = {name for name, optional in spec.signature.data.items() if not optional}
    absent = sorted(needed - given.keys() - {"prompts", "completions"})
    _require(spec, absent, f"'data': {{{', '.join(f'{name!r}: […]' for name in absent)}}}")
    for name, column in given.items():
        if not isinstance(column, list | tuple) or not column:
            raise RewardConfigError(
                f"{spec.kind} ({spec.source}): the column {name!r} is {brief(column)}; it must be "
                "a list of values, which are given to the texts in turn"
            )
    chosen = schema.check_params(spec, example if params is None else params, spec.kind)
    # Under `skip` one failure does not keep the other samples from being tried.
    entry = RewardEntry(spec.kind.rpartition(".")[2], spec.kind, chosen, on_error="skip")

    def made() -> Scorer:
        built = compose.build(entry, spec)
        built.load()
        return built

    built = made()
    words = _words_of(entry.params)
    if texts is None:
        texts = [*TEXTS, *(form.format(word) for word in words for form in ABOUT)]
    data = {name: [c[i % len(c)] for i in range(len(texts))] for name, c in given.items()}
    data |= {"prompts": [PROMPT] * len(texts), "completions": list(texts)}
    first = {name: column[0] for name, column in given.items()}
    return Subject(spec, built, data, first, made, words)


def _words_of(params: Mapping[str, Any]) -> list[str]:
    """The first few short texts among parameters, alone or in a list."""
    values = [
        v for value in params.values() for v in (value if isinstance(value, list) else [value])
    ]
    return [v for v in values if isinstance(v, str) and 0 < len(v) <= _SHORT][:_FEW]


def _run(subject: Subject, name: str) -> Result:
    kind, start = subject.spec.kind, time.perf_counter()
    try:
        nothing = CHECKS[name](subject)
    except (RewardError, RewardConfigError) as error:
        return Result(kind, name, "fail", str(error), time.perf_counter() - start)
    outcome: Literal["pass", "skipped"] = "skipped" if nothing else "pass"
    return Result(kind, name, outcome, nothing, time.perf_counter() - start)


def _not_run(spec: RewardSpec, name: str, failed: str) -> Result:
    return Result(spec.kind, name, "skipped", f"{failed} failed", 0.0)


def _spec(reward: str | Callable[..., Any]) -> RewardSpec:
    return registry.get(reward) if isinstance(reward, str) else registry.from_function(reward)


def _require(spec: RewardSpec, absent: Sequence[str], example: str) -> None:
    if absent:
        raise RewardConfigError(
            f"{spec.kind} ({spec.source}) needs {', '.join(map(repr, absent))}, which its example "
            f"does not hold: @reward({spec.kind!r}, example={{{example}}})"
        )
