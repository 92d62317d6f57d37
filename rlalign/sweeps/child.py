"""A trial's process: started so that it cannot outlive its worker, and what became of it."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rlalign.files import FileError, read_json
from rlalign.sweeps.metrics import read_value

PR_SET_PDEATHSIG = 1
SAVING_SECONDS = 40.0  # what a run that is told to stop gets, before it is killed
OF_AN_AGENT = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")  # an agent's own run
KILLED, PREEMPTED = 137, 143  # exit codes; see rlalign.exits


@dataclass(frozen=True)
class Ending:
    """How a trial's process ended: with a value, or with the reason why there is none."""

    exit_code: int  # of the run, as run.json has it where a launcher hides it
    value: float | None
    message: str
    is_lost: bool = False  # killed or told to stop from outside: no fault of the trial's own
    is_pruned: bool = False  # stopped early, because others did better


class Child:
    """A trial's process and all that it starts.

    Its log is what it prints, and a lock: as long as any process of it lives, the log cannot be
    locked anew. So nobody goes on in a run's folder while another still writes to it.
    """

    def __init__(
        self, command: Sequence[str], log: BinaryIO, folder: Path, env: Mapping[str, str]
    ) -> None:
        """Start it; `log` is one that `locked_log` gave, `folder` the run's own."""
        self.folder, self.log = folder, Path(log.name)
        self._run_before = _run_json(folder)
        self._ended: float | None = None
        worker = os.getpid()
        libc = ctypes.CDLL(None)

        def die_with_worker() -> None:
            if sys.platform == "linux":
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != worker:  # it died before the kernel was asked
                os._exit(1)

        with log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                preexec_fn=die_with_worker,
                start_new_session=True,  # Ctrl-C in a terminal is for the worker, which tells it
            )

    def has_ended(self) -> bool:
        """Whether it is gone, and all that it started; what stays too long is killed."""
        if self._process.poll() is None:
            return False
        self._ended = self._ended or time.monotonic()
        if (log := locked_log(self.log)) is not None:
            log.close()
            return True
        if time.monotonic() - self._ended < SAVING_SECONDS:
            return False
        self.signal(signal.SIGKILL)
        return True

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def ending(self, metric: str) -> Ending:
        """What became of it, once it has ended."""
        code, run = self._process.wait(), _run_json(self.folder)
        message = ""
        if run.get("ended_at") != self._run_before.get("ended_at"):  # this attempt wrote it
            code = code if run.get("exit_code") is None else run["exit_code"]
            message = str(run.get("message") or "")
        if code == 0:
            value, message = read_value(self.folder / "metrics.jsonl", metric)
            return Ending(code, value, message)
        if code < 0:
            message = message or f"killed by {signal.Signals(-code).name}"
        is_lost = code < 0 or code in (KILLED, PREEMPTED)
        return Ending(code, None, message or _last_line(self.log), is_lost)


def trial_env(group: str) -> dict[str, str]:
    """A trial's environment: its W&B run is off line unless asked otherwise, in the sweep's group.

    `python` and `accelerate` are those of this environment, whether or not it is activated.
    """
    env = {name: value for name, value in os.environ.items() if name not in OF_AN_AGENT}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {"WANDB_MODE": "offline"} | env | {"WANDB_RUN_GROUP": group, "PATH": path}


def locked_log(path: Path) -> BinaryIO | None:
    """The log, open and locked; None where a process that writes to it is still alive."""
    log = path.open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return None
    return log


def _run_json(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "run.json")
    except FileError:
        return {}


def _last_line(log: Path) -> str:
    """The last line that it printed."""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - 4096, 0))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
