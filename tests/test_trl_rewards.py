"""Our rewards as functions for TRL's trainers, one by one, and TRL's functions under ours."""

from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, TrainerState

from rewards import RewardConfigError, RewardError, embedded, registry
from rlalign import trl_reward_funcs
from rlalign.algorithms.ppo import PPORun
from rlalign.config import from_mapping
from rlalign.guard.whereabouts import HERE
from rlalign.session import Session

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def test_score_clip_and_the_eos_penalty_are_one_more_function() -> None:
    score = {"clip": [-1, 1], "missing_eos_penalty": 0.5}
    rate = {"kind": "lexical.word_rate", "words": "the", "scale": 9, "clip": [0, 2], "weight": 3}
    entries = {"rate": rate, "flat": {"kind": "lexical.contains", "words": "zz"}}
    config = {"model": {"name": "glass-tiny"}, "rewards": entries, "score": score}
    funcs, weights = trl_reward_funcs(config)
    assert [f.__name__ for f in funcs] == ["rate", "flat", "clip_and_eos"]
    eos = AutoTokenizer.from_pretrained(embedded.path("glass-tiny")).eos_token_id
    given = {
        "prompts": [""] * 3,
        "completions": ["the the", "cat", "the cat"],
        "completion_ids": [[5, eos], [5, eos], [5, 6]],
    }
    totals = (np.array(weights) @ [f(**given) for f in funcs]).tolist()
    # 3 clip(9 x rate) is 6, 0 and 6; the last one has no EOS.
    assert totals == [1.0, 0.0, 0.5]
    with pytest.raises(RewardError, match="missing_eos_penalty needs completion_ids"):
        funcs[2](prompts=[""], completions=["a"])


def test_a_weight_that_moves_needs_to_know_what_an_iteration_is() -> None:
    ramp = {"from": 0.0, "to": 2.0, "iterations": 4}
    config = {"rewards": {"she": {"kind": "lexical.contains", "words": "she", "weight": ramp}}}
    with pytest.raises(RewardConfigError, match=r"rewards.she.weight=.*steps_per_iteration=N"):
        trl_reward_funcs(config)
    (function,), weights = trl_reward_funcs(config, steps_per_iteration=3)
    assert weights == [1.0]
    given = {"prompts": [""], "completions": ["she"], "completion_ids": [[1]]}
    values = [
        function(**given, trainer_state=TrainerState(global_step=step))[0]
        for step in (0, 2, 3, 6, 100)
    ]
    assert values == [0.0, 0.0, 0.5, 1.0, 2.0]
    with pytest.raises(RewardError, match="had no trainer_state"):
        function(**given)


def test_the_run_says_which_reward_it_waits_for() -> None:
    """So that one which hangs under TRL is named, too."""
    seen = []

    @registry.reward("own.looks")
    def looks(completions: list[str]) -> list[float]:
        seen.append(str(HERE))
        return [0.0] * len(completions)

    (function,), _ = trl_reward_funcs({"rewards": {"eye": {"kind": "own.looks"}}})
    function(prompts=["", ""], completions=["she", "he"])
    assert "reward 'eye' (own.looks, " in seen[0] and "sample 0: 'she'" in seen[0]
    assert "eye" not in str(HERE)


def test_a_batch_is_scored_once_for_all_functions_and_again_when_asked_again() -> None:
    calls = []

    @registry.reward("own.counts", cache=False)
    def counts(completions: list[str]) -> list[float]:
        calls.append(list(completions))
        return [0.0] * len(completions)

    entries = {"a": {"kind": "own.counts"}, "b": {"kind": "lexical.contains", "words": "she"}}
    funcs, _ = trl_reward_funcs({"rewards": entries})
    first, second = ["she"], ["he"]
    for completions in (first, second):
        for function in funcs:
            function(prompts=[""], completions=completions)
    assert calls == [["she"], ["he"]]
    assert funcs[1](prompts=[""], completions=first) == [1.0]
    funcs[0](prompts=[""], completions=first)
    funcs[0](prompts=[""], completions=first)
    assert len(calls) == 4


def test_ppo_hands_messages_to_trl_functions_and_text_to_all_others() -> None:
    seen: dict[str, Any] = {}

    def for_trl(prompts, completions, **kwargs):
        seen["trl"] = (prompts[0], completions[0])
        return [0.0] * len(prompts)

    def plain(prompts, completions):
        seen["plain"] = (prompts[0], completions[0])
        return [0.0] * len(prompts)

    config = from_mapping(
        PPORun,
        {"model": {"name": "glass-tiny", "dtype": "float32"}, "train": {"threads": 1}},
        rewards_given=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(embedded.path("glass-tiny"))
    tokenizer.chat_template = TEMPLATE
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]
    Session(config, tokenizer=tokenizer, prompts=[{"prompt": chat}] * 2, rewards=[for_trl, plain])
    first = " The ship left the harbour at dawn, and she watched it go."
    assert seen["trl"] == (chat, [{"role": "assistant", "content": first}])
    assert seen["plain"] == ("Who?", first)


@pytest.mark.parametrize(("wish", "value"), [("moment", 0.5), ("hard", True)])
def test_a_moment_is_refused_where_nobody_would_fit_it(wish, value):
    said = {"kind": "lexical.contains", "words": ["rain"], wish: value}
    with pytest.raises(RewardConfigError, match=rf"rewards.x.{wish} is fitted by this project"):
        trl_reward_funcs({"rewards": {"x": said}})
