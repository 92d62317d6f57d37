"""Every YAML, Python, JSON and TOML block of the pages is read as what it is."""

import ast
import json
import tomllib
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from pages import NAMES, README, blocks, page_named, write_files

from rlalign.config import load_config
from rlalign.methods import METHODS
from rlalign.reward_model import RewardModelRun
from rlalign.sweeps.file import read_sweep

LANGUAGES = {"bash", "yaml", "python", "json", "toml", "text", ""}


@pytest.fixture
def readers_folder(tmp_path, monkeypatch):
    """The checkout, and the files that a page's reader has saved."""

    def made(name):
        write_files(tmp_path, README, page_named(name))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return made


def kind_of(value):
    """What a YAML block is for."""
    keys = {str(key) for key in value}
    for kind, marks in MARKS.items():
        if keys & marks:
            return kind
    return "run"


# YAML reads a workflow's `on` as true. An RL4LMs file is only read: tests/test_from_rl4lms.py.
MARKS = {
    "workflow": {"jobs"},
    "accelerate": {"distributed_type", "compute_environment"},
    "sweep": {"parameters"},
    "reward model": {"pairs"},
    "RL4LMs": {"datapool", "reward_fn", "train_evaluation"},
}


def check_run(file):
    """As each method reads it: all of them know the shared sections, each its own."""
    for method in METHODS.values():
        load_config(method.run_model, ["--config", str(file)])


def check_workflow(file):
    jobs = yaml.safe_load(file.read_text("utf-8"))["jobs"]
    assert all({"runs-on", "steps"} <= job.keys() for job in jobs.values())


def check_rl4lms(file):
    assert yaml.safe_load(file.read_text("utf-8")).keys() <= {
        *("tokenizer", "reward_fn", "datapool", "env", "alg", "train_evaluation")
    }


READERS = {
    "run": check_run,
    "workflow": check_workflow,
    "accelerate": lambda file: load_config_from_file(str(file)),
    "sweep": read_sweep,
    "reward model": lambda file: load_config(RewardModelRun, ["--config", str(file)]),
    "RL4LMs": check_rl4lms,
}


@pytest.mark.parametrize("page", NAMES)
def test_blocks_say_what_they_are(page):
    assert {block.language for block in blocks(page_named(page))} <= LANGUAGES


@pytest.mark.parametrize("page", NAMES)
def test_yaml_blocks_load_as_what_they_are(page, readers_folder):
    folder = readers_folder(page)
    for number, block in enumerate(blocks(page_named(page), "yaml")):
        file = folder / (block.file or f"block{number}.yaml")
        file.write_text(block.text, encoding="utf-8")
        READERS[kind_of(yaml.safe_load(block.text))](file)


@pytest.mark.parametrize("page", NAMES)
def test_python_blocks_are_python_and_import_what_is_there(page):
    saved = {Path(block.file).stem for block in blocks(page_named(page)) if block.file}
    for block in blocks(page_named(page), "python"):
        compile(block.text, page, "exec")
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and node.module not in GONE | saved:
                module = __import__(node.module, fromlist=["_"])
                assert all(hasattr(module, alias.name) for alias in node.names)


# What the pages on moving here show of the old: no part of this environment.
GONE = {"trl.experimental.ppo", "trlx.data.default_configs"}


@pytest.mark.parametrize("page", NAMES)
def test_json_and_toml_blocks_are_read(page):
    for block in blocks(page_named(page), "json"):
        for line in block.text.splitlines() if "}\n{" in block.text else [block.text]:
            json.loads(line)
    for block in blocks(page_named(page), "toml"):
        tomllib.loads(block.text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("run", "rewards: {a: {kind: lexical.contians, words: [x]}}"),
        ("sweep", "method: grid\nparameters: {kl.coef: {valus: [1]}}"),
        ("accelerate", "distributed_type: MULTI_GPU\nnum_proceses: 2"),
        ("reward model", "pairs: {pth: x}"),
        ("workflow", "jobs: {a: {runs-on: x}}"),
    ],
)
def test_a_block_that_is_wrong_is_noticed(kind, text, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert kind_of(yaml.safe_load(text)) == kind
    with pytest.raises((Exception,)):
        READERS[kind](file)
