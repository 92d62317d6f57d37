import json
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, RLOOConfig

from rlalign.algorithms.ppo import PPORun
from rlalign.config import ConfigError, from_mapping
from rlalign.settings.schema import settings
from rlalign.trl_trainers.settings import (
    RULES,
    group_size,
    mapping_table,
    prompts_needed,
    refuse,
    trainer_arguments,
    warnings,
)

DOCS = Path(__file__).parent.parent / "docs" / "trl.md"
BASE = {"train.samples": 32, "ppo.minibatches": 2, "model.dtype": "float32"}
# A value off the default for each setting, and of each that becomes an argument, which change.
CARRIED = {
    "model.gradient_checkpointing": (True, {"gradient_checkpointing"}),
    "sampling.max_new_tokens": (9, {"max_completion_length"}),
    "sampling.temperature": (0.7, {"temperature"}),
    "sampling.samples_per_prompt": (4, {"num_generations"}),
    "kl.coef": (0.3, {"beta"}),
    "optim.betas": ([0.8, 0.99], {"adam_beta1", "adam_beta2"}),
    "optim.eps": (1e-6, {"adam_epsilon"}),
    "optim.weight_decay": (0.1, {"weight_decay"}),
    "optim.max_grad_norm": (2.0, {"max_grad_norm"}),
    "optim.micro_batch_tokens": (
        200,
        {"per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation"},
    ),
    "train.iterations": (7, {"max_steps"}),
    "train.samples": (64, {"per_device_train_batch_size"}),
    "train.seed": (3, {"seed"}),
    "ppo.epochs": (5, {"num_iterations", "max_steps", "logging_steps"}),
    "ppo.minibatches": (
        4,
        {"steps_per_generation", "max_steps", "logging_steps", "per_device_train_batch_size"},
    ),
    "ppo.lr": (3e-5, {"learning_rate"}),
    "ppo.clip": (0.3, {"epsilon"}),
    "ppo.dual_clip": (3.0, {"delta"}),
    "ppo.entropy_coef": (0.01, {"entropy_coef"}),
    "trl.num_generations": (16, {"num_generations"}),
    "trl.scale_rewards": ("group", {"scale_rewards"}),
}
OTHERS = {
    "sampling.stop": ["\n"],
    "sampling.batch_size": 3,
    "sampling.engine": "vllm",
    "vllm.mode": "server",
    "vllm.server_base_url": "http://elsewhere:8000",
    "vllm.server_timeout": 9.0,
    "vllm.group_port": 7,
    "vllm.tensor_parallel_size": 2,
    "vllm.gpu_memory_utilization": 0.5,
    "vllm.max_model_length": 99,
    "vllm.enable_sleep_mode": True,
    "vllm.model_impl": "vllm",
    "ppo.sampler_correction": 2.0,
    "score.normalize": True,
    "kl.target": 2.0,
    "kl.horizon": 5,
    "kl.estimator": "k3",
    "kl.placement": "score",
    "run.resume": "auto",
    "run.allow_elastic": True,
    "optim.max_skipped": 3,
    "ppo.value_lr": 1e-3,
    "ppo.value_clip": None,
    "ppo.vf_coef": 0.5,
    "ppo.critic_warmup": 2,
    "ppo.gae_lambda": 0.9,
    "ppo.gamma": 0.99,
    "ppo.advantage_norm": "none",
    "ppo.target_kl": 0.1,
    "ppo.dual_clip": 3.0,
    "ppo.entropy_coef": 0.01,
    "trl.scale_rewards": "group",
    "score.credit": "last",
    "audit.window": 3,
    "audit.top": 1,
    "audit.length_corr": 0.5,
    "audit.length_factor": 3.0,
    "audit.phrase_share": 0.5,
    "audit.opening_share": 0.5,
    "audit.duplicates": 0.5,
    "audit.distinct2_lost": 0.5,
    "audit.traded_drop": 1.0,
    "ppo.divergence": "js",
    "ppo.alpha": 0.3,
    "ppo.z_memory": 100,
    "target.samples": 512,
    "target.samples_per_prompt": 8,
    "target.update": "none",
    "target.rate": 0.5,
    "audit.judge_drop": 1.0,
    "audit.kl_per_token": 2.0,
    "audit.judges": ["x"],
    "audit.stop": ["length-runs"],
}


def configured(**changes: Any) -> PPORun:
    return from_mapping(PPORun, {}, BASE | changes, rewards_given=True)


