"""`rlalign sweep FILE`: on line, through W&B's own client and agent, at a stand-in server."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from local_sweeps import GOOD, write
from tracked_rows import offline
from wandb_server import wandb_server

from rlalign import cli

# As the command, but that the agent asks for work more often than every five seconds.
COMMAND = """
import sys
from wandb import wandb_agent
from rlalign.cli import main
wandb_agent.Agent.POLL_INTERVAL = 0.1
sys.exit(main(["sweep", "s.yaml", *sys.argv[1:]]))
"""
SPEC = {"x": {"values": [1, 2, 3]}, "kl.coef": {"value": 0.1}, "run.dir": {"value": "."}}


def online(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        env=offline(**env),
        capture_output=True,
        text=True,
        timeout=120,
    )


def write_named(**more: Any) -> None:
    """A sweep whose runs lie in one folder, so that what each was given can be read there."""
    write(SPEC | {"run.name": {"value": "runs"}}, **more)


def given() -> list[dict[str, str]]:
    lines = Path("runs/attempts.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k in ("x", "kl.coef")} for line in lines]


def test_one_command_makes_the_sweep_and_runs_as_many_trials_as_were_asked_for(here):
    write_named(project="words")
    with wandb_server() as (server, env):
        ran = online("--trials", "2", **env)
    assert ran.returncode == 0, ran.stderr
    assert server.project == "words" and server.sweep["parameters"]["x"] == {"values": [1, 2, 3]}
    assert given() == [{"x": "1", "kl.coef": "0.1"}, {"x": "2", "kl.coef": "0.1"}]
    assert "`wandb agent me/words/made` goes on" in ran.stderr


def test_without_an_agent_it_says_how_to_start_one(here):
    write_named()
    with wandb_server() as (server, env):
        ran = online("--no-agent", **env)
    assert ran.returncode == 0, ran.stderr
    assert "wandb agent me/rlalign/made" in ran.stdout
    assert "CreateAgent" not in server.asked and not Path("runs").exists()


def test_a_key_that_nobody_knows_and_a_file_that_wandb_refuses_end_with_2(here):
    write_named()
    with wandb_server(knows_account=False) as (_, env):
        ran = online(**env)
    assert ran.returncode == 2
    last = ran.stderr.splitlines()[-1]
    assert "W&B does not know this account" in last and "rlalign sweep s.yaml --local" in last
    with wandb_server(refuses=True) as (_, env):
        ran = online(**env)
    assert ran.returncode == 2
    last = ran.stderr.splitlines()[-1]
    assert "W&B did not take s.yaml" in last and "'x' has no distribution" in last


def test_a_server_that_is_not_there_ends_with_4_at_once(here, monkeypatch, capsys):
    write(GOOD["parameters"])
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert cli.main(["sweep", "s.yaml"]) == 4
    said = capsys.readouterr().err
    assert "W&B's server http://127.0.0.1:9 cannot be reached" in said
    assert "rlalign sweep s.yaml --local runs it here, without an account" in said


@pytest.mark.parametrize(
    ("env", "more", "message"),
    [
        ({}, {}, "needs a W&B account: `wandb login`, or set WANDB_API_KEY. rlalign sweep s.yaml"),
        ({"WANDB_MODE": "offline"}, {}, "WANDB_MODE=offline: a sweep on line needs W&B; unset it"),
        ({}, {"parameters": {}}, "parameters is missing in s.yaml: W&B needs it"),
        ({}, {"program": "other.py"}, "program='other.py' is no file here"),
        ({}, {"command": ["no-such", "${args}"]}, "command begins with 'no-such'"),
    ],
)
def test_what_cannot_work_is_said_before_the_network_is_tried(
    env, more, message, here, monkeypatch, capsys
):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    write(**(GOOD | more))
    assert cli.main(["sweep", "s.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert cli.main(["sweep", "s.yaml", "--name", "a"]) == 2
    assert "--name 'a' is the folder of a local sweep; add --local" in capsys.readouterr().err
