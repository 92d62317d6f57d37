"""A resume under other circumstances than the settings' says which, by name."""

import os
import subprocess
import sys
from pathlib import Path

import exact_runs
import hashes
import pytest
import torch
from exact_runs import MOMENT

from rlalign.checkpoints.fingerprint import differences, hash_of_prompts, hash_of_weights
from rlalign.prompts import PromptSet

ROOT = Path(__file__).resolve().parents[1]
SAID = "resumed under other circumstances than before: "


def test_a_changed_value_or_name_or_shape_changes_the_hash_of_weights():
    weights = {"a": torch.arange(10_000.0).reshape(100, 100), "b": torch.ones(3)}
    hashed = hash_of_weights(weights)
    assert hash_of_weights(dict(reversed(weights.items()))) == hashed
    others = [
        {"a": weights["a"] + 1e-3, "b": weights["b"]},
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"].reshape(50, 200), "b": weights["b"]},
        {"a": weights["a"].double(), "b": weights["b"]},
        {"a": weights["a"].bfloat16(), "b": weights["b"]},
    ]
    assert len({hashed, *map(hash_of_weights, others)}) == 6


def test_prompts_are_known_by_their_tokens_columns_and_order():
    def prompts(ids: list[list[int]], topics: list[str]) -> PromptSet:
        return PromptSet(ids, ["x"] * len(ids), {"topic": topics}, 0, "prompts.path=x", [1, 2])

    made = [prompts([[1], [2]], ["a", "b"]), prompts([[2], [1]], ["a", "b"])]
    made += [prompts([[1], [2]], ["b", "a"]), prompts([[1], [2, 3]], ["a", "b"])]
    assert len({hash_of_prompts(each) for each in made}) == 4
    assert hash_of_prompts(*made[:2]) != hash_of_prompts(*reversed(made[:2]))


def test_each_difference_is_told_and_an_older_checkpoint_is_no_difference():
    now = {"base": "1", "base_dtype": "float32", "prompts": "2", "reward_files": {"a.py": "3"}}
    now |= {"torch": "2.13.0", "threads": 2, "device": "cpu (AVX2)"}
    assert differences(now, now) == differences({}, now) == []
    assert differences({**now, "threads": 1, "torch": "2.12.0"}, now) == [
        "torch: 2.13.0 in place of 2.12.0",
        "threads: 2 in place of 1",
    ]
    assert differences({**now, "reward_files": {"b.py": "3", "a.py": "4"}}, now) == []
    assert differences({**now, "reward_files": {"a.py": "4"}}, now) == [
        "a.py is not the file that it was"
    ]
    (line,) = differences({**now, "base": "0", "base_dtype": "bfloat16"}, now)
    assert line == "the base model is in float32 in place of bfloat16"


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    lines = capfd.readouterr().err.splitlines()
    return [line.removeprefix(SAID) for line in lines if line.startswith(SAID)]


def test_adapters_are_refused_by_another_base_model(tmp_path):
    exact_runs.killed(tmp_path, "ppo-lora", 2)
    (message,) = exact_runs.refusals(tmp_path, "ppo-lora", base=1)
    assert message.startswith(f"3 {tmp_path}/a/checkpoints/step-000002 holds adapters of another ")
    assert "model.name=oracle" in message
    assert {path.name for path in (tmp_path / "a/checkpoints").glob("step-*")} == {
        "step-000001", "step-000002"
    }  # fmt: skip


def test_what_is_not_as_it_was_is_told_at_a_resume(tmp_path, capfd, monkeypatch):
    exact_runs.killed(tmp_path, "reinforce", 2)
    assert said(capfd) == []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # a forked process cannot have them
    exact_runs.killed(tmp_path, "reinforce", 3, base=1, prompts=("b", "c b d"))
    assert said(capfd) == [
        "the base model has other weights",
        "the prompts are others, so their order is another one too",
        "threads: 2 in place of 1",
    ]


REWARD = """
from rewards import reward

@reward("mine.hit", example={})
def hit(completions: list[str]) -> list[float]:
    return [float("d a" in text) for text in completions]
"""


def test_a_comment_in_a_reward_file_leaves_the_fitted_lambdas(tmp_path, capfd):
    file = tmp_path / "mine.py"
    file.write_text(REWARD, encoding="utf-8")
    wish = {"hit": MOMENT["hit"] | {"kind": "mine.hit"}}
    del wish["hit"]["words"]
    sections = {"reward_files": [str(file)], "rewards": wish}
    whole = exact_runs.whole(tmp_path / "whole", "importance", **sections)
    exact_runs.killed(tmp_path, "importance", 2, **sections)
    file.write_text(REWARD + "# a comment\n", encoding="utf-8")
    run = exact_runs.whole(tmp_path, "importance", **sections)
    assert hashes.metrics(run) == hashes.metrics(whole)
    told = capfd.readouterr().err
    assert f"{SAID}{file} is not the file that it was" in told
    assert "the lambdas that were fitted to them are kept" in told


def test_another_seed_of_pythons_hashes_changes_nothing(tmp_path):
    """Nothing depends on the order of a set; through the command line, in processes of its own."""
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {name: glass-tiny, dtype: float32, lora: {r: 2}}\n"
        "rewards:\n"
        "  rain: {kind: lexical.contains, words: [rain, sea, the, and]}\n"
        "  vary: {kind: lexical.diversity}\n"
        "sampling: {max_new_tokens: 6, samples_per_prompt: 2}\n"
        "train: {iterations: 2, samples: 8, threads: 1}\n"
        "eval: {every: 2, samples: 4}\n"
        "trackers: []\n",
        encoding="utf-8",
    )
    runs = []
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "rlalign", "reinforce", "--config", str(config)]
        command += ["--run.name=a", f"--run.dir={tmp_path / seed}"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        runs.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL))
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    assert hashes.of_run(tmp_path / "1" / "a") == hashes.of_run(tmp_path / "2" / "a")
