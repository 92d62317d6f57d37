"""Rewards that are set from the prompts' own columns, from the configuration to an update."""

import json

import builders
import oracle
import pytest
import torch
from small_run import SmallRun
from torch.testing import assert_close

from rewards.contract import RewardConfigError
from rlalign.config import ConfigError, from_mapping, load_config, resolved_yaml
from rlalign.evaluate import evaluate

PROMPTS = [{"prompt": "a", "letter": "c"}, {"prompt": "c b d", "letter": ["e", "d a"]}]
LETTER = {"kind": "lexical.contains", "words": {"column": "letter"}}


def test_one_step_learns_from_each_prompts_own_reward():
    trainer = builders.trainer(
        rewards=(), prompts=PROMPTS, rewards_={"own": LETTER}, ppo={"lr": 1e-3}
    )
    rollout = trainer.generate()
    scored = trainer.score(rollout)
    wanted = {"a": ["c"], "c b d": ["e", "d a"]}
    by_hand = [
        float(any(f" {phrase} " in f" {text} " for phrase in wanted[prompt]))
        for prompt, text in zip(rollout.prompts.texts, rollout.texts, strict=True)
    ]
    assert scored.score.tolist() == by_hand
    assert 0 < sum(by_hand) < len(by_hand) and set(rollout.prompts.texts) == set(wanted)
    assert_close(scored.token_rewards.sum(1), scored.score)
    before = builders.parameters(trainer.session.policy)
    stats = trainer.step(scored)
    after = builders.parameters(trainer.session.policy)
    assert stats["ppo/grad_norm"] > 0
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_each_prompt_is_steered_to_its_own_word():
    rows = [{"prompt": "a", "letter": "c"}, {"prompt": "c b d", "letter": "e"}]
    trainer = builders.trainer(
        rewards=(),
        prompts=rows,
        rewards_={"own": {**LETTER, "kind": "lexical.word_rate", "words": {"column": "letter"}}},
        train={"samples": 64},
        ppo={"lr": 3e-3, "epochs": 2},
        kl={"coef": 0.02},
    )

    def shares() -> torch.Tensor:
        """(prompts, letters): how much of the responses is c, and e."""
        texts = [" ".join(trainer.generate([row["prompt"]], 200).texts).split() for row in rows]
        return torch.tensor([[words.count(x) / len(words) for x in "ce"] for words in texts])

    before = shares()
    for _ in range(12):
        trainer.step(trainer.generate())
    gain = shares() - before
    assert gain[0, 0] > 0.15 and gain[1, 1] > 0.15
    assert gain[0, 1] < 0.05 and gain[1, 0] < 0.05


LACKS = "reward 'own' needs the column 'letter'; the data has: completion_ids, completions, prompts"


def refused(prompts, message, **sections):
    with pytest.raises(RewardConfigError) as caught:
        builders.session(rewards=(), prompts=prompts, rewards_={"own": LETTER}, **sections)
    assert str(caught.value) == message


def test_every_prompt_is_checked_before_a_model_is_there(monkeypatch):
    monkeypatch.setattr("rlalign.session.build_policy", lambda *_: pytest.fail("too late"))
    refused(list(oracle.PROMPTS), f"prompts: {LACKS}")
    wrong = (
        "rewards.own.words=None: input should be a valid list (from the column 'letter', which is "
        "empty there)"
    )
    refused([*PROMPTS, {"prompt": "b"}], f"row 3 of prompts: {wrong}")


@pytest.mark.parametrize("held_out", [0.0, 0.3, 0.6])
def test_a_wrong_value_is_placed_by_its_row_in_the_file_however_prompts_are_split(
    tmp_path, held_out
):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a", "letter": "c"}] * 6 + [{"prompt": "b", "letter": 7}]
    rows += [{"prompt": "c", "letter": "e"}] * 3
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    section = {"path": str(file), "eval_fraction": held_out}
    wrong = "rewards.own.words=7: input should be a valid list (from the column 'letter')"
    refused(None, f"row 7 of prompts.path={file}: {wrong}", prompts_=section)
    empty = tmp_path / "empty.jsonl"
    empty.write_text(
        '{"prompt": "a", "letter": ["c"]}\n{"prompt": "b", "letter": []}\n', encoding="utf-8"
    )
    refused(
        PROMPTS[:1],
        f"row 2 of prompts.eval_path={empty}: rewards.own.words=[]: list should have at least 1 "
        "item after validation, not 0 (from the column 'letter')",
        prompts_={"eval_path": str(empty)},
    )


