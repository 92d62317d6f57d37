"""Runs that are killed, at every kind of file-system call and at random times, and gone on with."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exact_runs
import hashes
import yaml
from forked import ended, fork
from safetensors.torch import load_file

from rlalign import loop, tracking
from rlalign.checkpoints import folder as checkpoint
from rlalign.checkpoints import saving
from rlalign.checkpoints.folder import load_checkpoint
from rlalign.trainer import Trainer

EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
SMALL: dict[str, Any] = {
    "train": {"iterations": 3, "samples": 8},
    "eval": {"every": 1, "samples": 2},
    "checkpoint": {"every": 1, "keep": 1},  # the last save rotates, too
    "reinforce": {"minibatches": 1, "lr": 1e-3},
    "sampling": {"samples_per_prompt": 4},
}


def train(trainer: Trainer) -> None:
    exact_runs.warm()
    loop.draw_plots = lambda *_: None
    loop.train(trainer, quiet=True)


def done(work: Callable[[], None], seconds: float = 120.0) -> int:
    return ended(fork(work), time.monotonic() + seconds)


def watch(folder: Path, told: Callable[[str], None]) -> None:
    """From now on tell of every call of this process that changes something in `folder`.

    Python's audit hooks do not see what safetensors writes, nor rows of the run's files. A call of
    fsync changes nothing that outlives a process but not a machine.
    """

    def tell(what: str, path: object) -> None:
        if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(folder):
            told(f"{what} {re.sub(r'[0-9]+', 'N', str(Path(path).relative_to(folder)))}")

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            tell(event, args[0])

    sys.addaudithook(hear)
    write, save_file = tracking.Lines.write, checkpoint.save_file

    def told_write(self: tracking.Lines, lines: bytes) -> None:
        tell("write", self._path)
        write(self, lines)

    def told_save(tensors: Any, path: Path) -> None:
        tell("save", path)
        save_file(tensors, path)
        tell("saved", path)

    tracking.Lines.write = told_write  # type: ignore[method-assign]
    checkpoint.save_file = saving.save_file = told_save  # type: ignore[assignment]


def places(trainer: Trainer, folder: Path) -> list[int]:
    """Numbers of the calls of a run to kill it at: the first of each kind, and the last mark."""
    seen: list[str] = []

    def work() -> None:
        watch(folder, seen.append)
        train(trainer)
        Path(f"{folder}.calls").write_text("\n".join(seen), encoding="utf-8")

    assert done(work) == 0
    calls = Path(f"{folder}.calls").read_text(encoding="utf-8").splitlines()
    first = {call: number for number, call in reversed(list(enumerate(calls)))}
    last = {call: number for number, call in enumerate(calls) if "best.json" in call}
    return sorted({*first.values(), *last.values()})


def killed_at(trainer: Trainer, folder: Path, number: int) -> int:
    calls = 0

    def count(_: str) -> None:
        nonlocal calls
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    def work() -> None:
        watch(folder, count)
        train(trainer)

    return done(work)


def test_a_kill_at_any_kind_of_file_system_call_of_a_run_costs_nothing(tmp_path):
    trainer = exact_runs.trainer_of(tmp_path, "reinforce", **SMALL)
    run = tmp_path / "a"
    numbers = places(trainer, run)
    unbroken = hashes.of_run(run)
    assert len(numbers) > 30
    for number in numbers:
        shutil.rmtree(run)
        assert killed_at(trainer, run, number) == signal.SIGKILL
        for path in run.glob("checkpoints/step-*"):
            load_checkpoint(path)  # nothing under its own name is half there
        for name, read in (("config.yaml", yaml.safe_load), ("run.json", json.loads)):
            if (run / name).exists():
                assert read((run / name).read_text(encoding="utf-8")), name
        for path in run.glob("model/*.safetensors"):
            load_file(path)
        assert done(lambda: train(trainer)) == 0, f"after a kill at call {number}"
        assert hashes.of_run(run) == unbroken, f"after a kill at call {number}"
        left = [path.name for path in run.rglob(".*")]
        assert len(left) <= 1 and all(name.endswith(".tmp") for name in left)


def test_a_run_that_is_killed_twenty_times_ends_as_if_nothing_had_been(tmp_path):
    sections: dict[str, Any] = SMALL | {
        "train": {"iterations": 100, "samples": 8},
        "eval": {"every": 4, "samples": 2},
    }
    sections["checkpoint"] = {"every": 3}
    whole = exact_runs.whole(tmp_path / "whole", "reinforce", **sections)
    trainer = exact_runs.trainer_of(tmp_path, "reinforce", **sections)
    run, chance = tmp_path / "a", random.Random(0)
    for _ in range(20):
        begun, wanted = time.monotonic(), rows(run) + chance.randint(0, 2)
        child = fork(lambda: train(trainer))
        while rows(run) < wanted and time.monotonic() < begun + 60:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert ended(child, time.monotonic() + 60) == signal.SIGKILL
    assert rows(run) < 101
    assert done(lambda: train(trainer)) == 0
    assert hashes.of_run(run) == hashes.of_run(whole)
    assert [row["iteration"] for row in hashes.metrics(run)] == list(range(101))


def rows(run: Path) -> int:
    """Rows that are on the disk now."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0