def arguments(method: str, world: int = 1, **changes: Any) -> dict[str, Any]:
    return trainer_arguments(configured(**changes), method, world, 10, torch.device("cpu"))


def test_every_setting_has_a_rule_and_the_page_shows_them():
    paths = {setting.path for setting in settings(PPORun.model_json_schema())}
    assert {rule.setting for rule in RULES} == paths and len(RULES) == len(paths)
    assert mapping_table() in DOCS.read_text(encoding="utf-8"), (
        "put the output of `python -m rlalign.trl_trainers.settings` into docs/trl.md"
    )


@pytest.mark.parametrize("setting", CARRIED)
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_setting_that_is_carried_over_changes_its_arguments_and_no_others(setting, method):
    value, expected = CARRIED[setting]
    before, after = arguments(method), arguments(method, **{setting: value})
    changed = {name for name in before if before[name] != after[name]}
    rule = next(rule for rule in RULES if rule.setting == setting)
    named = getattr(rule, method)
    assert changed == (expected if named else set())
    if named:
        assert changed & set(named.split(", "))


@pytest.mark.parametrize("setting", OTHERS)
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_setting_without_counterpart_is_refused_or_warned_of_by_name(setting, method):
    changes = {setting: OTHERS[setting]}
    if setting == "run.resume":
        changes["run.name"] = "a"
    config = configured(**changes)
    rule = next(rule for rule in RULES if rule.setting == setting)
    if rule.refused:
        with pytest.raises(ConfigError, match=rf"^{setting}=.* cannot be honoured"):
            refuse(config)
        return
    refuse(config)
    told = [line for line in warnings(config, method) if line.startswith(setting)]
    has_counterpart = bool(getattr(rule, method))
    assert bool(told) == (not has_counterpart or setting == "trl.scale_rewards")


def test_settings_at_their_defaults_are_not_warned_of():
    lines = warnings(configured(**{"checkpoint.every": 0, "eval.every": 0}), "rloo")
    # The base's own three settings are all carried over.
    assert lines == []


def test_the_three_tables_of_this_test_cover_what_the_rules_say():
    carried = {r.setting for r in RULES if (r.grpo or r.rloo) and r.setting in CARRIED}
    nowhere = {r.setting for r in RULES if "" in (r.grpo, r.rloo)}
    assert carried == set(CARRIED)
    assert nowhere - {f"checkpoint.{n}" for n in ("every", "keep", "best")} == set(OTHERS)


@pytest.mark.parametrize("config_class, method", [(GRPOConfig, "grpo"), (RLOOConfig, "rloo")])
@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_trl_takes_the_arguments_and_splits_an_iteration_as_ppo_does(
    config_class, method, tokens, tmp_path
):
    given = arguments(method, **{"optim.micro_batch_tokens": tokens})
    made = config_class(output_dir=str(tmp_path), **given)
    assert made.generation_batch_size == 32
    rows = made.per_device_train_batch_size * made.gradient_accumulation_steps
    assert rows == 16  # an optimiser step's share
    assert rows * made.steps_per_generation // made.gradient_accumulation_steps == 32
    assert made.per_device_train_batch_size == {1: 1, 100: 2, 10_000: 16}[tokens]


def test_processes_share_the_rows():
    assert arguments("rloo", world=2)["per_device_train_batch_size"] == 8


def test_groups_divide_an_iteration():
    assert group_size(configured()) == 8
    assert group_size(configured(**{"train.samples": 12})) == 6
    assert group_size(configured(**{"sampling.samples_per_prompt": 4})) == 4
    named = {"sampling.samples_per_prompt": 4, "trl.num_generations": 2}
    assert group_size(configured(**named)) == 2
    assert prompts_needed(configured(**{"train.iterations": 3})) == 3 * 4
    with pytest.raises(ConfigError, match=r"^trl.num_generations=5 does not divide .*=32"):
        refuse(configured(**{"trl.num_generations": 5}))
    with pytest.raises(ConfigError, match="valid: 11, 121"):
        group_size(configured(**{"train.samples": 121}))


def test_a_run_refuses_before_a_model_is_loaded(tmp_path):
    from rlalign.trl_trainers.run import main

    file = tmp_path / "c.yaml"
    file.write_text(json.dumps({"model": {"name": "/nowhere"}, "kl": {"target": 1.0}}))
    entry = ["--rewards.a.kind=lexical.contains", "--rewards.a.words=she"]
    assert main("grpo", ["--config", str(file), *entry]) == 2
