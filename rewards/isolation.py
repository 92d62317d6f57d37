"""A reward in a worker process, so that a sample which hangs or crashes it costs a deadline.

The worker is a new interpreter: a fork would copy locks that torch's threads hold. It is sent
pickles and answers with lines of JSON, so that nothing a reward sends back is run in here.
`rewards/worker.py` is what runs in there.
"""

import copy
import json
import os
import pickle
import secrets
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rewards import classifiers, registry
from rewards.asking import Call
from rewards.contract import (
    Failure,
    RewardConfigError,
    Score,
    Span,
    WorkerFault,
    WorkerLost,
    WorkerUnstartable,
)
from rewards.returned import Item, Wrong
from rewards.spec import RewardSpec
from rewards.worker import Origin

DEADLINE = 30.0  # seconds for a call where the entry states none
START_SECONDS = 600.0  # for each step of a start, which may load a model from a cold disk
LARGEST_REPLY = 1 << 28  # bytes; a reward that fills the pipe must not fill this process
_MARK = "RLALIGN_WORKER"  # in the environment of a worker and of all that it starts
_ROUNDS = 20  # in which they are looked for
# sys.path is set first: the worker must import the packages that this process did.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[2:]; from rewards.worker import work; "
    "work(int(sys.argv[1]))"
)


class Worker:
    """A process that runs rewards of one kind, used by one thread at a time.

    It is started when it is first needed, and again after it was lost.
    """

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec
        self.starts = 0  # so that what was built in an earlier process is known to be gone
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., Any] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def run(self) -> None:
        if self.is_running:
            return
        self.close()
        origin = _origin(self.spec)
        mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        process = self._process = _start(mark)
        self._end = weakref.finalize(self, _kill, process, os.getpid(), mark)  # runs at exit, too
        self.starts += 1
        self.ask("open", origin, seconds=START_SECONDS)

    def ask(self, task: str, *data: Any, seconds: float) -> Any:
        """What a task comes to in the running worker, which is gone where WorkerLost is raised."""
        assert self._process is not None
        message = pickle.dumps((task, *data))
        try:
            reply = json.loads(_exchange(self._process, message, seconds))
        except TimeoutError:
            fault = f"took more than {seconds:.3g} s"
        except (EOFError, OSError):
            fault = f"ended its worker process ({_ending(self._process)})"
        except ValueError:
            fault = "wrote into its worker's pipe"
        except OverflowError:
            fault = f"sent back more than {LARGEST_REPLY >> 20} MiB"
        except BaseException:  # an interrupt: the reply must not be taken for the next call's
            self.close()
            raise
        else:
            return _answered(reply)
        self.close()
        raise WorkerLost(fault)

    def close(self) -> None:
        """End the process and what it started."""
        if self._end is not None:
            self._end()
        self._process = self._end = None


class Isolated:
    """A reward that runs in a worker; `call` calls it.

    Raises WorkerFault where the reward raises, hangs or crashes; after a loss the next call starts
    a new worker, which goes on from the state after the last call that returned, and raises
    WorkerUnstartable where that fails.
    """

    def __init__(
        self,
        spec: RewardSpec,
        params: Mapping[str, Any],
        deadline: float,
        worker: Worker | None = None,
        seed: int | None = None,
    ) -> None:
        """Without a worker it starts one of its own; one that is given outlives it."""
        self._worker, self._is_owner = worker or Worker(spec), worker is None
        self._deadline, self._seed = deadline, seed
        self._loads, self._built_in = False, 0
        self._columns: tuple[str, ...] = ()
        self._state: dict[str, Any] | None = None
        # Parameters are pickled apart: their types may be defined in the reward file.
        self._params = pickle.dumps(dict(params))
        try:
            self._build()
        except BaseException:
            if self._is_owner:
                self._worker.close()
            raise

    def load(self) -> None:
        self._build()
        self._worker.ask("load", id(self), seconds=START_SECONDS)
        self._loads = True

    def columns_read(self) -> Sequence[str]:
        return self._columns

    def call(
        self, columns: Mapping[str, Any], size: int, call: Call, *, alone: bool = False
    ) -> list[Item] | Wrong:
        """What it returns for `size` samples; those that are tried alone are searched."""
        seconds = call.search.deadline(self._deadline)
        try:
            self._build()
        except (WorkerFault, RewardConfigError) as error:
            spec = self._worker.spec
            raise WorkerUnstartable(
                f"the worker of {spec.kind} ({spec.source}) does not start again: {error}"
            ) from error
        with call.search.counting(always=alone):
            returned = self._worker.ask(
                "call", id(self), dict(columns), size, call.seed, seconds=seconds
            )
            if self._worker.spec.is_stateful:
                self._state = self._worker.ask("state", id(self), seconds=seconds)
        return Wrong(returned) if isinstance(returned, str) else [_item(x) for x in returned]

    @property
    def state(self) -> dict[str, Any]:
        """That after the last call which returned, of a reward that has one."""
        if self._state is None:
            self._build()
            self._state = self._worker.ask("state", id(self), seconds=START_SECONDS)
        return copy.deepcopy(self._state)

    def restore(self, state: dict[str, Any]) -> None:
        # A worker that is lost gets it with its next start: one that was ended because the run is
        # to stop would be started in vain, and there is little time.
        if self._worker.is_running and self._built_in == self._worker.starts:
            self._worker.ask("restore", id(self), state, seconds=START_SECONDS)
        self._state = copy.deepcopy(state)

    def close(self) -> None:
        """End the worker, if it is its own; a later call would start another."""
        if self._is_owner:
            self._worker.close()
        elif self._worker.is_running and self._worker.starts == self._built_in:
            with suppress(WorkerLost):
                self._worker.ask("drop", id(self), seconds=START_SECONDS)
            self._built_in = 0

    def _build(self) -> None:
        """Have the reward built and loaded in a worker that runs."""
        self._worker.run()
        if self._built_in == self._worker.starts:
            return
        ask, number = self._worker.ask, id(self)
        columns = ask("build", number, self._params, self._seed, seconds=START_SECONDS)
        if self._loads:
            ask("load", number, seconds=START_SECONDS)
        if self._state is not None:
            ask("restore", number, self._state, seconds=START_SECONDS)
        self._columns, self._built_in = tuple(columns), self._worker.starts


