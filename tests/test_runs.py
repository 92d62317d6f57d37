import json
import os
import re
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from forked import ended, fork

from rewards import registry
from rlalign.checkpoints.folder import CheckpointError
from rlalign.cli import main
from rlalign.files import DiskError, sha256, write_atomically
from rlalign.problems import ConfigError
from rlalign.redact import HIDDEN, redact_command, redact_mapping, redact_text
from rlalign.runs import BLANK, RunFolder, check_run, git_commit, open_run, versions
from rlalign.settings.run_section import RunSection


def section(tmp_path: Path, name: str = "auto", resume: str = "never") -> RunSection:
    return RunSection(name=name, dir=str(tmp_path / "runs"), resume=resume)


def test_an_automatic_name_is_the_stem_and_the_time_and_never_taken_twice(tmp_path):
    runs = [open_run(section(tmp_path), "quick start/ü") for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    for run in runs:
        assert run.path.is_dir()
        assert re.fullmatch(r"quick-start-\d{8}-\d{6}(-\d)?", run.name.replace("--", "-"))
        RunSection(name=run.name)  # a name that one may also type


def test_an_existing_run_is_refused_and_the_message_says_how_to_go_on(tmp_path):
    run = open_run(section(tmp_path, "mine"), "x")
    open_run(section(tmp_path, "mine"), "x")  # still empty
    run.config_yaml.write_text("a: 1")
    with pytest.raises(ConfigError, match=r"run\.name='mine'.*--run\.resume=auto.*--run\.name"):
        open_run(section(tmp_path, "mine"), "x")
    assert open_run(section(tmp_path, "mine", "auto"), "x") == run


def test_resume_auto_needs_a_name_and_starts_afresh_where_there_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"needs run\.name"):
        open_run(section(tmp_path, "auto", "auto"), "x")
    assert open_run(section(tmp_path, "new", "auto"), "x").path.is_dir()


def test_a_checkpoint_takes_the_run_up_in_its_own_folder_or_begins_another(tmp_path):
    run = open_run(section(tmp_path, "mine"), "x")
    checkpoint = run.checkpoints / "step-000010"
    checkpoint.mkdir(parents=True)
    assert open_run(section(tmp_path, "auto", str(checkpoint)), "x") == run
    assert open_run(section(tmp_path, "mine", str(checkpoint)), "x") == run
    assert open_run(section(tmp_path, "other", str(checkpoint)), "x").name == "other"
    open_run(section(tmp_path, "full"), "x").config_yaml.write_text("a: 1")
    with pytest.raises(ConfigError, match="holds a run already"):
        open_run(section(tmp_path, "full", str(checkpoint)), "x")


def test_a_start_that_came_to_nothing_leaves_its_name_free(tmp_path):
    """As where a wish is out of reach: the corrected run may have the name."""
    run = open_run(section(tmp_path, "mine"), "x")
    run.start(argv=["a"], world_size=1, seeds={})
    run.config_yaml.write_text("a: 1")
    run.metrics_jsonl.touch()
    with pytest.raises(ConfigError, match="holds a run already"):  # it may be running
        open_run(section(tmp_path, "mine"), "x")
    run.finish("failed", 2, "out of reach")
    assert open_run(section(tmp_path, "mine"), "x").read_run_json() == {}
    check_run(section(tmp_path, "mine"))
    run.start(argv=["a"], world_size=1, seeds={})
    run.finish("failed", 2, "out of reach")
    run.metrics_jsonl.write_text("{}\n")  # a number is something to lose
    with pytest.raises(ConfigError, match="holds a run already"):
        open_run(section(tmp_path, "mine"), "x")
    with pytest.raises(ConfigError, match="holds a run already"):
        check_run(section(tmp_path, "mine"))


