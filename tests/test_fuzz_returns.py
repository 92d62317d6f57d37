"""Whatever a reward returns becomes numbers that can be trained on, or an error that names it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import builders
import numpy as np
import oracle
import pytest
import torch
from fuzzing import fuzzed, numbers, plain_values, texts
from hostile_returns import LISTS, MAKERS, Unspeakable
from hypothesis import strategies as st

from rewards import RewardError, RewardSet, Score, Span, load_file, registry, reward
from rewards.contract import LARGEST
from rewards.entries import parse_entries
from rlalign.scoring import place_credit
from rlalign.terminal import printable

COMPLETIONS = ["", "abba", "a b", "\ud800", "\U0001f680" * 3, "b" * 200]
TENSORS = [
    lambda: torch.tensor(1.0), lambda: torch.zeros(2, 2), lambda: torch.eye(2).to_sparse(),
    lambda: torch.zeros(2, requires_grad=True), lambda: torch.zeros(2, dtype=torch.bfloat16),
    lambda: torch.zeros(3, device="meta"), lambda: torch.tensor(1j),
]  # fmt: skip
ERRORS = [ValueError("x"), Unspeakable(), KeyError("\ud800"), SystemExit(0), RecursionError(),
          MemoryError(), StopIteration(), AssertionError(), RewardError("mine"),
          OSError(28, "full")]  # fmt: skip


def scores():
    place = st.integers(-2, 8) | st.sampled_from([10**30, None, "1", 0.5, math.nan, True])
    credit = numbers() | st.sampled_from([None, "1", 0.25, np.float32(0.5)])
    span = st.builds(Span, place, place, credit) | st.sampled_from([None, 3, (0, 1, 1.0), "abc"])
    sound = st.builds(Span, st.integers(0, 2), st.integers(2, 3), st.floats(-2, 2))
    value = st.sampled_from([0.0, 1.0, -3.5, 1e14, 1e39, math.inf])
    return st.builds(Score, value, st.lists(span, max_size=3) | st.lists(sound, max_size=3))


@dataclass(frozen=True)
class Later:
    """A hostile object that only the reward makes: hypothesis looks at what it draws."""

    make: Callable[..., object]
    items: list[object] | None = None


def now(value):
    if isinstance(value, Later):
        return value.make() if value.items is None else value.make(now(value.items))
    return [now(item) for item in value] if type(value) is list else value


def items():
    return st.one_of(
        numbers(),
        st.floats(-10, 10),
        st.none(),
        texts(6),
        scores(),
        st.sampled_from([*MAKERS, *TENSORS]).map(Later),
        plain_values(3),
    )


def returns():
    size = len(COMPLETIONS)
    right = st.lists(st.floats(-10, 10) | items(), min_size=size, max_size=size)
    arrays = st.lists(numbers(), min_size=size, max_size=size).map(as_array)
    others = st.builds(Later, st.sampled_from([tuple, *LISTS]), right)
    return right | others | arrays | st.lists(items(), max_size=8) | items()


def as_array(values):
    array = np.array([float(v) if abs(v) < 1e300 else math.inf for v in values])
    return array if len(array) % 2 else torch.from_numpy(array)


def entries():
    bound = st.floats(-1e15, 1e15)
    return st.builds(
        lambda weight, scale, clip, threshold, on_error: {
            "weight": weight, "scale": scale, "clip": clip, "threshold": threshold,
            "on_error": on_error, "error_value": 0.5 if on_error == "value" else None,
        },
        st.just(1.0) | bound, st.just(1.0) | bound,
        st.none() | st.tuples(bound, bound).map(sorted).map(tuple), st.none() | bound,
        st.sampled_from(["raise", "skip", "value"]),
    )  # fmt: skip


def scores_or_says_why(score):
    try:
        output = score()
    except RewardError as error:
        said = str(error)
        assert said.strip() and ("reward 'odd'" in said or said.startswith("the score, ")), said
        assert len(said) < 5000
        printable(said).encode()
        return None
    assert len(output.score) == len(COMPLETIONS) and np.isfinite(output.score).all()
    assert (np.isfinite(output.values) == output.valid).all()
    with np.errstate(over="raise", invalid="raise"):  # what the statistics do with them, in float32
        (output.score.astype(np.float32) ** 2).sum()
        (output.values[output.valid].astype(np.float32) ** 2).sum()
    assert all(abs(span.credit) <= LARGEST for row in output.spans for span in row)
    return output


@pytest.fixture(autouse=True, scope="module")
def kinds():
    """Kinds that do what the case at hand wants."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_specs", dict(registry._specs))
        patch.setattr(registry, "_files", dict(registry._files))

        @reward("fuzz.odd", cache=False)
        def odd(completions: list[str]) -> list[float]:
            """What `act` says."""
            return ACT[0](completions)

        yield


ACT = []


def scored(act, completions=COMPLETIONS, **settings):
    ACT[:] = [act]
    rewards = RewardSet(parse_entries({"odd": {"kind": "fuzz.odd", **settings}}))
    return rewards([""] * len(completions), completions)


@fuzzed(1700, returns(), entries())
def test_any_return_of_a_function(returned, settings):
    scores_or_says_why(lambda: scored(lambda completions: now(returned), **settings))


@fuzzed(120, st.sampled_from(ERRORS), st.sampled_from(["raise", "skip"]), st.integers(0, 5))
def test_any_error_of_a_function(error, on_error, culprit):
    def raises(completions):
        if len(completions) > 1 or completions[0] == COMPLETIONS[culprit]:
            raise error
        return [1.0]

    scores_or_says_why(lambda: scored(raises, on_error=on_error))


@fuzzed(400, st.lists(scores(), min_size=2, max_size=2))
def test_credit_adds_up_to_the_score_wherever_spans_lie(values):
    completions = ["abba", "bab"]
    try:
        output = scored(lambda completions: values, completions)
    except RewardError:
        return
    score = torch.from_numpy(output.score).float()
    rollout = builders.rollout(completions)
    placed = place_credit(rollout, score, output.spans, oracle.tokenizer())
    assert placed.isfinite().all() and not placed[~rollout.action_mask].any()
    sizes = [1.0, *output.score, *(span.credit for row in output.spans for span in row)]
    left = (placed.double().sum(1) - score.double()).abs().max()
    assert left <= 1e-5 * max(map(abs, sizes))


FILE = """
import hostile_returns
from rewards import reward


@reward("fuzz.isolated", cache=False)
def isolated(completions: list[str]) -> list[float]:
    return hostile_returns.made(int(completions[0]), len(completions))
"""


def test_any_return_through_a_worker(tmp_path):
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    load_file(tmp_path / "mine.py")
    rewards = RewardSet(parse_entries({"odd": {"kind": "fuzz.isolated", "isolate": True}}))

    @fuzzed(250, st.integers(0, 10**6))
    def through_a_worker(seed):
        texts = [str(seed)] * len(COMPLETIONS)
        scores_or_says_why(lambda: rewards([""] * len(texts), texts))

    try:
        through_a_worker()
        assert rewards._rewards[0]._function._worker.starts == 1
    finally:
        rewards.close()
