import asyncio
import inspect
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import trl.rewards
import yaml
from transformers import TrainerState

from rewards import RewardConfigError, RewardError, RewardSet, conformance, registry, trl_reward
from rewards.compose import parse_entries
from rewards.trl_style import Logged, context
from rlalign.scoring import logged_stats

FILE = """
from trl.rewards import think_format_reward

def lengths(completions, **kwargs):
    '''How long.'''
    return [float(len(c)) for c in completions]

def _hidden(completions, **kwargs): ...
def helper(words, **kwargs): ...
def plain(completions): ...
"""


def scored(*functions: Any, texts: list[str], ids: Any = None, **columns: Any) -> Any:
    """The set's output, and what the functions logged."""
    logged = Logged()
    handed = context(ids or [[1]] * len(texts), (), TrainerState(global_step=3), logged)
    output = RewardSet([], functions)([""] * len(texts), texts, columns | handed)
    return output, logged


def test_a_reward_file_needs_no_decorator_for_a_function_that_is_written_for_trl(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    registry.load_file(file)
    assert registry.defined_in(file) == ["lengths"]
    spec = registry.get("lengths")
    assert spec.doc == "How long." and spec.source.endswith("mine.py:4")
    output = RewardSet(parse_entries({"x": {"kind": "lengths", "scale": 2}}))([""], ["abc"])
    assert output.score.tolist() == [6.0]
    conformance.check("lengths")


def test_a_file_with_neither_kind_of_reward_says_both_ways(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("def plain(completions): ...")
    with pytest.raises(RewardConfigError, match=r"@reward.*`completions` and `\*\*kwargs`"):
        registry.load_file(file)


def test_what_a_factory_made_is_named_by_hand():
    trl_reward(trl.rewards.get_soft_overlong_punishment(4, 2), name="own.overlong")
    rewards = RewardSet(parse_entries({"x": {"kind": "own.overlong"}}))
    handed = context([[1] * 2, [1] * 3, [1] * 9], (), None, Logged())
    assert rewards([""] * 3, ["", "", ""], handed).score.tolist() == [0.0, -0.5, -1.0]

    def narrow(completions): ...

    with pytest.raises(RewardConfigError, match=r"narrow \(.*no \*\*kwargs.*trainer_state"):
        trl_reward(narrow)

    def playing(completions, environments, **kwargs): ...

    with pytest.raises(RewardConfigError, match=r"playing .*needs environments, which only TRL's"):
        trl_reward(playing)


def test_async_rewards_wait_at_the_same_time_and_keep_their_loop():
    events: dict[str, asyncio.Event] = {}
    loops = set()

    def meeting(own: str, other: str) -> Any:
        async def function(completions, **kwargs):
            loops.add(asyncio.get_running_loop())
            for name in (own, other):
                events.setdefault(name, asyncio.Event())
            events[own].set()
            await asyncio.wait_for(events[other].wait(), timeout=10)  # alone it would never come
            return [1.0] * len(completions)

        function.__name__ = own
        return function

    rewards = RewardSet([], [meeting("a", "b"), meeting("b", "a")])
    for _ in range(2):
        assert rewards(["", ""], ["x", "y"]).score.tolist() == [2.0, 2.0]
    assert len(loops) == 1


def test_what_async_rewards_draw_is_a_stream_of_its_own():
    async def chance(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0.02)  # so that both hold the generators at once
        return [random.random() for _ in completions]

    async def dice(completions: list[str], **kwargs: Any) -> list[float]:
        return await chance(completions)

    rewards = RewardSet([], [chance, dice])
    random.seed(7)
    expected = random.Random(7).random()
    first, second = rewards([""], ["a"]), rewards([""], ["b"])
    assert random.random() == expected
    for before, after in zip(first.values[0], second.values[0], strict=True):
        assert before != after


def test_async_parts_of_a_combination_leave_the_generators_alone(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import random\n"
        "async def chance(completions, log_metric=None, **kwargs):\n"
        "    log_metric('m', 1.0)\n"
        "    return [random.random() for _ in completions]\n"
        "def length(completions, log_metric=None, **kwargs):\n"
        "    log_metric('m', 3.0)\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    registry.load_file(file)
    parts = {"a": {"kind": "chance"}, "b": {"kind": "length"}}
    rewards = RewardSet(parse_entries({"c": {"kind": "combine.all", "parts": parts}}))
    random.seed(7)
    expected, logged = random.Random(7).random(), Logged()
    rewards([""], ["ab"], context([[1]], (), TrainerState(), logged))
    assert random.random() == expected
    assert logged.metrics == {"c.parts.a/m": [1.0], "c.parts.b/m": [3.0]}


def test_an_interrupt_does_not_wait_for_async_rewards():
    async def forever(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(60)
        return [0.0] * len(completions)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            RewardSet([], [forever])([""], ["a"])
    finally:
        signal.signal(signal.SIGALRM, old)
    assert time.monotonic() - start < 10


def test_a_function_that_is_written_for_trl_is_not_isolated(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    registry.load_file(file)
    section = {"x": {"kind": "lengths", "isolate": True}}
    with pytest.raises(RewardConfigError, match=r"^rewards\.x\.isolate=True is not for functions"):
        RewardSet(parse_entries(section))


def test_an_async_reward_that_raises_is_named_with_its_sample():
    async def picky(completions, **kwargs):
        if "bad" in completions:
            raise ValueError("no")
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match=r"'picky' \(picky, .*ValueError: no for sample 1: 'bad'"):
        scored(picky, texts=["good", "bad"])


def test_what_functions_log_is_kept_under_their_entry():
    def mine(completions, completion_ids, log_extra, log_metric, **kwargs):
        log_extra("ids", completion_ids)
        log_metric("size", len(completions))
        log_metric("size", 4)
        return [0.0] * len(completions)

    def yours(completions, log_extra, **kwargs):
        log_extra("ids", [{1}, None])
        return [0.0] * len(completions)

    _, logged = scored(mine, yours, texts=["a", "b"], ids=[[1], [2, 3]])
    assert logged.extra == {"mine/ids": [[1], [2, 3]], "yours/ids": ["{1}", None]}
    assert logged.metrics == {"mine/size": [2.0, 4.0]}
    two = [logged.metrics, {"mine/size": [9.0], "mine/other": [1.0]}]
    assert logged_stats(two) == {"reward/mine/log/size": 5.0, "reward/mine/log/other": 1.0}


@pytest.mark.parametrize(
    "log, message",
    [
        (lambda extra, metric: extra("x", [1]), r"log_extra\('x'\) was given 1 values for 2"),
        (lambda extra, metric: metric("x", "many"), r"log_metric\('x'\) was given 'many', no num"),
        (lambda extra, metric: metric("x", float("nan")), r"log_metric\('x'\) was given nan"),
    ],
)
def test_a_wrong_log_names_the_reward(log: Any, message: str):
    def faulty(completions, log_extra, log_metric, **kwargs):
        if len(completions) == 2:
            log(log_extra, log_metric)
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=f"'faulty'.*{message}"):
        scored(faulty, texts=["a", "b"])


def test_the_state_and_the_columns_reach_the_function():
    def stepped(trainer_state, completions, weight, **kwargs):
        return [trainer_state.global_step * w for w in weight]

    output, _ = scored(stepped, texts=["a", "b"], weight=[2, 5])
    assert output.score.tolist() == [6.0, 15.0]


def test_all_of_trls_rewards_are_kinds_with_trls_parameters():
    known = {k.removeprefix("trl.") for k in registry.kinds() if k.startswith("trl.")}
    assert known == {name for names in trl.rewards._import_structure.values() for name in names}
    for name in known:
        theirs = inspect.signature(getattr(trl.rewards, name)).parameters
        ours = registry.get(f"trl.{name}").signature
        if name.startswith("get_"):
            wanted = {n: p.default for n, p in theirs.items()}
        else:
            data = ("completions", "solution", "log_extra", "kwargs")
            wanted = {n: p.default for n, p in theirs.items() if n not in data}
        empty = inspect.Parameter.empty
        assert {n: ours.defaults.get(n, empty) for n in ours.annotations} == wanted, name


THIRD = r"so \boxed{\frac{1}{3}}"
HALF = r"<think>hm</think> so \boxed{\frac{1}{2}}"
PARAMS = {
    "get_cosine_scaled_reward": {"max_len": 4, "max_value_correct": 3.0},
    "get_repetition_penalty_reward": {"ngram_size": 2, "max_penalty": -4.0},
    "get_soft_overlong_punishment": {"max_completion_len": 4, "soft_punish_cache": 2},
    "reasoning_accuracy_reward": {"reasoning_delimiters": ["hm"]},
}


@pytest.mark.parametrize(
    "name",
    sorted(
        trl.rewards._import_structure["accuracy_rewards"]
        + trl.rewards._import_structure["format_rewards"]
        + trl.rewards._import_structure["other_rewards"]
    ),
)
def test_a_kind_of_trls_gives_trls_values(name: str):
    texts, ids = [THIRD, HALF, "<think>", HALF], [[1, 2], [1, 1, 1], [1] * 9, [3]]
    columns = {"solution": [r"$\frac{1}{3}$", r"$\frac{1}{2}$", "$2$", "none"]}
    params, logged = PARAMS.get(name, {}), Logged()
    of_trl = getattr(trl.rewards, name)
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    given = {"completions": messages, "completion_ids": ids, **columns}
    expected = of_trl(**params)(**given) if name.startswith("get_") else of_trl(**given, **params)
    rewards = RewardSet(parse_entries({"x": {"kind": f"trl.{name}", **params}}))
    chat = [[{"role": "user", "content": "?"}]] * 4
    for asked in ((), chat):
        output = rewards(["?"] * 4, texts, columns | context(ids, asked, None, logged))
        values = [
            v if ok else None for v, ok in zip(output.values[:, 0], output.valid[:, 0], strict=True)
        ]
        assert values == expected
    assert len(set(expected)) > 1
    if name in ("accuracy_reward", "reasoning_accuracy_reward"):
        assert logged.extra["x/gold_parsed"][0] != logged.extra["x/gold_parsed"][1]


def test_the_functions_in_the_docs_are_rewards_as_they_stand(tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "trl.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "my_trl_rewards.py"
    file.write_text(next(code for _, code in blocks if code.startswith("# my_trl_rewards.py")))
    registry.load_file(file)
    exec(next(code for _, code in blocks if "trl_reward(" in code), {})
    settings = yaml.safe_load(next(code for name, code in blocks if name == "yaml"))
    assert settings["reward_files"] == [file.name]
    entries = settings["rewards"] | {"made": {"kind": "my.overlong"}}
    logged = Logged()
    handed = context([[1] * 10, [1] * 20], (), None, logged)
    output = RewardSet(parse_entries(entries))(["", ""], ["one two", "three"], handed)
    assert output.values.tolist() == [[-0.5, 1.0, 0.0], [0.0, 1.0, 0.0]]
    assert output.score.tolist() == [0.75, 1.0]
    assert logged.metrics == {"short/longest": [20.0]}
    assert logged.extra == {"judge/first_word": ["one", "three"]}


def test_without_math_verify_the_setting_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trl.rewards.accuracy_rewards.is_math_verify_available", lambda: False)
    rewards = RewardSet(parse_entries({"x": {"kind": "trl.accuracy_reward"}}))
    with pytest.raises(RewardConfigError, match=r"rewards.x needs math-verify.*rlalign\[math\]"):
        rewards([""], ["1"], {"solution": ["1"]})