@pytest.mark.parametrize("resume", ["runs/mine", "nowhere/step-000010", "/"])
def test_a_path_that_is_no_checkpoint_is_a_checkpoints_fault(tmp_path, resume):
    with pytest.raises(CheckpointError, match=rf"run\.resume='{resume}': there is no checkpoint"):
        check_run(section(tmp_path, "mine", resume))


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x", "/etc", "", ".hidden", "a b", "x" * 65])
def test_hostile_names_never_reach_the_disk(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        section(tmp_path, name)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x", "/etc"])
def test_a_name_that_leads_elsewhere_is_refused_even_unchecked(tmp_path, name):
    with pytest.raises(ConfigError):
        open_run(section(tmp_path).model_copy(update={"name": name}), "x")
    assert not (tmp_path / "x").exists()


def test_a_link_out_of_the_runs_is_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(outside)
    with pytest.raises(ConfigError, match=r"leads out of run\.dir"):
        open_run(section(tmp_path, "mine"), "x")


@pytest.mark.parametrize("name", ["metrics.jsonl", "model/model.safetensors", "wandb"])
def test_a_link_in_a_run_through_which_files_would_be_overwritten_is_refused(tmp_path, name):
    run = open_run(section(tmp_path, "mine"), "x")
    run.config_yaml.write_text("a: 1")
    (run.path / "wandb").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (run.path / "plots").symlink_to(run.config_yaml)
    (run.path / "wandb" / "debug-core.log").symlink_to(outside)
    open_run(section(tmp_path, "mine", "auto"), "x")  # links inside, and W&B's own
    (run.path / name).parent.mkdir(exist_ok=True)
    shutil.rmtree(run.path / name, ignore_errors=True)
    (run.path / name).symlink_to(outside)
    checkpoint = run.checkpoints / "step-000001"
    for resume in ("auto", str(checkpoint)):
        with pytest.raises(ConfigError, match=rf"{name} is a link to {outside}, out of"):
            open_run(section(tmp_path, "mine" if resume == "auto" else "auto", resume), "x")


def test_an_atomic_write_does_not_follow_a_link_under_its_temporary_name(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda bytes: "guessed")
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (tmp_path / ".run.json.guessed.tmp").symlink_to(mine)
    with pytest.raises(DiskError, match=r"run\.json could not be written: File exists"):
        RunFolder(tmp_path).write_run_json({"status": "done"})
    assert mine.read_text() == "precious"


def test_processes_that_write_one_file_at_once_do_not_meet(tmp_path):
    """Each text comes out whole, and nobody's file is taken from under them."""
    path = tmp_path / "trials.csv"

    def writing(letter: str) -> None:
        for _ in range(200):
            write_atomically(path, letter * 4096)
            assert len(set(path.read_text())) == 1 and path.stat().st_size == 4096

    children = [fork(partial(writing, letter)) for letter in "abc"]
    assert [ended(each, time.monotonic() + 60) for each in children] == [0, 0, 0]
    assert [each.name for each in tmp_path.iterdir()] == ["trials.csv"]


def test_a_run_folder_that_cannot_be_made_is_the_settings_fault(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"run\.dir="):
        open_run(section(tmp_path), "x")


def test_run_json_tells_the_start_and_the_end(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "canary-in-the-environment")
    rewards = tmp_path / "mine.py"
    rewards.write_text("def mine(completions, **kwargs): return [0.0]\n")
    registry.load_file(rewards)
    ran = sha256(rewards)
    rewards.write_text("changed since = then")
    run = open_run(section(tmp_path, "mine"), "x")
    argv = ["python", "ppo.py", "--hub_token", "canary-1", "--a.api_key=canary-2", "--ppo.lr=1e-4"]
    monkeypatch.setattr(registry, "plugins", lambda: {"example-rewards": "0.1"})
    run.start(argv=argv, world_size=2, seeds={"train": 3}, reward_files=[rewards])
    begun = run.read_run_json()
    assert begun["plugins"] == {"example-rewards": "0.1"}
    assert begun["status"] == "running" and begun["world_size"] == 2 and begun["exit_code"] is None
    assert begun["reward_files"] == {str(rewards): ran}  # what runs, not what the file became
    assert begun["command"][-1] == "--ppo.lr=1e-4" and begun["seeds"] == {"train": 3}
    assert begun["versions"]["torch"] == versions()["torch"] is not None
    run.finish("failed", 5, "reward 'x' said canary-in-the-environment")
    ended = run.read_run_json()
    assert ended["status"] == "failed" and ended["exit_code"] == 5
    assert ended["message"] == f"reward 'x' said {HIDDEN}" and ended["ended_at"]
    assert "canary" not in run.run_json.read_text()
    run.write_run_json({"started_at": "earlier"})
    run.start(argv=argv, world_size=2, seeds={"train": 3})
    again = run.read_run_json()
    assert again["started_at"] == "earlier" and again["resumed_at"]
    assert again["status"] == "running" and again["message"] is None


def test_a_damaged_run_json_is_begun_anew(tmp_path, caplog):
    run = RunFolder(tmp_path)
    run.run_json.write_text('{"name": ')
    run.write_run_json({"status": "done"})
    assert json.loads(run.run_json.read_text()) == {"status": "done"}
    assert "run.json" in caplog.text


def test_the_commit_is_named_where_there_is_one(tmp_path):
    assert git_commit(tmp_path) is None
    author = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
    author |= {key.replace("AUTHOR", "COMMITTER"): value for key, value in author.items()}
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, env={**os.environ, **author}, check=True)
    assert re.fullmatch("[0-9a-f]{40}", git_commit(tmp_path)["commit"])
    assert git_commit(tmp_path)["changed"] is False
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path)["changed"] is True


