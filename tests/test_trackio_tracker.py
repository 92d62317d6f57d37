"""Trackio as a tracker, read back through its own API in a process of its own."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from tracked_rows import lines, offline

pytest.importorskip("trackio")

TRACKED = """
import json, logging, sys, time
from pathlib import Path
from rlalign.runs import RunFolder
from rlalign.tracking import build_trackers
import tests.tracked_rows as t
logging.basicConfig(level=logging.INFO, format="%(message)s")
run = RunFolder(Path(sys.argv[1]))
first, last, kept = map(int, sys.argv[2:5])
config = {"ppo.lr": 1e-4, "rewards.a.api_key": "canary-config"}
tracker = build_trackers(["trackio"], run, config, "", kept if kept > -2 else None)
for step in range(first, last + 1):
    tracker.log(step, {"score": step + kept / 8, "kl/ref": float("nan"), "time/total": 2.0})
tracker.samples(last, [{**t.ROWS[0], "top": ["space"]}, *t.ROWS, {**t.ROWS[1], "kl": 1 / 3}])
began = time.monotonic()
tracker.close(CLOSE)
print("seconds", time.monotonic() - began)
"""
READ = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
runs = list(trackio.Api().runs("rlalign"))
logs = {r.id: SQLiteStorage.get_logs("rlalign", r.name, run_id=r.id) for r in runs}
print(json.dumps([[r.name, r.id, r.config, logs[r.id]] for r in runs]))
"""


def track(folder: Path, first: int, last: int, kept: int = -2, close: float = 20, **env: str):
    """Log these iterations, as a run that goes on after `kept`."""
    folder.mkdir(exist_ok=True)
    program = TRACKED.replace("CLOSE", str(close))
    command = [sys.executable, "-c", program, str(folder), str(first), str(last), str(kept)]
    env = {"TRACKIO_DIR": str(folder.parent / "trackio"), **env}
    return subprocess.run(
        command, env=offline(**env), capture_output=True, text=True, timeout=60, check=True
    )


def read(place: Path) -> list:
    done = subprocess.run(
        [sys.executable, "-c", READ], env=offline(TRACKIO_DIR=str(place / "trackio")),
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_its_api_lists_the_run_its_metrics_samples_and_configuration(tmp_path):
    said = track(tmp_path / "kl-20250102-030405", 0, 3)
    [[name, _, config, logs]] = read(tmp_path)
    assert name == "kl-20250102-030405"
    assert config["_Group"] == "kl" and config["ppo.lr"] == 1e-4
    scores = {log["step"]: log["score"] for log in logs if "score" in log}
    assert scores == {step: step - 0.25 for step in range(4)}
    assert "kl/ref" not in logs[0] and logs[0]["time/total"] == 2.0
    [train] = [log["samples/train"]["_value"] for log in logs if "samples/train" in log]
    [evaluated] = [log["samples/eval"]["_value"] for log in logs if "samples/eval" in log]
    assert [row["reward/space"] for row in train] == [0.5]  # the highest alone
    assert [row["kl"] for row in evaluated] == [None, 0.3333]
    assert evaluated[0]["response"] == "<script>alert(1)</script>"  # which the page takes as text
    assert said.stdout.startswith("seconds")  # nothing of trackio's
    assert "trackio show --project rlalign" in said.stderr


def test_no_secret_is_in_its_database(tmp_path):
    track(tmp_path / "run", 0, 1)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "trackio").rglob("*"))
    assert b"rewards.a.api_key" in stored and b"canary" not in stored


def test_a_resumed_run_goes_on_as_the_same_run_without_the_rows_past_its_checkpoint(tmp_path):
    track(tmp_path / "run", 0, 6)
    track(tmp_path / "other", 0, 6)
    track(tmp_path / "run", 5, 8, kept=4)
    by_name = {name: logs for name, _, _, logs in read(tmp_path)}
    scores = [(log["step"], log["score"]) for log in by_name["run"] if "score" in log]
    again = [(step, step + 0.5) for step in range(5, 9)]
    assert scores == [(step, step - 0.25) for step in range(5)] + again
    assert {log["step"] for log in by_name["other"]} == set(range(7))
    track(tmp_path / "run", 0, 1, kept=-1)  # from the start
    by_name = {name: logs for name, _, _, logs in read(tmp_path)}
    assert {log["step"] for log in by_name["run"]} == {0, 1} and len(by_name) == 2


def test_a_folder_that_cannot_be_written_is_one_warning_and_the_run_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    said = track(tmp_path / "run", 0, 3, TRACKIO_DIR=str(tmp_path / "file" / "trackio"))
    assert said.stderr.count("trackio is given up, and the run goes on") == 1
    assert "Traceback" not in said.stderr
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 4


def test_a_database_that_somebody_holds_is_left_behind_in_time(tmp_path):
    track(tmp_path / "run", 0, 0)
    with closing(sqlite3.connect(tmp_path / "trackio" / "rlalign.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        said = track(tmp_path / "run", 1, 3, close=1)
    assert float(said.stdout.split()[1]) < 3
    assert "trackio is given up, and the run goes on: TimeoutError" in said.stderr
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 4


def test_rows_outlive_a_kill(tmp_path):
    program = TRACKED.replace(
        "began =", "time.sleep(5); import os; os.kill(os.getpid(), 9); began ="
    )
    command = [
        sys.executable,
        "-c",
        program.replace("CLOSE", "9"),
        str(tmp_path / "run"),
        "0",
        "3",
        "-2",
    ]
    (tmp_path / "run").mkdir()
    done = subprocess.run(command, env=offline(TRACKIO_DIR=str(tmp_path / "trackio")), timeout=60)
    assert done.returncode == -9
    [[_, _, _, logs]] = read(tmp_path)
    assert len([log for log in logs if "score" in log]) == 4


def test_without_the_package_the_warning_names_the_extra(tmp_path):
    program = "import sys; sys.modules['trackio'] = None\n" + TRACKED.replace("CLOSE", "9")
    command = [sys.executable, "-c", program, str(tmp_path), "0", "1", "-2"]
    said = subprocess.run(command, env=offline(), capture_output=True, text=True, timeout=60)
    assert "pip install 'rlalign[trackers]'" in said.stderr and said.returncode == 0


def test_a_dashboard_serves_what_was_tracked(tmp_path):
    """The real server, asked what its page asks."""
    track(tmp_path / "run", 0, 3)
    program = """
import json, os, urllib.request, trackio
url = trackio.show(project="rlalign", open_browser=False, block_thread=False)[1].rstrip("/")
def ask(name, **data):
    request = urllib.request.Request(f"{url}/api/{name}", json.dumps(data).encode(),
                                     {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=20))
print("\\n" + json.dumps([ask("get_runs_for_project", project="rlalign"),
                        urllib.request.urlopen(url, timeout=20).read().decode()[:99]]), flush=True)
os._exit(0)
"""
    env = offline(TRACKIO_DIR=str(tmp_path / "trackio"), GRADIO_SERVER_PORT="7941")
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    runs, page = json.loads(done.stdout.splitlines()[-1])
    assert '"run"' in json.dumps(runs) and "<!doctype html>" in page.lower()
