import logging
import math
import subprocess
import sys
import threading
import time

import pytest
from tracked_rows import ROWS, lines, offline

from rlalign.runs import RunFolder
from rlalign.tracking import Background, JsonlTracker, build_trackers


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
                tracker = build_trackers([], run, {}, "", resumed_at=step or -1)
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


def test_a_tracker_that_is_not_installed_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.WARNING):
        tracker = build_trackers(["tensorboard"], RunFolder(tmp_path), {}, "")
        tracker.log(1, {"score": 1.0})
        tracker.close()
    assert "pip install tensorboard" in caplog.text
    assert len(lines(tmp_path / "metrics.jsonl")) == 1
