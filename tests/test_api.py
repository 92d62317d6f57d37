"""`train` and `open_trainer` take what is at hand, and leave the libraries as they were."""

from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from rlalign import ConfigError, open_trainer

SETTINGS = {
    "model": {"dtype": "float32"},
    "sampling": {"max_new_tokens": 4},
    "train": {"samples": 4},
    "ppo": {"minibatches": 1},
}
PROMPTS = ["Alice saw a", "Alice saw the"]


def constant(completions: list[str]) -> list[float]:
    return [1.0 for _ in completions]


@pytest.mark.parametrize("overrides", [{"ppo.lr": 3e-5}, ["--ppo.lr=3e-5"], ["--ppo.lr", "3e-5"]])
def test_a_models_name_and_overrides_in_either_form_meet(overrides):
    trainer = open_trainer(
        SETTINGS, model="glass-tiny", rewards=[constant], prompts=PROMPTS, overrides=overrides
    )
    config = trainer.session.config
    assert config.model.name == "glass-tiny" and config.ppo.lr == 3e-5


def test_a_value_that_is_no_plain_one_is_refused_rather_than_spelt_out():
    with pytest.raises(ConfigError, match=r"run\.dir is a PosixPath; use text, numbers"):
        open_trainer(SETTINGS, overrides={"run.dir": Path("x")})


@pytest.mark.parametrize("are_on", [True, False])
def test_progress_bars_are_off_within_and_as_before_afterwards(are_on, capfd):
    before = transformers_logging.is_progress_bar_enabled()
    switch = {
        True: transformers_logging.enable_progress_bar,
        False: transformers_logging.disable_progress_bar,
    }
    try:
        switch[are_on]()
        open_trainer(SETTINGS, model="glass-tiny", rewards=[constant], prompts=PROMPTS)
        assert transformers_logging.is_progress_bar_enabled() is are_on
    finally:
        switch[before]()
    assert "Loading weights" not in capfd.readouterr().err


def test_a_loop_of_ones_own_needs_no_rewards():
    trainer = open_trainer(SETTINGS, model="glass-tiny", prompts=PROMPTS)
    rollout = trainer.generate(["Alice saw a"], n=4)
    stats = trainer.step(rollout, scores=[1.0, 0.0, 0.0, 2.0])
    assert trainer.iteration == 1 and len(rollout.texts) == 4
    # The policy is its reference; how a token was read may show in the last bits of float32.
    assert abs(stats["kl/ref"]) < 1e-5
