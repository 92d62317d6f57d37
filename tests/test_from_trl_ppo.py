"""docs/from-trl-ppo.md: all that TRL 1.12 PPO took, its defaults, a script before and after."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from old_names import OURS, names, rows, settings_named
from pages import ROOT, block_named, page_named
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from rewards import embedded
from rlalign.algorithms.ppo import PPORun
from rlalign.config import load_config

PAGE = page_named("docs/from-trl-ppo.md")
TEXT = PAGE.read_text("utf-8")
# `dataclasses.fields` of trl 1.12.0 under transformers 5.23, and the signatures of its trainer.
OLD = json.loads((ROOT / "tests/data/trl_1_12_ppo_fields.json").read_text("utf-8"))
TRL = ROOT / "benchmarks/.trl-1.12.0"  # `make bench` installs it


def part(heading):
    return TEXT.split(f"\n## {heading}", 1)[1].split("\n## ")[0]


def first_cells(text):
    return {name for old, _ in rows(text) for name in names(old)}


def test_the_table_has_every_argument_of_ppoconfig_and_no_other():
    assert first_cells(part("Every argument")) == set(OLD["own"]) and len(OLD["own"]) == 33


def test_what_was_inherited_is_all_there():
    inherited = part("What `PPOConfig` had")
    table, rest = inherited.split("The others have no counterpart")
    listed = set.union(*(names(line.partition(":")[2]) for line in rest.splitlines() if line))
    assert first_cells(table) - {"TrainingArguments"} <= set(OLD["inherited"])
    assert first_cells(table) | listed >= set(OLD["inherited"])
    assert not listed - set(OLD["inherited"]) and not first_cells(table) & listed


def test_the_trainers_arguments_and_methods_are_all_there():
    told = first_cells(part("Before and after"))
    assert told >= set(OLD["trainer"]) | {"save_model", "generate_completions"}


def test_what_stands_beside_them_are_settings_of_ours():
    found = settings_named(TEXT)
    assert len(found) > 40 and found <= OURS, found - OURS


def test_trls_defaults_are_what_the_configuration_says(tmp_path, monkeypatch):
    file = tmp_path / "trl_defaults.yaml"
    file.write_text(block_named("trl_defaults.yaml", PAGE))
    config = load_config(PPORun, ["--config", str(file)])
    old = OLD["own"] | OLD["inherited"]
    ours = {
        "num_ppo_epochs": config.ppo.epochs,
        "num_mini_batches": config.ppo.minibatches,
        "learning_rate": config.ppo.lr,
        "response_length": config.sampling.max_new_tokens,
        "temperature": config.sampling.temperature,
        "kl_coef": config.kl.coef,
        "kl_estimator": config.kl.estimator,
        "cliprange": config.ppo.clip,
        "cliprange_value": config.ppo.value_clip,
        "vf_coef": config.ppo.vf_coef,
        "gamma": config.ppo.gamma,
        "lam": config.ppo.gae_lambda,
        "sft_model_path": config.model.name,
        "reward_model_path": config.rewards["liked"]["model"],
        "per_device_train_batch_size": config.train.samples,
        "lr_scheduler_type": config.optim.schedule,
        "adam_beta1": config.optim.betas[0],
        "adam_beta2": config.optim.betas[1],
        "adam_epsilon": config.optim.eps,
        "weight_decay": config.optim.weight_decay,
        "max_grad_norm": config.optim.max_grad_norm,
        "seed": config.train.seed,
    }
    assert ours == {name: old[name] for name in ours}
    said = yaml.safe_load(file.read_text())
    count = sum(len(section) for name, section in said.items() if name != "rewards")
    assert count + 2 == len(ours)  # betas are two


@pytest.fixture
def scripts_folder(tmp_path, monkeypatch):
    """The policy and the reward model that the two scripts find beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(embedded.path("glass-tiny"))
    tokenizer = AutoTokenizer.from_pretrained("my-model")
    scorer = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(scorer).save_pretrained("my-reward-model")
    tokenizer.save_pretrained("my-reward-model")
    for name in ("before.py", "after.py"):
        (tmp_path / name).write_text(block_named(name, PAGE), encoding="utf-8")
    return tmp_path


def ran(script, **environment):
    """What a script prints, on one core: beside other tests a second thread only waits."""
    cores = sorted(os.sched_getaffinity(0))
    core = {cores[os.getpid() % len(cores)]}
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_after_runs_as_it_is(scripts_folder):
    printed = ran("after.py").split()
    assert printed[-2] == "runs/liked/model" and float(printed[-1]) == float(printed[-1])
    written = (scripts_folder / "runs/liked/metrics.jsonl").read_text("utf-8").splitlines()
    last = json.loads(written[-1])
    assert last["iteration"] == 4 and {"reward/liked", "reward/short"} <= last.keys()


@pytest.mark.prove
@pytest.mark.skipif(not (TRL / ".installed").exists(), reason="`make bench` installs TRL 1.12")
def test_the_script_before_runs_under_trl_1_12(scripts_folder):
    path = os.pathsep.join([str(TRL), os.environ.get("PYTHONPATH", "")])
    ran("before.py", PYTHONPATH=path, TRL_EXPERIMENTAL_SILENCE="1")
    assert (scripts_folder / "out" / "model.safetensors").is_file()
