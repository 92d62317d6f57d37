import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tracked_rows import lines, offline

PROGRAM = """
import logging, sys, time
from pathlib import Path
from rlalign.runs import RunFolder
from rlalign.tracking import build_trackers
logging.basicConfig(level=logging.INFO)
began = time.monotonic()
run = RunFolder(Path(sys.argv[1]))
run.start(argv=sys.argv, world_size=1, seeds={})
tracker = build_trackers(
    ["wandb"], run, {"ppo.lr": 1e-4, "rewards.a.api_key": "canary-config"}, "api_key: canary-yaml"
)
import tests.tracked_rows as t
for step in range(1, 4):
    tracker.log(step, {"score": step / 2, "kl/ref": float("nan")})
tracker.samples(3, t.ROWS)
CODE
tracker.log(4, {"score": 4.0})
run.finish("done", 0)
tracker.close()
print("seconds", time.monotonic() - began)
"""


def run_program(folder: Path, code: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", PROGRAM.replace("CODE", code)]
    out, err = folder.parent / "out.txt", folder.parent / "err.txt"
    with out.open("w") as stdout, err.open("w") as stderr:  # a pipe would wait for a hanging child
        result = subprocess.run(
            [*command, str(folder), "--hub_token=canary-argument", "--password", "canary-word"],
            env=offline(MY_API_TOKEN="canary-environment", **env),
            stdout=stdout,
            stderr=stderr,
            timeout=60,
        )
    return subprocess.CompletedProcess(command, result.returncode, out.read_text(), err.read_text())


def all_bytes(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_wandb_without_an_account_writes_an_offline_run_without_secrets(tmp_path):
    folder = tmp_path / "kl-20250102-030405"
    result = run_program(folder)
    assert result.returncode == 0, result.stderr
    [offline_run] = folder.glob("wandb/offline-run-*")
    known = json.loads((folder / "run.json").read_text())["wandb"]
    assert known["mode"] == "offline"
    record = (offline_run / f"run-{known['id']}.wandb").read_bytes()
    for expected in (b"ppo.lr", b"kl/ref", b"samples/eval", b"kl-20250102-030405", b"0.0001"):
        assert expected in record
    tables = [json.loads(p.read_text()) for p in offline_run.glob("files/media/table/**/*.json")]
    assert len(tables) == 2
    rows = [
        dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["data"]
    ]
    assert {row["response"] for row in rows} >= {"<script>alert(1)</script>"}  # text, not Html
    assert {row.get("reward/space") for row in rows} >= {0.5}
    assert b"canary" not in all_bytes(folder)
    assert "wandb:" not in result.stderr + result.stdout
    assert not (tmp_path / "wandb").exists()


def test_an_unreachable_wandb_is_offline_within_ten_seconds(tmp_path):
    unreachable = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    result = run_program(tmp_path / "run", **unreachable)
    assert result.returncode == 0, result.stderr
    assert "did not start on line" in result.stderr
    assert "is given up" not in result.stderr
    assert float(result.stdout.split("seconds")[1]) < 10
    assert json.loads((tmp_path / "run" / "run.json").read_text())["wandb"]["mode"] == "offline"
    [record] = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert b"samples/eval" in record.read_bytes()
    assert (b"a" * 40) not in all_bytes(tmp_path / "run")


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_the_run_goes_on_when_its_wandb_core_dies_or_hangs(tmp_path, how):
    code = f"""
import os, signal, subprocess
def own_core():
    listing = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())],
                             capture_output=True, text=True).stdout
    return [int(l.split()[0]) for l in listing.splitlines() if "wandb-core" in l]
while not (run.read_run_json().get("wandb") and own_core()):
    time.sleep(0.05)
[core] = own_core()
print("core", core, flush=True)
os.kill(core, signal.{how})
time.sleep(0.3)
for step in range(1, 50):
    tracker.log(step, {{"score": 1.0, "bulk": 1.0}})
tracker.samples(50, [{{"response": "x" * 10**6}}] * 20)
time.sleep(0.3)
import rlalign.tracking
close = tracker.close
tracker.close = lambda: close(seconds=2)
"""
    result = run_program(tmp_path / "run", code)
    if how == "SIGSTOP":
        os.kill(int(result.stdout.split()[1]), signal.SIGKILL)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("wandb is given up, and the run goes on") == 1
    assert "Traceback" not in result.stderr
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 53


def test_a_resumed_run_keeps_its_wandb_id(tmp_path):
    ids = []
    for _ in range(2):
        assert run_program(tmp_path / "run").returncode == 0
        ids.append(json.loads((tmp_path / "run" / "run.json").read_text())["wandb"]["id"])
    assert ids[0] == ids[1]


def test_a_run_of_a_sweeps_agent_joins_the_agents_run(tmp_path):
    agent = {"WANDB_SWEEP_ID": "sw1", "WANDB_RUN_ID": "agents-run", "WANDB_MODE": "offline"}
    assert run_program(tmp_path / "run", **agent).returncode == 0
    known = json.loads((tmp_path / "run" / "run.json").read_text())["wandb"]
    assert known["id"] == "agents-run"
    [record] = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert b"sw1" in record.read_bytes()


def test_a_login_is_found_in_the_environment_or_a_netrc_file(tmp_path, monkeypatch):
    from rlalign.wandb_tracker import logged_in

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not logged_in()
    (tmp_path / "netrc").write_text("machine elsewhere.org login user password x\n")
    assert not logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://own.example")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert logged_in()
