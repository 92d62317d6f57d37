"""Our rewards in TRL's real trainers, TRL's functions here, and one YAML under three methods."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rewards import RewardError, RewardSet, embedded, parse_entries, registry
from rlalign import loop, train, trl_reward_funcs
from rlalign.algorithms.ppo import PPORun
from rlalign.config import from_mapping
from rlalign.trl_trainers import run as trl_run

TRAINERS = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
REWARDS = {
    "rate": {"kind": "lexical.word_rate", "words": "the", "scale": 9, "clip": [0, 2], "weight": 3},
    "own": {"kind": "lexical.contains", "words": {"column": "wanted"}, "threshold": 1},
    "both": {
        "kind": "combine.all",
        "parts": {
            "brief": {"kind": "structure.word_count", "max": 4, "slack": 3},
            "varied": {"kind": "lexical.diversity", "threshold": 0.5},
        },
    },
    "judge": {"kind": "lexical.diversity", "weight": 0},
}
ROWS = [
    {"prompt": "Alice was", "wanted": ["a", "the"]},
    {"prompt": "The cat", "wanted": ["she"]},
    {"prompt": "Once", "wanted": ["in", "of"]},
    {"prompt": "A little", "wanted": ["and", "it"]},
]


@pytest.fixture(scope="module", params=["grpo", "rloo"])
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def run_trl(
    method: str, folder: Path, funcs: list[Any], weights: list[float], *, chat: bool = False
) -> list[dict[str, float]]:
    """What TRL's trainer logs in two steps on the tiny model."""
    config_class, trainer_class = TRAINERS[method]
    directory = str(embedded.path("glass-tiny"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TEMPLATE
    rows = [dict(row) for row in ROWS]
    if chat:
        for row in rows:
            row["prompt"] = [
                {"role": "system", "content": "she"},
                {"role": "user", "content": row["prompt"]},
            ]
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(directory),
        reward_funcs=funcs,
        args=config_class(
            output_dir=str(folder),
            reward_weights=weights,
            max_steps=2,
            per_device_train_batch_size=8,
            num_generations=2,
            max_completion_length=8,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=1,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "reward" in row]


def shaped_means(
    reward_set: RewardSet, seen: Mapping[str, Any]
) -> tuple[dict[str, float], float, Any]:
    output = reward_set(seen["prompts"], seen["texts"], {"wanted": seen["wanted"]})
    means = {
        entry.name: np.mean([entry.shaped(v) for v in output.values[:, i][output.valid[:, i]]])
        for i, entry in enumerate(reward_set.entries)
    }
    return means, float(output.score.mean()), output


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_trl_reports_the_scores_that_ppo_would_learn_from(
    method: str, tmp_path: Path, chat: bool
) -> None:
    batches = []

    def spy(prompts, completions, wanted, **kwargs):
        texts = [c[0]["content"] if chat else c for c in completions]
        asked = [p[-1]["content"] if chat else p for p in prompts]
        batches.append({"prompts": asked, "texts": texts, "wanted": wanted})
        return [0.0] * len(texts)

    funcs, weights = trl_reward_funcs({"rewards": REWARDS})
    assert [f.__name__ for f in funcs] == list(REWARDS) and weights == [3, 1, 1, 0]
    logs = run_trl(method, tmp_path, [*funcs, spy], [*weights, 0.0], chat=chat)
    assert len(logs) == len(batches) == 2
    for log, seen in zip(logs, batches, strict=True):
        means, score, output = shaped_means(RewardSet(parse_entries(REWARDS)), seen)
        assert log["reward"] == pytest.approx(score, abs=1e-5)
        for name, mean in means.items():
            assert log[f"rewards/{name}/mean"] == pytest.approx(mean, abs=1e-5)
        assert output.score.std() > 0.1  # a batch of equal scores would hide a mix-up


FILE = """
import asyncio

def told(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **kwargs):
    contents = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    log_extra("letters", [len(text) for text in contents])
    log_metric("steps", trainer_state.global_step)
    return [len(t) + 10 * len(i) + 100 * trainer_state.global_step + len(kwargs["wanted"][0])
            for t, i in zip(contents, completion_ids)]

async def slow(completions, **kwargs):
    await asyncio.sleep(0)
    return [None if len(str(c)) % 2 else len(str(c)) / 8 for c in completions]
"""


@pytest.fixture
def told_file(tmp_path: Path) -> Path:
    file = tmp_path / "for_trl.py"
    file.write_text(FILE)
    registry.load_file(file)
    return file


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_a_function_written_for_trl_gives_trl_the_same_numbers_through_us(
    told_file: Path, method: str, tmp_path: Path, chat: bool
) -> None:
    raw = [registry.get(kind).target.__wrapped__ for kind in ("told", "slow")]
    entries = {"by_us": {"kind": "told"}, "awaited": {"kind": "slow"}}
    ours, _ = trl_reward_funcs({"rewards": entries})
    for log in run_trl(method, tmp_path / "out", [*raw, *ours], [1.0] * 4, chat=chat):
        assert log["rewards/by_us/mean"] == log["rewards/told/mean"] != 0
        assert log["rewards/by_us/std"] == log["rewards/told/std"] != 0
        assert log["rewards/awaited/mean"] == log["rewards/slow/mean"] != 0
        assert log["by_us/steps"] == log["steps"]


def written(tmp_path: Path, **changes: Any) -> Path:
    data = tmp_path / "prompts.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    settings = {
        "model": {"name": "glass-tiny", "dtype": "float32", "lora": {"r": 4}},
        "prompts": {"path": str(data), "eval_fraction": 0.25},
        "sampling": {"max_new_tokens": 6, "samples_per_prompt": 2},
        "rewards": REWARDS,
        "kl": {"coef": 0.05},
        "ppo": {"minibatches": 2, "lr": 5e-3, "epochs": 2},
        "optim": {"schedule": "linear", "final_lr_fraction": 0.5, "warmup_iterations": 1},
        "train": {"iterations": 2, "samples": 8, "threads": 1},
        "eval": {"every": 10, "samples": 6},
        "run": {"dir": str(tmp_path / "runs")},
        "trackers": [],
    } | changes
    file = tmp_path / "all.yaml"
    file.write_text(json.dumps(settings))  # JSON is YAML
    return file


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the same YAML's runs under PPO, GRPO and RLOO."""
    file = written(tmp_path_factory.mktemp("three"))
    config = from_mapping(PPORun, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_plots", lambda *_: None)  # they take seconds
        found = {"ppo": train(file, quiet=True).folder}
        found["grpo"] = trl_run.train(config, "grpo", quiet=True).folder
        patch.setattr(trl_run, "draw_plots", lambda *_: None)
        found["rloo"] = trl_run.train(config, "rloo", quiet=True).folder
    return found


def test_one_yaml_gives_comparable_runs_under_ppo_grpo_and_rloo(three: dict[str, Path]) -> None:
    metrics = {name: lines(folder / "metrics.jsonl") for name, folder in three.items()}
    shared = {"iteration", "samples", "score", "score/std", "length", "finished", "kl/ref"}
    shared |= {"kl/coef", "entropy", "lr", "optimizer_steps", "tokens_per_second", "eval/score"}
    shared |= {f"reward/{name}" for name in REWARDS} | {f"reward/{n}/valid" for n in REWARDS}
    reference = {k: v for k, v in metrics["ppo"][0].items() if k.startswith("eval/")}
    for name, rows in metrics.items():
        assert [row["iteration"] for row in rows] == [0, 1, 2], name
        assert shared <= rows[-1].keys(), (name, shared - rows[-1].keys())
        assert {k: v for k, v in rows[0].items() if k.startswith("eval/")} == reference
        assert [row["samples"] for row in rows] == [0, 8, 16]
        assert [row["lr"] for row in rows[1:]] == [2.5e-3, 5e-3]
        assert rows[-1]["optimizer_steps"] == 8  # 2 iterations x 2 epochs x 2 minibatches
        # An estimate (k1) of a few samples, so of either sign; 0 if nothing was learnt and saved.
        assert abs(rows[-1]["eval/kl"]) > 0.01, name


def test_the_three_methods_meet_the_same_prompts(three: dict[str, Path]) -> None:
    met = {}
    for name, folder in three.items():
        rows = [r for r in lines(folder / "samples.jsonl") if r["split"] == "train"]
        met[name] = [sorted(r["prompt"] for r in rows if r["iteration"] == i) for i in (1, 2)]
    assert met["grpo"] == met["rloo"] == met["ppo"]
    assert len(set(met["ppo"][0])) > 1


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_a_trl_run_writes_down_what_its_trainer_saw(three: dict[str, Path], name: str) -> None:
    samples = [r for r in lines(three[name] / "samples.jsonl") if r["split"] == "train"]
    wanted = {row["prompt"]: row["wanted"] for row in ROWS}
    for row in lines(three[name] / "metrics.jsonl")[1:]:
        mine = [s for s in samples if s["iteration"] == row["iteration"]]
        seen = {
            "prompts": [s["prompt"] for s in mine],
            "texts": [s["response"] for s in mine],
            "wanted": [wanted[s["prompt"]] for s in mine],
        }
        means, score, output = shaped_means(RewardSet(parse_entries(REWARDS)), seen)
        assert row["score"] == pytest.approx(score) == pytest.approx(row["trl/reward"], abs=1e-5)
        for i, reward in enumerate(REWARDS):
            assert row[f"reward/{reward}"] == pytest.approx(output.values[:, i].mean())
            assert row[f"trl/rewards/{reward}/mean"] == pytest.approx(means[reward], abs=1e-5)
    record = json.loads((three[name] / "run.json").read_text())
    assert (record["status"], record["method"]) == ("done", name)
    assert (three["grpo"] / "plots" / "score.png").is_file()
    report = (three[name] / "report.html").read_text(encoding="utf-8")
    assert "Before is the reference" in report and "P<sub>T</sub>(y|x)" in report
    card = (three[name] / "model" / "README.md").read_text()
    assert f"trained with {name.upper()}" in card


def test_a_saved_model_measures_as_the_run_did(three: dict[str, Path]) -> None:
    from rlalign.measure import measure

    last = lines(three["rloo"] / "metrics.jsonl")[-1]
    measured = measure(str(three["rloo"]), ["--eval.target_samples=64"])
    assert measured["method"] == "rloo"
    # Other samples, of the same policy: within four standard errors of both.
    for key in ("score", "kl"):
        error = math.hypot(measured["policy"][f"eval/{key}_se"], last[f"eval/{key}_se"])
        assert abs(measured["policy"][f"eval/{key}"] - last[f"eval/{key}"]) <= 4 * error


def test_what_trl_functions_log_stands_in_our_files(
    told_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (loop, trl_run):
        monkeypatch.setattr(module, "draw_plots", lambda *_: None)  # they take seconds
    entries = {"mine": {"kind": "told"}, "late": {"kind": "slow"}}
    file = written(tmp_path, rewards=entries, eval={"every": 0})
    config = from_mapping(PPORun, file)
    folders = [train(file, quiet=True).folder, trl_run.train(config, "grpo", quiet=True).folder]
    for folder in folders:
        rows, samples = lines(folder / "metrics.jsonl"), lines(folder / "samples.jsonl")
        assert [row["reward/mine/log/steps"] for row in rows] == [0, 4]
        assert all(s["mine/letters"] == len(s["response"]) for s in samples) and samples
        for s in samples:
            steps = 4 * (s["iteration"] - 1)
            value = len(s["response"]) + 10 * s["length"] + 100 * steps
            assert s["rewards"]["mine"] in (value + 1, value + 2)
            letters = len(s["response"])
            assert s["rewards"]["late"] == (None if letters % 2 else letters / 8)


def test_a_failing_reward_skips_or_stops_the_trainer(tmp_path: Path) -> None:
    @registry.reward("own.fails")
    def fails(completions: list[str]) -> list[float]:
        if any("e" in text for text in completions):
            raise ValueError("an e")
        return [1.0] * len(completions)

    texts = ["a", "b", "c", "d", "e"]
    skipping, _ = trl_reward_funcs({"rewards": {"x": {"kind": "own.fails", "on_error": "skip"}}})
    assert skipping[0](prompts=texts, completions=texts) == [1.0, 1.0, 1.0, 1.0, None]
    stopping, _ = trl_reward_funcs({"rewards": {"x": {"kind": "own.fails"}}})
    with pytest.raises(RewardError, match=r"reward 'x' \(own.fails, .*ValueError: an e"):
        run_trl("rloo", tmp_path, stopping, [1.0])