SECRET = "canary"


@pytest.mark.parametrize(
    "argv",
    [
        ["--hub_token=canary"],
        ["--hub-token", "canary"],
        ["--rewards.judge.api_key=canary"],
        ["rewards.judge.apiKey=canary"],
        ["WANDB_API_KEY=canary"],
        ["--password", "canary"],
        ["--rewards={judge: {kind: x, api_key: canary}}"],
        ["--model.name=https://me:canary@host/model"],
        ["--url=https://host/?access_token=canary&x=1"],
        ["hf_canaryAAAAAAAAAAAAAAAA"],
    ],
)
def test_a_secret_argument_is_hidden(argv):
    assert SECRET not in " ".join(redact_command(argv))
    assert HIDDEN in " ".join(redact_command(argv))


def test_ordinary_arguments_are_left_alone():
    argv = [
        *("--sampling.max_new_tokens=32", "--optim.micro_batch_tokens", "8192", "--ppo.lr=1e-4"),
        *("--rewards.space.words=['key', 'token']", "--run.name=keyboard", "--flag", "a=b"),
    ]
    assert redact_command(argv) == argv
    assert redact_command(["--hub_token", "--ppo.lr=1"]) == ["--hub_token", "--ppo.lr=1"]


def test_a_message_with_the_word_key_is_left_alone():
    message = "unknown key: sapce; KeyError: 'x'; the token: 7"
    assert redact_text(message) == message


def test_secrets_of_a_configuration_are_hidden_by_name():
    flat = {"a.api_key": "x", "sampling.max_new_tokens": 32, "model.name": "m", "a.token": None}
    assert redact_mapping(flat) == {**flat, "a.api_key": HIDDEN}


def test_the_name_of_a_variable_is_no_secret(monkeypatch):
    """A saved configuration names what holds a header's value; a resume reads it back."""
    monkeypatch.setenv("FAR_KEY", "a very secret value")
    line = "headers: {X-Api-Key: FAR_KEY}"
    assert redact_text(line) == line
    assert redact_text("X-Api-Key: FAR_KEYS") == f"X-Api-Key: {HIDDEN}"
    assert redact_text("X-Api-Key: a very secret value") == f"X-Api-Key: {HIDDEN}"


def test_a_wish_that_cannot_be_had_leaves_its_name_free(tmp_path):
    settings = {
        "model": {"name": "glass-tiny", "dtype": "float32"},
        "prompts": {"path": str(tmp_path / "prompts.jsonl"), "eval_fraction": 0.0},
        "sampling": {"max_new_tokens": 4, "samples_per_prompt": 4},
        "target": {"samples": 64},
        "train": {"iterations": 1, "samples": 8, "threads": 1},
        "eval": {"every": 0},
        "run": {"dir": str(tmp_path / "runs"), "name": "mine"},
        "trackers": ["tensorboard"],
    }
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Alice"}\n')
    (tmp_path / "a.yaml").write_text(json.dumps(settings))
    command = ["dpg", f"--config={tmp_path / 'a.yaml'}"]
    reward = "{kind: lexical.contains, words: [zebra], moment: 0.5}"
    assert main([*command, f"--rewards.x={reward}"]) == 2
    assert {file.name for file in (tmp_path / "runs" / "mine").iterdir()} <= set(BLANK)
    reward = "{kind: lexical.contains, words: [the], weight: 1.0}"
    assert main([*command, f"--rewards.x={reward}"]) == 0
