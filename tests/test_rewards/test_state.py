"""Rewards that have a state: kept by name as JSON, and going on from it as if nothing had been."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards import RewardConfigError, RewardError, RewardSet, load_file, registry, reward
from rewards.compose import RewardEntry, parse_entries
from rewards.conformance import examine

COUNTING_FILE = '''
from rewards import reward


@reward("counting.novelty", bounds=(0, 1), example={})
class Novelty:
    """1 for a text that no call before held, else 0."""

    def __init__(self, *, weight_of_new: float = 1.0) -> None:
        self.seen, self.value = set(), weight_of_new

    def __call__(self, completions: list[str]) -> list[float]:
        values = [0.0 if text in self.seen else self.value for text in completions]
        self.seen.update(completions)
        if "raise" in completions:
            raise ValueError("no")
        return values

    def state_dict(self) -> dict:
        return {"seen": sorted(self.seen)}

    def load_state_dict(self, state: dict) -> None:
        self.seen = set(state["seen"])
'''
NEW = {"kind": "counting.novelty"}
SECTION = {
    "alone": NEW,
    "isolated": {**NEW, "isolate": True},
    "per_prompt": {**NEW, "weight_of_new": {"column": "by"}},
    "both": {"kind": "combine.min", "parts": {"a": NEW, "b": {"kind": "structure.word_count"}}},
    "plain": {"kind": "structure.word_count"},
}
BY = {"by": [1.0, 0.5]}


@pytest.fixture(autouse=True)
def counting_file(tmp_path: Path) -> None:
    path = tmp_path / "counting.py"
    path.write_text(COUNTING_FILE)
    load_file(path)


@pytest.fixture
def made() -> Iterator[Any]:
    """A function that makes sets, which are closed after the test."""
    sets: list[RewardSet] = []

    def make(section: dict[str, Any]) -> RewardSet:
        sets.append(RewardSet(parse_entries(section)))
        return sets[-1]

    yield make
    for rewards in sets:
        rewards.close()


def values(rewards: RewardSet, *texts: str) -> list[list[float]]:
    return rewards([""] * 2, list(texts), BY).values.tolist()


def test_a_state_is_loaded_by_name_whatever_holds_the_reward(made):
    unbroken, resumed = made(SECTION), made(SECTION)
    assert values(unbroken, "a", "b") == [[1, 1, 1, 1, 1], [1, 1, 0.5, 1, 1]]
    state = unbroken.state_dict()
    assert list(state) == ["alone", "isolated", "per_prompt", "both"]
    assert json.loads(json.dumps(state, allow_nan=False)) == state
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert resumed.state_dict() == state
    assert (
        values(resumed, "a", "c") == values(unbroken, "a", "c") != values(made(SECTION), "a", "c")
    )
    assert unbroken.state_dict() == resumed.state_dict() != state  # and a copy was given


def test_measuring_leaves_no_trace(made):
    rewards = made(SECTION)
    rewards.probe(columns={"by": [1.0]})
    with rewards.measuring():
        assert values(rewards, "a", "b")[0][0] == 1
        assert values(rewards, "a", "b")[0][0] == 0
    assert values(rewards, "a", "b") == [[1, 1, 1, 1, 1], [1, 1, 0.5, 1, 1]]


def test_a_worker_that_starts_again_goes_on_from_its_state(made):
    rewards = made({"x": {**NEW, "isolate": True}})
    values(rewards, "a", "b")
    os.kill(rewards._rewards[0]._function._worker._process.pid, signal.SIGKILL)
    rewards._rewards[0]._function._worker._process.wait()
    assert values(rewards, "a", "c") == [[0], [1]]


def test_a_lost_worker_is_not_started_to_be_given_a_state(made):
    """What stops has seconds, and a start may load a model."""
    rewards = made({"x": {**NEW, "isolate": True}})
    values(rewards, "a", "b")
    isolated = rewards._rewards[0]._function
    isolated._worker.close()
    rewards.load_state_dict({"x": {"seen": ["c"]}})
    assert rewards.state_dict() == {"x": {"seen": ["c"]}} and not isolated._worker.is_running
    assert values(rewards, "a", "c") == [[1], [0]]


@pytest.mark.parametrize("isolate", [False, True])
def test_a_batch_that_is_tried_again_one_by_one_is_seen_once(made, isolate):
    rewards = made({"x": {**NEW, "isolate": isolate, "on_error": "skip"}})
    out = rewards([""] * 5, ["a", "b", "raise", "c", "d"])
    assert out.values[[0, 1, 3, 4], 0].tolist() == [1] * 4 and out.skipped == {"x": 1}


def test_equal_samples_are_each_shown_to_a_reward_with_a_state(own_registry):
    shown = []

    @reward("own.recorder")
    class Recorder:
        def __call__(self, completions: list[str]) -> list[float]:
            shown.append(list(completions))
            return [0.0] * len(completions)

        def state_dict(self) -> dict:
            return {}

        def load_state_dict(self, state: dict) -> None: ...

    RewardSet([RewardEntry("x", "own.recorder")])([""] * 2, ["a", "a"])
    assert shown == [["a", "a"]]


def test_a_set_that_has_changed_says_what_it_leaves_out(made, caplog):
    made({"x": NEW}).load_state_dict({"gone": {"seen": []}})
    assert "'gone' is not here any more" in caplog.text
    assert "'x' has no state there: it begins anew" in caplog.text


def stateful(state: Any) -> RewardSet:
    @reward("own.odd")
    class Odd:
        def __call__(self, completions: list[str]) -> list[float]:
            return [0.0] * len(completions)

        def state_dict(self) -> Any:
            return state() if callable(state) else state

        def load_state_dict(self, state: dict) -> None:
            raise KeyError("seen")

    return RewardSet([RewardEntry("x", "own.odd")])


def boom() -> None:
    raise ValueError("boom")


ITSELF: dict[str, Any] = {}
ITSELF["me"] = ITSELF


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "has a state_dict() that returned NoneType None; it returns a dict of JSON values"),
        ({"mean": float("nan")}, "state_dict()['mean'] is float nan; a state holds JSON values"),
        ({"seen": {"a"}}, "state_dict()['seen'] is set {'a'}; a state holds"),
        ({"pair": (1, 2)}, "state_dict()['pair'] is tuple (1, 2); a state holds"),
        ({"rows": [{1: 2}]}, "state_dict()['rows'][0] has the key 1; JSON's are strings"),
        (ITSELF, "has a state_dict() that holds itself"),
        (boom, "raised ValueError: boom in state_dict()"),
    ],
)
def test_a_state_that_is_no_json_is_refused_when_it_is_probed(own_registry, state, message):
    with pytest.raises(RewardError) as caught:
        stateful(state).probe()
    assert str(caught.value).startswith("reward 'x' (own.odd, tests/test_rewards/test_state.py:")
    assert message in str(caught.value)


def test_a_state_that_cannot_be_loaded_names_the_reward(own_registry):
    with pytest.raises(RewardError, match=r"^reward 'x' .*KeyError: 'seen' in load_state_dict\(\)"):
        stateful({}).load_state_dict({"x": {}})


@pytest.mark.parametrize("method", ["state_dict", "load_state_dict"])
def test_one_method_without_the_other_is_refused(own_registry, method):
    def call(self: Any, completions: list[str]) -> list[float]: ...

    half = type("Half", (), {"__call__": call, method: lambda self, *_: None})
    with pytest.raises(RewardConfigError, match=rf"Half .* has {method} and no "):
        reward("own.half")(half)


def test_the_weights_of_a_torch_module_are_no_state(own_registry):
    import torch

    @reward("own.module")
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def __call__(self, completions: list[str]) -> list[float]: ...

    assert not registry.get("own.module").is_stateful


def checked(kind: str) -> tuple[str, str]:
    (found,) = [result for result in examine(kind) if result.check == "state"]
    return found.outcome, found.reason


def test_conformance_takes_a_state_to_another_reward_and_back(own_registry):
    assert {r.outcome for r in examine("counting.novelty") if r.check != "causal"} == {"pass"}

    @reward("own.forgets")
    class Forgets(registry.get("counting.novelty").target):
        def state_dict(self) -> dict:
            return {"seen": []}

    @reward("own.loads_nothing")
    class LoadsNothing(registry.get("counting.novelty").target):
        def load_state_dict(self, state: dict) -> None: ...

    outcome, reason = checked("own.forgets")
    assert outcome == "fail" and "state_dict() leaves something out" in reason
    outcome, reason = checked("own.loads_nothing")
    assert outcome == "fail" and "once {'seen':" in reason and "is loaded" in reason