def test_a_column_that_only_the_training_prompts_have_is_missed_in_the_others(tmp_path):
    file = tmp_path / "held_out.jsonl"
    file.write_text('{"prompt": "a"}\n', encoding="utf-8")
    refused(PROMPTS, f"prompts.eval_path={file}: {LACKS}", prompts_={"eval_path": str(file)})


def test_rows_of_samples_show_what_the_rewards_read_of_the_data():
    prompts = [{**row, "note": "not read"} for row in PROMPTS]
    made = builders.session(rewards=(), prompts=prompts, rewards_={"own": LETTER})
    shown = {row["prompt"]: row["columns"] for row in evaluate(made, 0.1).rows}
    assert shown == {row["prompt"]: {"letter": row["letter"]} for row in PROMPTS}
    without = builders.session(prompts=prompts)
    assert all("columns" not in row for row in evaluate(without, 0.1).rows)


# -- the configuration


def load(*argv):
    words = ["--rewards.x.kind=lexical.contains", *argv]
    return load_config(SmallRun, words).rewards["x"]


def test_the_command_line_and_the_saved_configuration_hold_a_column():
    column = {"column": "keywords"}
    for argv in (
        ["--rewards.x.words={column: keywords}"],
        ["--rewards.x.words={'column': 'keywords'}"],
        ["--rewards.x.words.column=keywords"],
        ["--rewards.x.words", "{column: keywords}"],
    ):
        assert load(*argv)["words"] == column
    run = load_config(
        SmallRun, ["--rewards.x.kind=lexical.contains", "--rewards.x.words={column: keywords}"]
    )
    assert "column: keywords" in resolved_yaml(run)
    assert from_mapping(SmallRun, run) == run
    # Text that only looks like a mapping stays text, where the setting is text.
    pattern = ["--rewards.x.kind=lexical.pattern", "--rewards.x.pattern={a}"]
    assert load_config(SmallRun, pattern).rewards["x"]["pattern"] == "{a}"


def test_parts_and_schedules_are_typed_as_their_settings_are():
    entry = load(
        "--rewards.x.kind=combine.min",
        "--rewards.x.parts.a={'kind': 'lexical.contains', 'words': 'rain'}",
        "--rewards.x.parts.b.kind=lexical.pattern",
        "--rewards.x.parts.b.pattern=2024",
        "--rewards.x.parts.b.threshold=2",
        "--rewards.x.parts.c.kind=lexical.contains",
        "--rewards.x.parts.c.words.column=keywords",
        "--rewards.x.weight={from: 0, to: 2, iterations: 20}",
        "--rewards.x.weight.to=3",
    )
    assert entry["parts"]["a"]["words"] == ["rain"]
    assert entry["parts"]["b"]["pattern"] == "2024" and entry["parts"]["b"]["threshold"] == 2
    assert entry["parts"]["c"]["words"] == {"column": "keywords"}
    assert entry["weight"] == {"from": 0, "to": 3, "iterations": 20}
    assert load("--rewards.x.words=a", "--rewards.x.weight=2")["weight"] == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rewards.x.kind=combine.min", "--rewards.x.parts.a.kind=lexical.contains",
          "--rewards.x.parts.a.words=[yes]"],
         "rewards.x.parts.a.words[0]=True is not text: YAML reads yes, no, on, off, true and false "
         "as booleans; put the word in quotes"),
        (["--rewards.x.kind=combine.min", "--rewards.x.parts.a.kind=lexical.contians"],
         "rewards.x.parts.a.kind='lexical.contians' is unknown; did you mean 'lexical.contains'?"),
        (["--rewards.x.words=a", "--rewards.x.weight={from: 0}"],
         "rewards.x.weight={'from': 0} must be a number, or hold from, to and iterations"),
    ],
)  # fmt: skip
def test_a_wrong_part_or_schedule_is_named_as_typed(argv, message):
    with pytest.raises(ConfigError) as caught:
        load(*argv)
    assert str(caught.value) == message
