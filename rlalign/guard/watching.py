"""The guard's side: hear the ranks of this machine, judge, end those that would wait for ever.

    python -m rlalign.guard.watching FD RANKS FOLDER STARTER

A process of its own, because a rank whose Python does not run any more (in a loop in C, in a
collective, killed) can neither judge itself nor be judged by a thread in it. It needs the standard
library alone. FD is a listening socket, FOLDER its folder, into which ranks dump their stacks, and
STARTER the process that started it.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlalign.files import FileError, read_json, write_atomically

LOOK_SECONDS = 0.25
LOST_SECONDS = 5.0  # a turn that takes longer was frozen, with all the machine or this job
MEETING_SECONDS = 60.0  # in which all ranks connect, or are not waited for any more
OTHERS_SECONDS = 5.0  # what the other ranks get to end by themselves once one has failed
CLOSING_SECONDS = 20.0  # what a rank that has said how it fails may take to close what it holds
ECHO_SECONDS = 2.0  # how long a lost connection waits for the failure that tore it
MESSAGE_BYTES = 1 << 17  # of one message, which arrives whole
HUNG, KILLED, PREEMPTED = 7, 137, 143  # exit codes; see rlalign.exits


@dataclass
class Rank:
    """What is known of one rank."""

    connection: socket.socket
    number: int = -1
    pid: int = 0
    launcher: int = 0  # its parent where that is a launcher, else 0
    limit: float = 0.0  # seconds without a sign of life before the run counts as hung
    grace: float = 0.0  # seconds to save in when told to stop
    where: str = "start"
    is_waiting: bool = False
    heard: float = field(default_factory=time.monotonic)
    stopping: float | None = None  # since when
    failure: dict[str, Any] | None = None
    has_left: bool = False  # it ended as it should
    is_gone: bool = False


@dataclass(frozen=True)
class Verdict:
    """Why the run ends."""

    rank: int
    status: str
    exit_code: int
    message: str
    where: str


class Guard:
    """Reads what ranks say until the last of them is gone."""

    def __init__(self, listener: socket.socket, expected: int, folder: Path, starter: int) -> None:
        self.listener, self.expected, self.folder = listener, expected, folder
        self.starter = starter
        self.began = time.monotonic()
        self.ranks: list[Rank] = []
        self.run: Path | None = None  # the run's folder
        self.verdict: Verdict | None = None
        self.judged = 0.0
        self.asked: list[tuple[float, Rank]] = []  # echoes that wait for their cause
        self.has_stopped: float | None = None  # since when the ranks are told to stop
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)

    def watch(self) -> None:
        while not self._is_over():
            turn = time.monotonic()
            for key, _ in self.selector.select(LOOK_SECONDS):
                if key.fileobj is self.listener:
                    connection, _ = self.listener.accept()
                    rank = Rank(connection)
                    self.ranks.append(rank)
                    self.selector.register(connection, selectors.EVENT_READ, rank)
                else:
                    self._read(key.data)
            if (frozen := time.monotonic() - turn) > LOST_SECONDS:
                self._pass_over(frozen)
            self._answer_echoes()
            self._look()
        self._close()

    def _is_over(self) -> bool:
        """Whether nobody is left to watch, and nobody more will come."""
        if any(not rank.is_gone for rank in self.ranks):
            return False
        return len(self.ranks) >= self.expected or os.getppid() != self.starter

    def _pass_over(self, seconds: float) -> None:
        """A time in which nobody could show life is not held against anybody."""
        for rank in self.ranks:
            rank.heard += seconds
        self.judged += seconds
        self.began += seconds
        if self.has_stopped is not None:
            self.has_stopped += seconds
        self.asked = [(until + seconds, rank) for until, rank in self.asked]

    # -- what ranks say ------------------------------------------------------------------------

    def _read(self, rank: Rank) -> bool:
        """Hear one message; whether there was one."""
        try:
            message = rank.connection.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            message = b""
        if not message:
            self._lost(rank)
            return False
        rank.heard = time.monotonic()
        with contextlib.suppress(ValueError):
            self._hear(rank, json.loads(message))
        return True

    def _hear(self, rank: Rank, said: dict[str, Any]) -> None:
        for name in ("number", "pid", "launcher", "limit", "grace", "where", "is_waiting"):
            if name in said:
                setattr(rank, name, said[name])
        if "run" in said:
            self.run = Path(said["run"])
        if "stopping" in said:
            rank.stopping = rank.heard
        if "left" in said:
            rank.has_left = True
        if "failure" in said:
            rank.failure = said["failure"]
            if said["failure"]["is_echo"] and self.verdict is None:
                self.asked.append((rank.heard + ECHO_SECONDS, rank))
                return
            self._judge(rank, **{k: v for k, v in said["failure"].items() if k != "is_echo"})
            self._answer(rank)

    def _lost(self, rank: Rank) -> None:
        rank.is_gone = True
        self.selector.unregister(rank.connection)
        rank.connection.close()
        if not rank.has_left and rank.failure is None and rank.pid:
            message = (
                f"{rank.where}: the process ended without a word: it was killed (by the system "
                "when memory runs out, or by hand) or crashed; a named run goes on from its last "
                "checkpoint with --run.resume=auto"
            )
            self._judge(rank, "failed", KILLED, message, rank.where)

    def _answer_echoes(self) -> None:
        now = time.monotonic()
        waiting, self.asked = self.asked, []
        for until, rank in waiting:
            if self.verdict is None and now < until:
                self.asked.append((until, rank))
                continue
            if self.verdict is None:
                assert rank.failure is not None
                self._judge(rank, **{k: v for k, v in rank.failure.items() if k != "is_echo"})
            self._answer(rank)

    def _answer(self, rank: Rank) -> None:
        assert self.verdict is not None
        with contextlib.suppress(OSError):
            rank.connection.send(json.dumps(vars(self.verdict)).encode())

    # -- what is done about it -----------------------------------------------------------------

    def _judge(self, rank: Rank, status: str, exit_code: int, message: str, where: str) -> None:
        """The first verdict stands: what comes after is its consequence."""
        if self.verdict is None:
            self.verdict = Verdict(rank.number, status, exit_code, message, where)
            self.judged = time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        if len(self.ranks) < self.expected and now - self.began > MEETING_SECONDS:
            self.expected = max(len(self.ranks), 1)
        for rank in self._present():  # a child may hold the socket of a process that is gone
            if _state(rank.pid) in ("", "Z"):
                while not rank.is_gone and self._read(rank):
                    pass  # its last words
                if not rank.is_gone:
                    self._lost(rank)
        self._forward_stop(now)
        present = self._present()
        if self.verdict is None and self._is_hung(present, now):
            self._judge_hung(present)
        for rank in present:
            if self.verdict is not None and self.verdict.status != "preempted":
                patience = OTHERS_SECONDS if rank.failure is None else CLOSING_SECONDS
                overdue = now - self.judged > patience
            else:
                overdue = self.has_stopped is not None and now - self.has_stopped > rank.grace
            if overdue:
                self._judge(
                    rank, "preempted", PREEMPTED,
                    f"stopped, but could not save within run.grace={rank.grace:g} s; it goes on "
                    "from its last checkpoint with --run.resume=auto and the same --run.name",
                    rank.where,
                )  # fmt: skip
                _signal(rank, signal.SIGKILL)

    def _forward_stop(self, now: float) -> None:
        """A rank was told to stop, or the launcher is gone: all of them stop."""
        present = self._present()
        orphaned = any(rank.launcher and _parent(rank.pid) != rank.launcher for rank in present)
        if self.has_stopped is None and (orphaned or any(rank.stopping for rank in present)):
            self.has_stopped = now
            for rank in present:
                if rank.stopping is None:
                    _signal(rank, signal.SIGTERM)

    def _is_hung(self, present: list[Rank], now: float) -> bool:
        """Whether no rank has shown a sign of life for as long as the run allows."""
        if self.run is None or len(present) < self.expected:  # models are fetched and loaded first
            return False
        is_silent = all(0 < rank.limit < now - rank.heard for rank in present)
        # Where all are stopped somebody did that, in a debugger or by hand, and goes on later.
        return is_silent and not all(_state(rank.pid) in ("T", "t") for rank in present)

    def _judge_hung(self, present: list[Rank]) -> None:
        silent = [rank for rank in present if not rank.is_waiting] or present
        for rank in present:
            _signal(rank, signal.SIGUSR2)  # faulthandler's: it dumps the stacks even out of C
        time.sleep(2 * LOOK_SECONDS)
        names = " and ".join(rank.where for rank in silent)
        stacks = f"; their stacks are in {self.run}/stacks-*.txt" if self.run else ""
        self._judge(
            silent[0], "failed", HUNG,
            f"hung: no sign of life from {names} for run.timeout={silent[0].limit:g} s{stacks}; "
            "raise run.timeout if that is how long it takes; isolate: true gives a reward a "
            "deadline of its own",
            silent[0].where,
        )  # fmt: skip
        for rank in present:
            _signal(rank, signal.SIGKILL)

    def _present(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.pid and not rank.is_gone]

    def _close(self) -> None:
        """Write down what the ranks could not."""
        for stacks in self._stacks():
            with contextlib.suppress(OSError):
                if self.run is not None:
                    shutil.copy(stacks, self.run / stacks.name)
        verdict = self.verdict
        if verdict is not None and self.run is not None:
            with contextlib.suppress(OSError, FileError):
                complete_run_json(self.run / "run.json", verdict)
        if verdict is not None and all(rank.failure is None for rank in self.ranks):
            print(f"rlalign: {verdict.message}", file=sys.stderr, flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stacks(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (p for p in self.folder.glob("stacks-*.txt") if p.stat().st_size)


def complete_run_json(path: Path, verdict: Verdict) -> None:
    """How the run ended, where no rank has written it down."""
    content = read_json(path)
    if content.get("status") != "running":
        return
    content |= {
        "status": verdict.status,
        "exit_code": verdict.exit_code,
        "message": verdict.message,
        "where": {"rank": verdict.rank, "at": verdict.where},
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _signal(rank: Rank, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(rank.pid, number)


def _parent(pid: int) -> int:
    """The parent of a process, 0 where it is gone."""
    return int([*_stat(pid), "0", "0"][1])


def _state(pid: int) -> str:
    """R, S, T (stopped), Z (ended, not yet heard of by its parent), …; empty where it is gone."""
    return [*_stat(pid), ""][0]


def _stat(pid: int) -> list[str]:
    try:
        # The name, in brackets, may hold spaces and brackets itself.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return []


def main() -> None:
    descriptor, expected, folder, starter = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when the last rank does
    listener = socket.socket(fileno=int(descriptor))
    Guard(listener, int(expected), Path(folder), int(starter)).watch()


if __name__ == "__main__":
    main()
