import math
import sys
from fractions import Fraction

import numpy as np
import pytest

from rewards import RewardConfigError, RewardError, RewardSet, Score, Span, reward
from rewards.compose import RewardEntry


def returns(*values, name="returned"):
    """A set of one plain function that returns these values whatever it is given."""

    def function(completions):
        return list(values)

    function.__name__ = name
    return RewardSet([], extra=[function])


def test_none_adds_nothing_and_is_marked():
    out = returns(None, 1)([""] * 2, ["a", "b"])
    assert math.isnan(out.values[0, 0]) and out.valid.tolist() == [[False], [True]]
    assert out.score.tolist() == [0.0, 1.0]


def test_numbers_of_every_sort_are_taken():
    values = [True, 2, np.float32(0.5), np.int64(3), np.bool_(True), np.array(4.0), Fraction(1, 2)]
    assert returns(*values)([""] * 7, ["x"] * 7).score.tolist() == [1, 2, 0.5, 3, 1, 4, 0.5]


def test_arrays_and_tensors_are_taken():
    import torch

    for values in (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0], requires_grad=True), (1, 2)):

        def function(completions, values=values):
            return values

        assert RewardSet([], [function])(["", ""], ["", ""]).score.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.5", "returned str '0.5' for sample 1: 'b\\\\n'; a value is a number or None"),
        (1j, "returned complex 1j for sample 1"),
        ([0.5], r"returned list \[0.5\] for sample 1"),
        (float("nan"), "returned nan for sample 1: 'b\\\\n'"),
        (float("inf"), "returned inf for sample 1"),
        pytest.param(10**400, "returned inf for sample 1", id="huge"),
        (Score(1.0, [Span(0, 9, 1.0)]), r"returned the span \[0, 9\), which lies outside its text"),
        (Score(1.0, [Span(0, 1, math.nan)]), "returned the credit nan"),
    ],
)
def test_what_is_no_finite_number_is_refused_with_the_sample(value, message):
    where = r"reward 'returned' \(returned, tests/test_rewards/test_calling\.py:\d+\) "
    with pytest.raises(RewardError, match=where + message):
        returns(0.0, value)(["", ""], ["a", "b\n"])


def test_a_wrong_length_is_refused():
    with pytest.raises(
        RewardError, match=r"test_calling\.py:\d+\) returned 1 values for 2 samples"
    ):
        returns(0.5)(["", ""], ["a", "b"])


@pytest.mark.parametrize("value", [0.5, "ab", {"a": 1}, None, np.float64(1.0)])
def test_what_is_no_list_is_refused(value):
    def function(completions):
        return value

    with pytest.raises(RewardError, match="a reward returns a list"):
        RewardSet([], [function])(["", ""], ["a", "b"])


def test_a_reward_that_raises_is_named_with_the_sample_at_fault():
    def picky(completions):
        return [1 / len(text) for text in completions]

    with pytest.raises(RewardError) as caught:
        RewardSet([], [picky])([""] * 3, ["a", "bb", ""])
    assert "reward 'picky' (picky, tests/test_rewards/test_calling.py:" in str(caught.value)
    assert str(caught.value).endswith("raised ZeroDivisionError: division by zero for sample 2: ''")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reward_that_exits_does_not_end_the_process():
    def leaves(completions):
        return [sys.exit(3) if text == "bb" else 1.0 for text in completions]

    with pytest.raises(
        RewardError, match=r"test_calling\.py:\d+\) raised SystemExit: 3 for .*'bb'"
    ):
        RewardSet([], [leaves])([""] * 2, ["a", "bb"])


