"""A reward in a worker process, so that a sample which hangs or crashes it costs a deadline.

The worker is a new interpreter: a fork would copy locks that torch's threads hold. It is sent
pickles and answers with lines of JSON, so that nothing a reward sends back is run in here.
"""

import ctypes
import faulthandler
import importlib
import json
import operator
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards import classifiers, registry
from rewards.contract import (
    Loads,
    Reward,
    RewardConfigError,
    RewardError,
    Score,
    Span,
    WorkerFault,
    WorkerLost,
    as_float,
    brief,
    described,
    plain,
)
from rewards.spec import RewardSpec

DEADLINE = 30.0  # seconds for a call where the entry states none
START_SECONDS = 600.0  # for each step of a start, which may load a model from a cold disk
PR_SET_PDEATHSIG = 1
# sys.path is set first: the worker must import the packages that this process did.
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[2:]; from rewards.isolation import work; "
    "work(int(sys.argv[1]))"
)


@dataclass(frozen=True)
class Foreign:
    """What can be said of something that a worker's reward returned and that is no value."""

    type_name: str
    shown: str


@dataclass(frozen=True)
class Origin:
    """Where a worker finds a kind, and on what device its models are to run."""

    kind: str
    file: Path | None  # a reward file; its code is sent as it was when the run began
    code: bytes
    module: str
    device: str


class Isolated:
    """A reward that runs in a worker, called like the reward itself, by one thread at a time.

    Raises WorkerFault where the reward raises, hangs or crashes; after a loss the next call starts
    a new worker, and raises RewardError where that fails.
    """

    def __init__(self, spec: RewardSpec, params: Mapping[str, Any], deadline: float) -> None:
        self._spec, self._deadline = spec, deadline
        self._steps: list[tuple[str, Any]] = [
            # Parameters are pickled apart: their types may be defined in the reward file.
            ("build", (_origin(spec), pickle.dumps(dict(params))))
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., Any] | None = None
        try:
            self._running()
        except BaseException:
            self.close()
            raise

    def load(self) -> None:
        step = ("load", None)
        self._ask(self._running(), step, START_SECONDS)
        self._steps.append(step)

    def __call__(self, **columns: Any) -> object:
        try:
            process = self._running()
        except (WorkerFault, RewardConfigError) as error:
            raise RewardError(
                f"the worker of {self._spec.kind} ({self._spec.source}) does not start again: "
                f"{error}"
            ) from error
        return _returned(self._ask(process, ("call", columns), self._deadline))

    def close(self) -> None:
        """End the worker and what it started; a later call would start another."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _running(self) -> subprocess.Popen[bytes]:
        """The worker, with the reward built and loaded; a new one where the old one is gone."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        process = self._process = _start()
        self._end = weakref.finalize(self, _kill, process, os.getpid())  # runs at exit, too
        for step in self._steps:
            self._ask(process, step, START_SECONDS)
        return process

    def _ask(
        self, process: subprocess.Popen[bytes], request: tuple[str, Any], seconds: float
    ) -> Any:
        message = pickle.dumps(request)
        try:
            reply = json.loads(_exchange(process, message, seconds))
        except TimeoutError:
            fault = f"took more than {seconds:g} s"
        except (EOFError, OSError):
            fault = f"ended its worker process ({_ending(process)})"
        except ValueError:
            fault = "wrote into its worker's pipe"
        except BaseException:  # an interrupt: the reply must not be taken for the next call's
            self.close()
            raise
        else:
            return _answered(reply)
        self.close()
        raise WorkerLost(fault)


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


def _start() -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if "torch" in sys.modules:  # the worker computes while this process waits: as many threads
        environment["OMP_NUM_THREADS"] = str(sys.modules["torch"].get_num_threads())
    return subprocess.Popen(
        [sys.executable, "-u", "-c", _PROGRAM, str(os.getpid()), *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # a group to kill, which Ctrl-C in a terminal does not reach
    )


def _kill(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork of this process that exits
        return
    with suppress(ProcessLookupError, PermissionError):  # it crashed, and left nothing behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


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
    return bytes(reply)


def _answered(reply: dict[str, Any]) -> Any:
    if "misconfigured" in reply:
        raise RewardConfigError(reply["misconfigured"])
    if "raised" in reply:
        fault = WorkerFault(f"raised {reply['raised']}")
        fault.add_note(f"In the worker:\n{reply['traceback']}")
        raise fault
    return reply["returned"]


def _returned(items: Any) -> object:
    return [_item(item) for item in items] if isinstance(items, list) else Foreign(**items)


def _item(item: Any) -> object:
    if isinstance(item, dict):
        return Foreign(**item)
    if isinstance(item, list):
        value, spans = item
        return Score(value, [Span(*span) for span in spans])
    return item


def work(parent: int) -> None:
    """A worker's life: answer until the pipe closes or the parent ends."""
    _die_with(parent)
    # Whether a batch is given up is the parent's to decide, which hears the same signals.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a reward prints must not be taken for a reply
    reward: list[Reward] = []
    while size := requests.read(8):
        reply = _reply(requests.read(int.from_bytes(size, "big")), reward)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
    os._exit(0)  # whatever threads the reward has left running


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, however busy it is then.

    Its parent is the thread that started it: one that ends takes its workers along.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _reply(message: bytes, reward: list[Reward]) -> dict[str, Any]:
    try:
        task, data = pickle.loads(message)
        if task == "build":
            reward.append(_build(*data))
        elif task == "load" and isinstance(reward[0], Loads):
            reward[0].load()
        return {"returned": _sent(reward[0](**data)) if task == "call" else None}
    except RewardConfigError as error:
        return {"misconfigured": str(error)}
    except (Exception, SystemExit) as error:
        return {"raised": described(error), "traceback": traceback.format_exc()}


def _build(origin: Origin, params: bytes) -> Reward:
    classifiers.set_device(origin.device)
    if origin.file is not None:
        registry.load_code(origin.file, origin.code)
    else:
        importlib.import_module(origin.module)
    reward: Reward = registry.get(origin.kind).build(pickle.loads(params))
    return reward


def _sent(returned: object) -> object:
    """What a reward returned, in JSON's terms; a float is written so that it reads back exactly."""
    returned = plain(returned)
    if not isinstance(returned, list | tuple):
        return _foreign(returned)
    return [_sent_item(item) for item in returned]


def _sent_item(item: object) -> object:
    item = plain(item)
    if item is None:
        return None
    number = as_float(item)
    if number is None:
        return _foreign(item)
    if not isinstance(item, Score) or not item.spans:
        return number
    at = operator.index
    return [number, [(at(s.start), at(s.end), float(s.credit)) for s in item.spans]]


def _foreign(item: object) -> dict[str, str]:
    return {"type_name": type(item).__name__, "shown": brief(item)}
