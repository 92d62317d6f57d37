"""The rewards that come with TRL, under their own names: `trl.<name>`, parameters as settings.

TRL is imported when one of them scores its first batch. The values are TRL's; the parameters and
their defaults are repeated here, so that they can be checked and listed without it, and a test
holds them against the installed TRL.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Annotated, Any

from pydantic import Field

from rewards.contract import RewardConfigError
from rewards.registry import add_spec
from rewards.spec import RewardSpec, read
from rewards.trl_style import PROVIDED, TRLFunction, said

Completions = Sequence[Any]  # texts, or messages where the prompt is a conversation
Log = Callable[[str, list[Any]], None]
_SOLVED = {"solution": [r"$\frac{1}{3}$", "$2$"]}
_IDS = {"completion_ids": [[7, 8, 9, 7, 8, 9], [5, 6, 7], [5, 5, 5, 5, 5]]}


def _kind(
    bounds: tuple[float, float] | None, example: Mapping[str, Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as `trl.<its name>`: keyword-only parameters are configuration."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        accepted = inspect.signature(function).parameters

        @wraps(function)
        def call(**given: Any) -> Any:
            return function(**{name: value for name, value in given.items() if name in accepted})

        own = read(function)
        data = {n: o for n, o in own.data.items() if n not in PROVIDED or n == "completion_ids"}
        signature = replace(own, data=data, takes_all=True)
        kind = f"trl.{function.__name__}"
        add_spec(RewardSpec(kind, TRLFunction(call), signature, bounds, example, cache=False))
        return function

    return register


@_kind((0, 1), {})
def think_format_reward(completions: Completions) -> list[float]:
    """1 where the completion begins with one closed `<think>` block, else 0."""
    from trl.rewards import think_format_reward as of_trl

    return of_trl(_as_messages(completions))


@_kind((0, 1), {"data": _SOLVED})
def accuracy_reward(
    completions: Completions, solution: list[str], log_extra: Log | None = None
) -> list[float | None]:
    """1 where the completion's answer equals the column `solution` as mathematics, else 0.

    None where the solution cannot be parsed. Needs math-verify (`pip install 'rlalign[math]'`).
    The answer is LaTeX, in `\\boxed{}` first. What was read on both sides is logged per sample.
    """
    from trl.rewards import accuracy_reward as of_trl

    return _verified(lambda: of_trl(_as_messages(completions), solution, log_extra=log_extra))


@_kind((0, 1), {"data": _SOLVED})
def reasoning_accuracy_reward(
    completions: Completions,
    solution: list[str],
    log_extra: Log | None = None,
    *,
    reasoning_delimiters: Annotated[
        list[str] | None, Field(description="the reasoning ends at one; null: `</think>`")
    ] = None,
) -> list[float | None]:
    """1 where the answer behind the reasoning equals the column `solution`, else 0.

    0 too where the reasoning does not end, None where the solution cannot be parsed. Needs
    math-verify (`pip install 'rlalign[math]'`).
    """
    from trl.rewards import reasoning_accuracy_reward as of_trl

    return _verified(
        lambda: of_trl(
            _as_messages(completions),
            solution,
            reasoning_delimiters=reasoning_delimiters,
            log_extra=log_extra,
        )
    )


@_kind(None, {"max_len": 100, "data": _SOLVED | {"completion_ids": [[1, 2, 3]]}})
def get_cosine_scaled_reward(
    completions: Completions,
    solution: list[str],
    completion_ids: list[list[int]],
    *,
    max_len: Annotated[int, Field(ge=1, description="tokens at which the schedule ends")],
    min_value_wrong: Annotated[float, Field(description="of the shortest wrong one")] = -1.0,
    max_value_wrong: Annotated[float, Field(description="of the longest wrong one")] = -0.5,
    min_value_correct: Annotated[float, Field(description="of the longest correct one")] = 0.5,
    max_value_correct: Annotated[float, Field(description="of the shortest correct one")] = 1.0,
) -> list[float | None]:
    """`trl.accuracy_reward` scaled by length along a cosine: correct and short is best.

    A wrong answer costs the less the longer it is. None where the solution cannot be parsed. Needs
    math-verify (`pip install 'rlalign[math]'`).
    """
    from trl.rewards import get_cosine_scaled_reward as of_trl

    made = of_trl(max_len, min_value_wrong, max_value_wrong, min_value_correct, max_value_correct)
    return _verified(lambda: made(_as_messages(completions), solution, completion_ids))


@_kind(None, {"ngram_size": 2, "data": _IDS})
def get_repetition_penalty_reward(
    completion_ids: list[list[int]],
    *,
    ngram_size: Annotated[int, Field(ge=1, description="tokens in an n-gram")] = 3,
    max_penalty: Annotated[float, Field(le=0, description="of a text that only repeats")] = -1.0,
) -> list[float]:
    """`max_penalty` times the share of the completion's token n-grams that are repeats."""
    from trl.rewards import get_repetition_penalty_reward as of_trl

    penalties: list[float] = of_trl(ngram_size, max_penalty)(completion_ids)
    return penalties


@_kind((-1, 0), {"max_completion_len": 5, "soft_punish_cache": 2, "data": _IDS})
def get_soft_overlong_punishment(
    completion_ids: list[list[int]],
    *,
    max_completion_len: Annotated[int, Field(ge=1, description="tokens; -1 beyond it")],
    soft_punish_cache: Annotated[
        int, Field(ge=0, description="tokens before it over which 0 falls to -1")
    ],
) -> list[float]:
    """0 for a completion of a good length, falling to -1 at `max_completion_len` tokens."""
    from trl.rewards import get_soft_overlong_punishment as of_trl

    penalties: list[float] = of_trl(max_completion_len, soft_punish_cache)(completion_ids)
    return penalties


def _as_messages(completions: Completions) -> list[Any]:
    """In the form that TRL's own rewards read, whatever the prompt is."""
    return [said(item) if isinstance(item, str) else item for item in completions]


def _verified(score: Callable[[], list[float | None]]) -> list[float | None]:
    try:
        return score()
    except ImportError as error:
        raise RewardConfigError(
            "needs math-verify, which is not installed: pip install 'rlalign[math]'"
        ) from error
