"""Rewards in a worker process: the same values and errors as in the process itself."""

import math
import os
from collections.abc import Iterator

import pytest
from isolated_reward import (
    DEADLINE,
    exists,
    function,
    isolated,
    reward_file,
    reward_set,
)

from rewards import (
    RewardConfigError,
    RewardError,
    RewardSet,
    Span,
    reward,
)
from rewards.compose import RewardEntry
from rewards.entries import parse_entries

__all__ = ["function", "isolated", "reward_file"]  # fixtures

AWKWARD = [
    "", "\n", "\r\n\x00\x1b[0m", "\u2028\x85", "\ud800", "\ud83d\ude80", "\U0001f680", "a\udcff",
    "e\u0301 \u202e", '"}\\u0041', "none",
]  # fmt: skip


def test_values_and_spans_are_those_of_the_process_itself(isolated):
    alone = reward_set(isolate=False)([""] * len(AWKWARD), AWKWARD)
    out = isolated([""] * len(AWKWARD), AWKWARD)
    assert out.values.tolist()[:-1] == alone.values.tolist()[:-1]
    assert math.isnan(out.values[-1, 0]) and math.isnan(alone.values[-1, 0])
    assert out.spans == alone.spans != ((),) * len(AWKWARD)
    assert out.values[5] != out.values[6]  # two surrogates are not the character they would make


def test_floats_come_back_to_the_last_bit(function):
    (value,) = function(completions=["tiny"])
    assert value == 0.1 + 0.2 and value.spans[0] == Span(0, 1, 5e-324)
    assert math.copysign(1, value.spans[1].credit) == -1


def test_a_batch_beyond_the_pipes_size_comes_back_whole(isolated):
    texts = [f"{i} " + "long 東京 " * 40 for i in range(2_000)]
    out = isolated([""] * len(texts), texts)
    alone = reward_set(isolate=False)([""] * len(texts), texts)
    assert (out.values == alone.values).all() and out.spans == alone.spans


def test_what_a_reward_prints_is_no_reply(capfd):
    rewards = reward_set()  # a worker that has this test's stdout and stderr
    out = rewards([""] * 2, ["print", "ab"])
    rewards.close()
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count('{"returned": [9.0]}') == 2
    alone = reward_set(isolate=False)([""] * 2, ["print", "ab"])
    assert out.values.tolist() == alone.values.tolist()


def test_equal_texts_are_sent_once(isolated):
    out = isolated([""] * 3, ["seen", "seen", "seen"])
    assert len({*out.values[:, 0]}) == 1


@pytest.fixture(scope="module")
def wrong() -> Iterator[tuple[RewardSet, RewardSet]]:
    pair = reward_set("own.wrong"), reward_set("own.wrong", isolate=False)
    yield pair
    pair[0].close()


@pytest.mark.parametrize(
    "how",
    [
        *("no list", "a string", "nothing", "too few", "text", "complex", "list"),
        *("nan", "infinite", "huge", "beyond", "credit", "unknown"),
    ],
)
def test_a_wrong_return_is_the_same_error_as_in_process(wrong, how):
    messages = []
    for rewards in wrong:
        with pytest.raises(RewardError) as caught:
            rewards([""] * 2, ["a", "b"], {"how": [how] * 2})
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "reward 'x' (own.wrong, " in messages[0]


@pytest.mark.usefixtures("own_registry")
def test_a_reward_that_no_other_process_can_import_is_refused():
    @reward("own.local")
    def local(completions: list[str]) -> list[float]: ...

    with pytest.raises(RewardConfigError, match=r"^rewards\.x\.isolate=True needs a reward that"):
        reward_set("own.local")


def test_settings_from_a_column_share_one_worker_that_is_built_anew_when_lost():
    entry = RewardEntry(
        "x", "own.moody", {"factor": {"column": "by"}}, isolate=True, on_error="skip",
        deadline=DEADLINE,
    )  # fmt: skip
    rewards = RewardSet([entry])
    rewards.check([""] * 2, {"by": [1.0, 2.0]})
    out = rewards([""] * 3, ["\x07", "pid", "pid"], {"by": [2.0, 1.0, 3.0]})
    (worker,) = {*out.values[1:, 0]}
    assert out.values[0, 0] == 2.0 and worker != os.getpid()
    texts, by = ["\x07", "exit", *["\x0e"] * 8], [2.0, 1.0, *[3.0] * 8]
    out = rewards([""] * 10, texts, {"by": by})
    assert out.skipped == {"x": 1} and out.values[2:, 0].tolist() == [6.0] * 8
    again = rewards([""] * 2, ["pid", "pid"], {"by": [4.0, 5.0]})
    (another,) = {*again.values[:, 0]}
    rewards.close()
    assert another != worker and not any(exists(int(pid)) for pid in (worker, another))


def test_isolated_parts_fail_and_end_as_their_combination_does():
    parts = {"a": {"kind": "own.moody"}, "b": {"kind": "structure.word_count", "min": 0}}
    (entry,) = parse_entries(
        {"x": {"kind": "combine.min", "parts": parts, "isolate": True, "on_error": "skip"}}
    )
    rewards = RewardSet([entry])
    out = rewards([""] * 5, ["exit", "pid", *["\x01"] * 3])
    assert out.skipped == {"x": 1} and out.values[2, 0] == 1 / 7
    workers = [part._function._worker._process.pid for part in rewards._rewards[0]._parts]
    rewards.close()
    assert len({*workers}) == 2 and not any(map(exists, workers))


@pytest.mark.parametrize("isolate", [False, True])
def test_an_error_of_ours_that_a_reward_raises_fails_its_sample_alone(isolate):
    rewards = reward_set(isolate=isolate, on_error="skip")
    out = rewards([""] * 5, ["ours", *"abcd"])
    rewards.close()
    assert out.skipped == {"x": 1}
    alone = reward_set(isolate=isolate)
    with pytest.raises(RewardError, match=r"^reward 'x' .* raised RewardError: inner .*'ours'$"):
        alone([""] * 2, ["a", "ours"])
    alone.close()


def test_equal_runs_meet_equal_noise():
    drawn = []
    for _ in range(2):
        rewards = reward_set()
        drawn.append(rewards([""] * 2, ["chance", "chance "]).values[:, 0].tolist())
        rewards.close()
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]


def test_built_in_rewards_can_be_isolated():
    entry = RewardEntry("x", "lexical.contains", {"words": ["she"]}, isolate=True)
    rewards = RewardSet([entry])
    alone = RewardSet([RewardEntry("x", "lexical.contains", {"words": ["she"]})])
    out = rewards([""] * 2, ["so she ran", "he"])
    assert out.spans == alone([""] * 2, ["so she ran", "he"]).spans != ((), ())
    rewards.close()