def test_an_interrupt_in_a_reward_stays_one():
    def interrupted(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RewardSet([], [interrupted])([""], ["a"])


@pytest.mark.parametrize(
    ("leaves", "what"), [("built", "built: SystemExit"), ("loaded", "loaded: SystemExit")]
)
def test_a_class_that_exits_before_training_is_named(leaves, what):
    @reward("own.leaving")
    class Leaving:
        def __init__(self) -> None:
            if leaves == "built":
                sys.exit()

        def load(self) -> None:
            sys.exit()

        def __call__(self, completions: list[str]) -> list[float]: ...

    where = r"^rewards\.x \(own\.leaving, tests/test_rewards/test_calling\.py:\d+\) cannot be "
    with pytest.raises(RewardConfigError, match=f"{where}{what}$"):
        RewardSet([RewardEntry("x", "own.leaving")])


def test_a_reward_that_fails_on_the_batch_alone_is_named():
    def lonely(completions):
        if len(completions) > 1:
            raise MemoryError("too many")
        return [0.0]

    with pytest.raises(RewardError, match="MemoryError: too many on 2 samples, though on none of"):
        RewardSet([], [lonely])(["", ""], ["a", "b"])


def test_long_texts_are_shortened_in_messages():
    with pytest.raises(RewardError) as caught:
        returns(math.nan)([""], ["x" * 9_999])
    assert len(str(caught.value)) < 300


def register_fussy(cache=True):
    calls = []

    @reward("own.fussy", cache=cache)
    def fussy(completions: list[str]) -> list[float]:
        calls.append(list(completions))
        if "bad" in completions:
            raise ValueError("bad text")
        return [math.nan if text == "nan" else float(len(text)) for text in completions]

    return calls


def fussy_set(on_error="skip"):
    return RewardSet([RewardEntry("fussy", "own.fussy", on_error=on_error)])


@pytest.mark.parametrize("fault", ["bad", "nan"])
def test_skip_turns_a_failing_sample_into_none_and_counts_it(fault):
    register_fussy()
    texts = ["a", "bb", "ccc", "dddd", fault]
    out = fussy_set()([""] * 5, texts)
    assert out.valid[:, 0].tolist() == [True] * 4 + [False]
    assert out.score.tolist() == [1, 2, 3, 4, 0]
    assert out.skipped == {"fussy": 1}


@pytest.mark.parametrize("fault", ["bad", "nan"])
def test_more_than_a_fifth_of_failures_raises_even_under_skip(fault):
    register_fussy()
    with pytest.raises(RewardError, match="failed on 2 of 5 samples; on_error: skip allows 20%"):
        fussy_set()([""] * 5, ["a", "b", "c", fault, fault])


def valued_set(**options):
    return RewardSet(
        [RewardEntry("fussy", "own.fussy", on_error="value", error_value=-2.0, **options)]
    )


@pytest.mark.parametrize("fault", ["bad", "nan"])
def test_value_gives_a_failing_sample_the_entrys_value_and_counts_it(fault):
    register_fussy()
    out = valued_set(weight=0.5, scale=3.0)([""] * 5, ["a", "bb", "ccc", "dddd", fault])
    assert out.values[:, 0].tolist() == [1, 2, 3, 4, -2]
    assert out.score.tolist()[-1] == 0.5 * 3 * -2 and out.valid.all()
    assert out.skipped == {"fussy": 1}


def test_more_than_a_fifth_of_failures_raises_even_under_value():
    register_fussy()
    with pytest.raises(RewardError, match="failed on 2 of 5 samples; on_error: value allows 20%"):
        valued_set()([""] * 5, ["a", "b", "c", "nan", "nan"])


def test_no_more_samples_are_tried_than_it_takes_to_pass_the_ceiling():
    tried = []

    @reward("own.fails")
    def fails(completions: list[str]) -> list[float]:
        tried.append(len(completions))
        raise ValueError("always")

    with pytest.raises(RewardError, match="'0', and failed on 3 of 10 samples"):
        RewardSet([RewardEntry("x", "own.fails", on_error="skip")])([""] * 10, [*"0123456789"])
    assert tried == [10, 1, 1, 1]


def test_equal_texts_of_a_call_are_scored_once():
    calls = register_fussy()
    assert fussy_set()([""] * 3, ["a", "bb", "a"]).score.tolist() == [1, 2, 1]
    assert calls == [["a", "bb"]]


def test_no_value_outlives_its_call():
    calls = register_fussy()
    rewards = fussy_set()
    for _ in range(2):  # a resumed run would not have it either
        rewards([""] * 2, ["a", "bb"])
    assert calls == [["a", "bb"], ["a", "bb"]]


def test_impure_rewards_are_called_for_every_sample():
    calls = register_fussy(cache=False)
    fussy_set()([""] * 2, ["a", "a"])
    assert calls == [["a", "a"]]


def test_equal_texts_with_other_columns_are_told_apart_by_their_types():
    @reward("own.column")
    def column(completions: list[str], topic: list[object]) -> list[float]:
        return [float(isinstance(value, bool)) for value in topic]

    rewards = RewardSet([RewardEntry("c", "own.column")])
    unhashable = object()
    out = rewards([""] * 5, ["x"] * 5, {"topic": [1, True, 1.0, [1], {"a": [True]}]})
    assert out.score.tolist() == [0, 1, 0, 0, 0]
    assert rewards([""] * 2, ["x"] * 2, {"topic": [True, unhashable]}).score.tolist() == [1, 0]


def test_columns_are_filled_by_name():
    @reward("own.agrees")
    def agrees(
        completions: list[str], topic: list[str], prompts: list[str], note: list[str] | None = None
    ) -> list[float]:
        return [
            float(t in c and p != "") for c, t, p in zip(completions, topic, prompts, strict=True)
        ]

    rewards = RewardSet([RewardEntry("x", "own.agrees")])
    assert rewards.columns == {"topic"}
    out = rewards(["p", "p"], ["moon", "sun"], {"topic": ["moon", "moon"], "other": [1, 2]})
    assert out.score.tolist() == [1.0, 0.0]
    with pytest.raises(RewardConfigError) as caught:
        rewards(["p"], ["moon"], {"other": [1]})
    assert str(caught.value) == (
        "reward 'x' needs the column 'topic'; the data has: completions, other, prompts"
    )
    with pytest.raises(RewardError, match="'topic' has 1 values for 2 completions"):
        rewards(["p", "p"], ["moon", "sun"], {"topic": ["moon"]})


def test_plain_functions_with_kwargs_get_every_column_and_what_trl_hands_over():
    seen = []

    def greedy(completions, **kwargs):
        seen.append(kwargs.keys())
        return [1.0 for _ in completions]

    assert RewardSet([], [greedy])([""], ["x"], {"a": [1], "b": [2]}).score.tolist() == [1.0]
    assert seen == [{"prompts", "a", "b", "trainer_state", "log_extra", "log_metric"}]


def test_an_empty_batch_calls_nothing():
    out = returns(1.0)([], [])
    assert out.values.shape == (0, 1) and out.spans == () and len(out) == 0


def test_a_reward_that_reads_no_completions_still_scores_every_sample():
    def by_note(note=()):
        return [2.0] * 3

    def by_prompt(prompts):
        return [float(prompt) for prompt in prompts]

    assert RewardSet([], [by_note])([""] * 3, ["a"] * 3).score.tolist() == [2.0] * 3
    with pytest.raises(RewardError, match="returned 3 values for 2 samples"):
        RewardSet([], [by_note])([""] * 2, ["a"] * 2)
    with pytest.raises(RewardError, match="for sample 1: 'text'"):
        RewardSet([], [by_prompt])(["1", "x"], ["a", "text"])
