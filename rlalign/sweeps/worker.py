"""One worker of a sweep: takes a trial, runs it to its end, writes down what came of it."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from rlalign.startup import say
from rlalign.sweeps.child import SAVING_SECONDS, Child, Ending, locked_log, trial_env
from rlalign.sweeps.early import Behind
from rlalign.sweeps.file import Sweep, command_line
from rlalign.sweeps.metrics import History
from rlalign.sweeps.ours import can_resume
from rlalign.sweeps.queue import Claimed, Queue

LOOK_SECONDS = 0.1


class Stopped(Exception):
    """The worker was told to stop, and its trial waits for another."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"rlalign: stopped by {signal.Signals(number).name}; the same command goes on"
        )
        self.exit_code = 128 + number


class Worker:
    def __init__(self, queue: Queue, sweep: Sweep, folder: Path) -> None:
        self.queue, self.sweep, self.folder = queue, sweep, folder
        self._signal: int | None = None  # that told it to stop
        self._beaten = 0.0

    def work(self) -> None:
        """Run trials until none is left, here or with other workers; raises Stopped."""
        with self._listening():
            while self._signal is None:
                if (claimed := self.queue.claim()) is not None:
                    self._run(claimed)
                elif self.queue.is_busy():  # what is lost there has to be done here
                    time.sleep(1)
                else:
                    return
        raise Stopped(self._signal)

    def _run(self, claimed: Claimed) -> None:
        shown = " ".join(f"{name}={value}" for name, value in claimed.values.items())
        say(f"trial {claimed.number}: {shown} -> {self.folder / claimed.folder}")
        log = self._own_log(claimed)
        if log is None:
            ending = Ending(128 + signal.SIGTERM, None, "its worker was stopped", is_lost=True)
        else:
            ending = self._follow(claimed, self._start(claimed, log))
        was_stopped = self._signal is not None and ending.is_lost
        self.queue.end(claimed, ending, was_stopped)
        say(f"trial {claimed.number}: {self._in_words(ending)}")

    def _in_words(self, ending: Ending) -> str:
        if ending.is_pruned:
            return ending.message
        if ending.value is None:
            return f"failed, exit code {ending.exit_code}: {ending.message}"
        return f"{self.sweep.metric}={ending.value}"

    def _own_log(self, claimed: Claimed) -> BinaryIO | None:
        """The trial's log once nobody else writes to it; None if the worker is to stop first."""
        path, waits = self.folder / f"{claimed.folder}.log", False
        while (log := locked_log(path)) is None:
            if not self._goes_on(claimed):
                return None
            if not waits:
                say(f"trial {claimed.number} waits: a process of its last attempt holds {path}")
            waits = True
            time.sleep(LOOK_SECONDS)
        return log

    def _start(self, claimed: Claimed, log: BinaryIO) -> Child:
        values = claimed.values | {"run.dir": str(self.folder), "run.name": claimed.folder}
        if claimed.is_retry and can_resume(command_line(self.sweep, values, Path("settings.json"))):
            values["run.resume"] = "auto"
        elif claimed.is_retry:
            set_aside(self.folder / claimed.folder)
        json_file = self.folder / f"{claimed.folder}.json"
        if "${args_json_file}" in self.sweep.command:
            json_file.write_text(json.dumps(values), encoding="utf-8")
        words = command_line(self.sweep, values, json_file)
        env = trial_env(self.folder.name)
        return Child(words, log, self.folder / claimed.folder, env)

    def _follow(self, claimed: Claimed, child: Child) -> Ending:
        """Wait for its end, with signs of life to the other workers; stop it where it must."""
        told: float | None = None
        behind: Behind | None = None
        history = History(child.folder / "metrics.jsonl", self.sweep.metric)
        while not child.has_ended():
            if history.grows() and behind is None:
                behind = self.queue.report(claimed, history.values)
            goes_on = self._goes_on(claimed) and behind is None
            if told is None and not goes_on:
                told = time.monotonic()
                child.signal(signal.SIGTERM)
            elif told is not None and time.monotonic() - told > SAVING_SECONDS:
                child.signal(signal.SIGKILL)
            time.sleep(LOOK_SECONDS)
        if history.grows():  # what came since the last look: others are measured by it
            self.queue.report(claimed, history.values)
        ending = child.ending(self.sweep.metric)
        if behind is None or not ending.is_lost:  # or it was done before it heard
            return ending
        return replace(ending, is_pruned=True, message=str(behind))

    def _goes_on(self, claimed: Claimed) -> bool:
        """Whether the trial is still to be run, by this worker."""
        if time.monotonic() - self._beaten > self.queue.heartbeat:
            self._beaten = time.monotonic()
            if not self.queue.beat(claimed):
                return False
        return self._signal is None

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Within it SIGTERM and Ctrl-C are requests to stop."""

        def requested(number: int, frame: FrameType | None) -> None:
            self._signal = self._signal or number

        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, requested) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def set_aside(run: Path) -> None:
    """Rename the folder of a run that cannot be gone on with, so that it can begin anew."""
    number = 1
    while (aside := run.with_name(f"{run.name}.cut-{number}")).exists():
        number += 1
    if run.exists():
        run.rename(aside)