def _origin(spec: RewardSpec) -> Origin:
    device = classifiers.device()
    found = registry.file_of(spec.kind)
    if found is not None:
        return Origin(spec.kind, *found, "", device)
    module, name = spec.target.__module__, spec.target.__qualname__
    if module == "__main__" or "<locals>" in name:
        raise RewardConfigError(
            f"isolate=True needs a reward that another process can import, but {spec.kind} "
            f"({spec.source}) is defined in a script or a function; put it into a file and name "
            "that in reward_files"
        )
    return Origin(spec.kind, None, b"", module, device)


def _start(mark: str) -> subprocess.Popen[bytes]:
    above = os.environ.get(_MARK, "")  # a reward in a worker may have rewards in workers
    environment = {**os.environ, _MARK: f"{above}/{mark}"}
    if "torch" in sys.modules:  # the worker computes while this process waits: as many threads
        environment["OMP_NUM_THREADS"] = str(sys.modules["torch"].get_num_threads())
    return subprocess.Popen(
        [sys.executable, "-u", "-c", _PROGRAM, str(os.getpid()), *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # a group to kill, which Ctrl-C in a terminal does not reach
    )


def _kill(process: subprocess.Popen[bytes], owner: int, mark: str) -> None:
    if os.getpid() != owner:  # a fork of this process that exits
        return
    with suppress(ProcessLookupError, PermissionError):  # it crashed, and left nothing behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(_ROUNDS):  # one may start another before its own turn comes
        if not _kill_marked(mark):
            break
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _kill_marked(mark: str) -> bool:
    """End what the worker started and what has left its group; whether there was any."""
    name, found = f"{_MARK}=".encode(), False
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            variables = (folder / "environ").read_bytes().split(b"\0")
            if any(v.startswith(name) and mark.encode() in v for v in variables):
                os.kill(int(folder.name), signal.SIGKILL)
                found = True
    return found


def _ending(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return "closed its pipe"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _exchange(process: subprocess.Popen[bytes], message: bytes, seconds: float) -> bytes:
    """The line that answers; TimeoutError, or EOFError and OSError where the worker is gone."""
    assert process.stdin is not None and process.stdout is not None
    to, back = process.stdin.fileno(), process.stdout.fileno()
    left, reply = memoryview(len(message).to_bytes(8, "big") + message), bytearray()
    poll, end = select.poll(), time.monotonic() + seconds
    poll.register(to, select.POLLOUT)
    poll.register(back, select.POLLIN)
    while not reply.endswith(b"\n"):
        remaining = end - time.monotonic()
        ready = dict(poll.poll(remaining * 1000)) if remaining > 0 else {}
        if not ready:
            raise TimeoutError
        if to in ready:
            left = left[os.write(to, left[: select.PIPE_BUF]) :]  # no more, or it could block
            if not left:
                poll.unregister(to)
        if back in ready:
            part = os.read(back, 1 << 16)
            if not part:
                raise EOFError
            reply += part
            if len(reply) > LARGEST_REPLY:
                raise OverflowError
    return bytes(reply)


def _answered(reply: dict[str, Any]) -> Any:
    if "misconfigured" in reply:
        raise RewardConfigError(reply["misconfigured"])
    if "raised" in reply:
        fault = WorkerFault(f"raised {reply['raised']}")
        fault.add_note(f"In the worker:\n{reply['traceback']}")
        raise fault
    return reply["returned"]


def _item(item: Any) -> Item:
    if isinstance(item, dict):
        return Failure(item["failure"]) if "failure" in item else Wrong(item["wrong"])
    if isinstance(item, list):
        value, spans = item
        return Score(value, [Span(*span) for span in spans])
    return None if item is None else float(item)
