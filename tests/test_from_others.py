"""docs/from-trlx.md and docs/from-rl4lms.md: every old setting is there, and ours exist."""

import re

import pytest
import yaml
from old_names import OURS, names, rows, settings_named
from pages import ROOT, block_named, blocks, page_named
from test_from_trl_ppo import ran

import rewards
from rewards import embedded
from rlalign.config import load_config
from rlalign.methods import METHODS

TRLX, RL4LMS = page_named("docs/from-trlx.md"), page_named("docs/from-rl4lms.md")
# Fields of the dataclasses and parameters in the sources of the two, at their last commits.
OLD = yaml.safe_load((ROOT / "tests/data/old_settings.yaml").read_text("utf-8"))


def old(page):
    return {name for first, _ in rows(page.read_text("utf-8")) for name in names(first)}


@pytest.mark.parametrize(("page", "name"), [(TRLX, "trlx"), (RL4LMS, "rl4lms")])
def test_every_old_setting_is_in_a_table(page, name):
    assert len(OLD[name]) > 40 and not set(OLD[name]) - old(page)


@pytest.mark.parametrize("page", [TRLX, RL4LMS])
def test_what_stands_beside_them_are_settings_of_ours(page):
    found = settings_named(page.read_text("utf-8"))
    assert len(found) > 20 and found <= OURS, found - OURS


def test_the_rewards_named_beside_rl4lms_are_ours():
    table = RL4LMS.read_text("utf-8").split("\n## Rewards", 1)[1]
    kinds = {name for _, new in rows(table) for name in names(new)}
    assert len(kinds) > 4 and kinds <= set(rewards.kinds())


def leaves(value, path=""):
    """Dotted paths of a nested mapping; a list counts as one value."""
    if isinstance(value, dict) and value and path not in ("reward_fn.args", "datapool.args"):
        return [
            leaf for key, item in value.items() for leaf in leaves(item, f"{path}.{key}".strip("."))
        ]
    return [path]


def test_each_setting_of_the_file_that_is_taken_apart_is_in_a_table():
    shown = yaml.safe_load(blocks(RL4LMS, "yaml")[0].text)
    paths = [re.sub(r"(generation_kwargs|metrics)\..*", r"\1", path) for path in leaves(shown)]
    assert len(paths) > 20 and set(paths) <= old(RL4LMS)


def test_both_files_of_ours_load(tmp_path):
    for name, page in (("trlx_defaults.yaml", TRLX), ("from_rl4lms.yaml", RL4LMS)):
        (tmp_path / name).write_text(block_named(name, page))
        config = load_config(METHODS["ppo"].run_model, ["--config", str(tmp_path / name)])
        assert config.train.samples % config.ppo.minibatches == 0


def test_trlxs_defaults_are_what_the_configuration_says(tmp_path):
    ours = yaml.safe_load(block_named("trlx_defaults.yaml", TRLX))
    method, train = OLD["trlx_defaults"]["method"], OLD["trlx_defaults"]["train"]
    ppo = ours["ppo"]
    assert (
        ppo["epochs"] == method["ppo_epochs"] and ours["train"]["samples"] == method["num_rollouts"]
    )
    assert ppo["minibatches"] == method["num_rollouts"] // train["batch_size"]
    assert ours["kl"]["coef"] == method["init_kl_coef"] and ppo["gae_lambda"] == method["lam"]
    assert (ppo["clip"], ppo["value_clip"]) == (method["cliprange"], method["cliprange_value"])
    assert (ppo["vf_coef"], ppo["gamma"]) == (method["vf_coef"], method["gamma"])
    assert ours["score"]["clip"] == [-method["cliprange_reward"], method["cliprange_reward"]]
    assert ours["sampling"]["max_new_tokens"] == method["max_new_tokens"]
    assert ours["train"]["seed"] == train["seed"]


@pytest.mark.prove
def test_trlxs_script_after_runs_as_it_is(tmp_path, monkeypatch):
    """As tests/test_from_trl_ppo.py does it for TRL's, so not in every test run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(embedded.path("glass-tiny"))
    (tmp_path / "after.py").write_text(block_named("after_trlx.py", TRLX), encoding="utf-8")
    assert ran("after.py").split()[-2] == "runs/queens/model"


def test_the_reward_for_references_keeps_the_contract(tmp_path):
    (tmp_path / "overlap.py").write_text(block_named("overlap.py", RL4LMS), encoding="utf-8")
    rewards.load_file(str(tmp_path / "overlap.py"))
    rewards.conformance.check("my.overlap")
