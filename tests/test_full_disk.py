"""A disk that is full, or a file that may not grow: an error that says so, and nothing is lost."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import exact_runs
import hashes
import pytest
from forked import ended, fork

from rlalign import loop
from rlalign.checkpoints.folder import load_checkpoint, newest_first
from rlalign.exits import exit_code, last_line
from rlalign.files import DiskError
from rlalign.runs import RunFolder
from rlalign.tracking import JsonlTracker
from rlalign.trainer import Trainer

SMALL: dict[str, Any] = {
    "train": {"iterations": 3, "samples": 16},
    "eval": {"every": 0},
    "checkpoint": {"every": 1, "keep": 9},
    "reinforce": {"minibatches": 1, "lr": 1e-3},
}


def limited(work: Callable[[], None], most: int | None = None) -> int:
    """Do the work where no file may grow beyond so many bytes."""

    def begin() -> None:
        if most is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        work()

    return ended(fork(begin), time.monotonic() + 120)


def told(trainer: Trainer, most: int | None = None) -> str:
    """How a run ends: `0`, or its exit code and what it says last."""
    exact_runs.warm()
    reading, writing = os.pipe()

    def work() -> None:
        loop.draw_plots = lambda *_: None
        said = "0"
        try:
            loop.train(trainer, quiet=True)
        except Exception as error:
            said = f"{exit_code(error)} {last_line(error)}"
        os.write(writing, said.encode())

    assert limited(work, most) == 0
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        return pipe.read()


def test_a_row_that_does_not_fit_is_taken_back_and_is_an_error(tmp_path):
    def work() -> None:
        tracker = JsonlTracker(RunFolder(tmp_path))
        tracker.log(1, {"score": 1.0})
        with pytest.raises(DiskError, match=r"metrics.jsonl could not be written: File too large"):
            tracker.log(2, {f"metric {i}": 0.5 for i in range(100)})
        tracker.samples(1, [{"text": "x"}])  # the other file has room

    assert limited(work, 1000) == 0
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 1, "score": 1.0}\n'
    assert (tmp_path / "samples.jsonl").read_text().count("\n") == 1


def test_the_first_error_is_not_hidden_by_a_second_one(tmp_path, caplog):
    def work() -> None:
        folder = RunFolder(tmp_path)
        folder.finish("failed", 5, "the reason")
        with pytest.raises(DiskError, match=r"run\.json could not be written"):
            folder.finish("done", 0)

    assert limited(work, 10) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("most", "code", "what"),
    [
        (800, 4, r"config\.yaml could not be written: File too large"),
        (4500, 4, r"samples\.jsonl could not be written: File too large"),
        (40_000, 3, r"step-000001 could not be written: File too large"),
    ],
)
def test_a_run_whose_files_may_not_grow_says_so(tmp_path, most, code, what):
    sections = SMALL | {"checkpoint": {"every": 0 if code == 4 else 1}}
    trainer = exact_runs.trainer_of(tmp_path, "reinforce", **sections)
    said = told(trainer, most)
    assert said.startswith(f"{code} ") and re.search(what, said), said
    assert [path for path in tmp_path.rglob(".*")] == []
    run = tmp_path / "a"
    if most > 4000:
        ended_as = json.loads((run / "run.json").read_text(encoding="utf-8"))
        assert (ended_as["status"], ended_as["exit_code"]) == ("failed", code)
        assert ended_as["message"] == said[2:]
    assert told(trainer) == "0"
    whole = exact_runs.whole(tmp_path / "whole", "reinforce", **sections)
    assert hashes.of_run(run) == hashes.of_run(whole)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    return hashes.of_run(exact_runs.whole(folder, "reinforce", **SMALL))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many kilobytes, mounted anew or made larger."""
    disk, options = tmp_path / "disk", []
    disk.mkdir()

    def of(kilobytes: int) -> Path:
        given = ",".join([*options, f"size={kilobytes}k"])
        command = ["mount", "-t", "tmpfs", "-o", given, "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        options[:] = ["remount"]
        return disk

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    yield of
    if options:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kilobytes", [4, 12, 60, 300, 600, 880])
def test_a_run_on_a_disk_that_fills_up_goes_on_when_there_is_room(small_disk, unbroken, kilobytes):
    """At each size it ends at another place: settings, rows, a checkpoint, the model."""
    disk = small_disk(kilobytes)
    trainer = exact_runs.trainer_of(disk, "reinforce", **SMALL)
    said = told(trainer)
    run = disk / "a"
    assert said[:2] in ("3 ", "4 ") and str(disk) in said, said
    assert "could not be written" in said or "does not fit" in said
    assert [path for path in disk.rglob(".*")] == []
    for path in newest_first(run / "checkpoints"):
        load_checkpoint(path)
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (run / name).exists():
            assert all(json.loads(line) for line in (run / name).read_text().splitlines())
    small_disk(20_000)
    assert told(trainer) == "0"
    assert hashes.of_run(run) == unbroken
