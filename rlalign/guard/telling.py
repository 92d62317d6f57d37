"""A rank's side: start this machine's guard, and tell it where the rank is and how it ends."""

import faulthandler
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlalign.guard import stopping
from rlalign.guard.watching import MESSAGE_BYTES
from rlalign.guard.whereabouts import HERE
from rlalign.ranks import Ranks, is_launched
from rlalign.redact import redact_text
from rlalign.terminal import printable

logger = logging.getLogger(__name__)

REPLY_SECONDS = 10.0
LONGEST = 8000  # characters of a message


@dataclass(frozen=True)
class Cause:
    """Why a run ends, as its guard sees it: the first failure on this machine."""

    rank: int
    status: str
    exit_code: int
    message: str
    where: str


class Guarded:
    """A rank that its guard watches. What cannot be told is not: no guard must end a run."""

    def __init__(self, place: Path, rank: int, timeout: float, grace: float) -> None:
        self.rank, self._place = rank, place
        self._cause: Cause | None = None
        self._said = ("", "")  # where this rank was, and how that was told
        self._is_mute = False
        # Of packets: one is whole, whichever thread or signal handler sends another meanwhile.
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(REPLY_SECONDS)
        self._socket.connect(str(place / "socket"))
        self._stacks = open(place / f"stacks-rank{rank}.txt", "w")  # noqa: SIM115 - until the end
        faulthandler.register(signal.SIGUSR2, self._stacks)
        launcher = os.getppid() if is_launched() else 0
        self._tell(number=rank, pid=os.getpid(), launcher=launcher, limit=timeout, grace=grace)
        os.register_at_fork(after_in_child=self._close)  # or a child would keep this end open
        HERE.on_life = self._alive
        stopping.on_request.append(lambda: self._tell(stopping=True))
        self._alive()

    def found(self, run: Path) -> None:
        """Say which folder is the run's, from the rank that writes there."""
        self._tell(run=str(run.absolute()))

    def cause(self, status: str, exit_code: int, message: str, is_echo: bool) -> Cause | None:
        """Say that this rank fails, and hear why the run ends: the first failure of all.

        `is_echo`: what broke is the connection to another rank, which has a reason of its own.
        """
        if self._cause is None:
            told = {"status": status, "exit_code": exit_code, "message": message[:LONGEST]}
            self._tell(failure=told | {"where": where(), "is_echo": is_echo})
            try:
                is_told = self._socket is not None and not self._is_mute
                reply = self._socket.recv(MESSAGE_BYTES) if self._socket and is_told else b""
            except OSError:
                reply = b""
            self._cause = Cause(**json.loads(reply)) if reply else None
        return self._cause

    def leave(self) -> None:
        """The last word: how this rank has ended is written down."""
        self._tell(left=True)
        HERE.on_life = None
        stopping.on_request.clear()
        faulthandler.unregister(signal.SIGUSR2)
        self._stacks.close()
        self._close()
        if self._is_mute:  # the guard is gone, which would have done it
            shutil.rmtree(self._place, ignore_errors=True)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _alive(self) -> None:
        now = str(HERE)
        if now != self._said[0]:
            self._said = now, where()
        # Not waited for: what is lost of it is said again soon.
        self._tell(socket.MSG_DONTWAIT, where=self._said[1], is_waiting=HERE.is_waiting)

    def _tell(self, flags: int = 0, **said: Any) -> None:
        if self._socket is None or self._is_mute:
            return
        try:
            self._socket.send(json.dumps(said, ensure_ascii=False).encode(), flags)
        except BlockingIOError:
            pass
        except OSError:  # it stays open, because its end would be taken for this process's
            self._is_mute = True


def where() -> str:
    """Where this rank is; what rewards were given is text of a model, and is made harmless."""
    return printable(redact_text(str(HERE)))[:LONGEST]


def guarded(ranks: Ranks, timeout: float, grace: float) -> Guarded | None:
    """Start the guard of this machine, once, and connect to it; every rank calls it.

    None, with a warning, where there can be none: a run must not depend on it.
    """
    if sys.platform != "linux":  # the sockets, /proc, and the death of a parent are Linux's
        return None
    place = ""
    if ranks.local_rank == 0:
        try:
            place = str(_start(sum(host == ranks.host for host in ranks.hosts)))
        except OSError as error:
            logger.warning("no guard could be started, and the run goes on without: %s", error)
    places = dict(ranks.gather([(ranks.host, place)] if ranks.local_rank == 0 else []))
    if not places.get(ranks.host):
        return None
    try:
        return Guarded(Path(places[ranks.host]), ranks.rank, timeout, grace)
    except OSError as error:
        logger.warning("the guard does not answer, and the run goes on without: %s", error)
        return None


def _start(expected: int) -> Path:
    """A guard for so many ranks; the folder where its socket is."""
    root = tempfile.gettempdir()
    # A socket's path may have 107 characters.
    place = Path(tempfile.mkdtemp(prefix="rlalign-", dir=root if len(root) < 70 else "/tmp"))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(str(place / "socket"))
        listener.listen(expected)
        subprocess.Popen(
            [sys.executable, "-P", "-m", "rlalign.guard.watching", str(listener.fileno()),
             str(expected), str(place), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # what is sent to the ranks' group is not meant for it
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    finally:
        listener.close()
    return place
