"""Runs in several processes within a second or two: forked from one that has imported everything.

    python tests/launching.py        reads jobs from stdin, a JSON line each

A job is a process that starts the ranks and waits for them, as a launcher does; unlike torch's it
never ends the others when one fails, so whatever ends them is ours.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ports import free_port

TESTS = Path(__file__).parent


@dataclass
class Job:
    """A launched run."""

    launcher: int
    folder: Path  # where it runs, and where what it prints goes
    mark: str

    def wait(self, seconds: float) -> list[int]:
        """The ranks' exit codes, negative for a signal; TimeoutError if they take longer."""
        end = time.monotonic() + seconds
        while not (self.folder / f"{self.mark}.codes").exists():
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds} s there are left: {self.survivors()}")
            time.sleep(0.05)
        return json.loads((self.folder / f"{self.mark}.codes").read_text())

    def wait_for_nobody(self, seconds: float) -> None:
        """Until no process of the job is left; TimeoutError if some live longer."""
        end = time.monotonic() + seconds
        while left := self.survivors():
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds} s there are left: {left}")
            time.sleep(0.05)

    def survivors(self) -> list[int]:
        """Every process that was started by the job: those of its session, and its guard."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                environment = (place / "environ").read_bytes()
                state, _, _, session = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            is_guard = f"RLALIGN_TEST_JOB={self.mark}".encode() in environment
            if state != "Z" and (is_guard or int(session) == self.launcher):
                found.append(int(place.name))
        return sorted(found)

    def _ranks(self) -> list[int]:
        file = self.folder / f"{self.mark}.pids"
        return json.loads(file.read_text()) if file.exists() else []

    @property
    def has_begun(self) -> bool:
        return bool(self._ranks())

    @property
    def ranks(self) -> list[int]:
        """Their process ids, once all are started."""
        while not self._ranks():
            time.sleep(0.02)
        return self._ranks()

    @property
    def stderr(self) -> str:
        file = self.folder / f"{self.mark}.err"
        return file.read_text(errors="replace") if file.exists() else ""


class Server:
    """The process that everything is forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "launching.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._count = 0

    def launch(
        self,
        folder: Path,
        argv: Sequence[str],
        ranks: int = 2,
        faults: Sequence[dict[str, Any]] = (),
    ) -> Job:
        """Start `rlalign METHOD ...` in so many processes."""
        self._count += 1
        mark = f"job{os.getpid()}-{self._count}"
        job = {"folder": str(folder), "argv": list(argv), "ranks": ranks, "mark": mark}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job | {"faults": list(faults)}) + "\n")
        self._process.stdin.flush()
        return Job(int(self._process.stdout.readline()), folder, mark)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def is_alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


# -- the server's side -----------------------------------------------------------------------------


def serve() -> None:
    import faults  # and with it torch, transformers and the run itself

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for launchers
    for line in sys.stdin:
        job = json.loads(line)
        port = free_port()
        if pid := os.fork():
            print(pid, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        launch(job, port, faults)


def launch(job: dict[str, Any], port: int, faults: Any) -> None:
    """A launcher's life."""
    os.setsid()
    os.chdir(job["folder"])
    out = os.open(f"{job['mark']}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(out, descriptor)
    pids = []
    for rank in range(job["ranks"]):
        if pid := os.fork():
            pids.append(pid)
            continue
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["ranks"]),
            "LOCAL_WORLD_SIZE": str(job["ranks"]), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "ACCELERATE_USE_CPU": "true",
            "RLALIGN_TEST_JOB": job["mark"],
        }  # fmt: skip
        code = 99
        try:
            faults.RANK = rank
            faults.install(job["faults"])
            code = faults.main(job["argv"])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    write(f"{job['mark']}.pids", pids)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    write(f"{job['mark']}.codes", codes)
    os._exit(0)


def write(name: str, content: object) -> None:
    Path(name + ".tmp").write_text(json.dumps(content))
    os.rename(name + ".tmp", name)


if __name__ == "__main__":
    serve()
