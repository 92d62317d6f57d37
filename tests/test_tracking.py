import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlalign.runs import RunFolder
from rlalign.tracking import Background, Guarded, JsonlTracker, build_trackers

ROWS = [
    {
        "split": "train",
        "prompt": "Once <b>",
        "response": "a\nb \x1b[31m \udc80",
        "score": 1.5,
        "kl": math.nan,
        "rewards": {"space": 0.5, "women": None},
    },
    {"split": "eval", "prompt": "p", "response": "<script>alert(1)</script>", "score": 2.0},
]


def lines(path: Path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_bytes().splitlines()]


def test_every_row_is_strict_json_and_in_the_file_at_once(tmp_path):
    run = RunFolder(tmp_path)
    tracker = JsonlTracker(run)
    tracker.log(1, {"iteration": 1, "score": 0.1 + 0.2, "kl/ref": math.nan, "x": -math.inf})
    tracker.samples(1, ROWS)
    assert lines(run.metrics_jsonl) == [
        {"iteration": 1, "score": 0.1 + 0.2, "kl/ref": None, "x": None}
    ]
    assert [row["response"] for row in lines(run.samples_jsonl)] == [r["response"] for r in ROWS]
    assert lines(run.samples_jsonl)[0]["kl"] is None


@pytest.mark.parametrize("stops", [{3: 2}, {5: 5}, {4: 0}, {3: 2, 4: 3, 6: 6}])
def test_a_resumed_runs_files_equal_an_unbroken_ones(tmp_path, stops):
    def go(folder: str, stops: dict[int, int]) -> RunFolder:
        run = RunFolder(tmp_path / folder)
        run.path.mkdir()
        tracker, step = build_trackers([], run, {}, ""), 0
        while step <= 6:
            tracker.log(step, {"score": step / 3})
            tracker.samples(step, [{**ROWS[0], "score": step}])
            if step in stops:
                with run.metrics_jsonl.open("a") as file:
                    file.write('{"iteration": 7, "sco')  # killed in the middle of a row
                step = stops.pop(step)
                tracker = build_trackers([], run, {}, "", resumed_at=step)
                step -= step == 0  # from the start, where row 0 is logged before the first one
            step += 1
        tracker.close()
        return run

    unbroken, resumed = go("a", {}), go("b", dict(stops))
    assert unbroken.metrics_jsonl.read_bytes() == resumed.metrics_jsonl.read_bytes()
    assert unbroken.samples_jsonl.read_bytes() == resumed.samples_jsonl.read_bytes()
    assert len(lines(unbroken.metrics_jsonl)) == 7


def test_a_half_written_row_is_dropped_when_the_file_is_opened_again(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics_jsonl.write_text('{"iteration": 1}\n{"itera')
    JsonlTracker(run).log(2, {})
    assert lines(run.metrics_jsonl) == [{"iteration": 1}, {"iteration": 2}]


def test_finished_rows_outlive_a_kill(tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from rlalign.runs import RunFolder
from rlalign.tracking import build_trackers
tracker = build_trackers(["wandb"], RunFolder(Path({str(tmp_path)!r})), {{}}, "")
for step in range(50):
    tracker.log(step, {{"score": 1.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], env=offline()).returncode == -9
    assert len(lines(tmp_path / "metrics.jsonl")) == 50


class Broken:
    def __init__(self) -> None:
        self.calls = 0

    def log(self, step, stats):
        self.calls += 1
        raise ValueError("out of order")

    samples = log

    def close(self):
        self.calls += 1


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_tracker_that_raises_is_given_up_with_one_warning(caplog):
    broken = Broken()
    tracker = Guarded("broken", broken)
    for step in range(3):
        tracker.log(step, {})
    tracker.samples(3, [])
    tracker.close()
    assert broken.calls == 1
    assert warnings_of(caplog) == [
        "broken is given up, and the run goes on: ValueError: out of order"
    ]


def test_a_background_tracker_that_raises_or_exits_is_given_up_with_one_warning(caplog):
    freed = threading.Event()
    broken = Broken()
    tracker = Background("broken", lambda: broken, freed.set)
    for step in range(3):
        tracker.log(step, {})
    tracker.close()
    assert broken.calls == 1 and freed.is_set() and len(warnings_of(caplog)) == 1
    tracker = Background("exits", lambda: sys.exit(3))
    time.sleep(0.1)
    tracker.log(1, {})
    tracker.close()
    assert warnings_of(caplog)[1] == "exits is given up, and the run goes on: SystemExit: 3"


class Collecting:
    def __init__(self) -> None:
        self.seen: list = []

    def log(self, step, stats):
        self.seen.append((step, stats))

    def samples(self, step, rows):
        self.seen.append((step, rows))

    def close(self):
        self.seen.append("closed")


def test_a_slow_start_loses_no_row_and_delays_no_one():
    gate, collecting = threading.Event(), Collecting()

    def start():
        gate.wait()
        return collecting

    began = time.monotonic()
    tracker = Background("slow", start)
    stats = {"score": 1.0}
    tracker.log(1, stats)
    stats["score"] = 2.0  # the caller's dict is its own
    tracker.samples(1, [{"prompt": "p"}])
    assert time.monotonic() - began < 0.5
    gate.set()
    tracker.close()
    assert collecting.seen == [(1, {"score": 1.0}), (1, [{"prompt": "p"}]), "closed"]


def test_a_tracker_that_hangs_is_left_behind(caplog):
    tracker = Background("hangs", lambda: threading.Event().wait())
    for step in range(1100):
        tracker.log(step, {})
    assert "1000 calls wait for it" in caplog.text
    caplog.clear()
    tracker = Background("hangs", lambda: threading.Event().wait())
    began = time.monotonic()
    tracker.close(seconds=0.2)
    assert time.monotonic() - began < 1
    assert "did not end within 0 s" in caplog.text


def test_tensorboard_events_are_read_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path)
    tracker = build_trackers(["tensorboard"], run, {}, "")
    for step in (1, 2):
        tracker.log(step, {"score": step / 2, "kl/ref": math.nan})
    tracker.samples(2, ROWS)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("score")] == [(1, 0.5), (2, 1.0)]
    assert events.Tags()["scalars"] == ["score"]
    text = events.Tensors("samples/eval/1/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "alert(1)" in text
    assert all(line.startswith("    ") for line in text.splitlines())  # a literal block


def offline(**more: str) -> dict[str, str]:
    """This environment without what would lead W&B to an account or a home."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return {**kept, "NETRC": "/nonexistent", **more}


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
import tests.test_tracking as t
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


def test_a_tracker_that_is_not_installed_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        tracker = build_trackers(["tensorboard"], RunFolder(tmp_path), {}, "")
        tracker.log(1, {"score": 1.0})
        tracker.close()
    assert "pip install tensorboard" in caplog.text
    assert len(lines(tmp_path / "metrics.jsonl")) == 1
