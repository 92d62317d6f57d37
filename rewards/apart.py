"""What the rewards share with the run that calls them, kept as the run left it.

The random generators, the working directory, signal handlers, torch's switches are one a process. A
reward that seeds, draws or changes them must not move the run's numbers.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np

from rewards.randomness import States, current, restore, seeded

logger = logging.getLogger(__name__)
# Held by whoever has the generators for itself: async rewards draw in a thread of their own.
_ALONE = threading.RLock()
_here = threading.local()  # `depth`: how often this thread holds it
# Set where the work is that of a thread which holds it and waits, as for a reward within a reward.
_lent: ContextVar[bool] = ContextVar("lent", default=False)
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD")
_warned: set[tuple[str, str]] = set()
Switch = tuple[Callable[[], Any], Callable[[Any], object]]  # how to read it, how to put it back


class Apart:
    """Within it the random generators are a stream of its own; after it, the process is as it was.

    The stream goes on where it stopped, unless `start` begins it anew: a bare restore would let
    every call draw the same numbers. One that was never started begins as a copy of the generators.
    """

    def __init__(self, who: str, seed: int | None = None) -> None:
        """`who` is named in the warning about a switch that had to be put back."""
        self._who = who
        self._own: States | None = None
        self._entered: list[tuple[States, Any, bool]] = []
        self.start(seed)

    def start(self, seed: int | None) -> None:
        """Begin the stream that this seed has; None lets it go on."""
        if seed is not None:
            self._own = seeded(seed)

    def __enter__(self) -> None:
        locks = not _lent.get()
        if locks:
            _ALONE.acquire()
            _here.depth = _depth() + 1
        switches = _kept(self._who)
        switches.__enter__()
        self._entered.append((current(), switches, locks))
        if self._own is not None:
            restore(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = current()
        others, switches, locks = self._entered.pop()
        restore(others)
        switches.__exit__(None, None, None)
        if locks:
            _here.depth -= 1
            _ALONE.release()


def lends() -> bool:
    """Whether others that this thread waits for must do without the lock."""
    return _lent.get() or _depth() > 0


def lend(lent: bool) -> None:
    """What `lends` said where the work was begun, for the context in which it is done."""
    _lent.set(lent)


def _depth() -> int:
    depth: int = getattr(_here, "depth", 0)
    return depth


@contextmanager
def _kept(who: str) -> Iterator[None]:
    """What the process has only one of, read now and put back at the end where it was changed."""
    before = {}
    for what, (read, put_back) in _switches().items():
        with suppress(OSError):  # a working directory that is gone
            before[what] = (read, put_back, read())
    yield
    for what, (read, put_back, was) in before.items():
        try:
            if read() == was:
                continue
        except OSError:
            pass
        put_back(was)
        if (who, what) not in _warned:
            _warned.add((who, what))
            logger.warning(
                "%s changed %s, which this process has only one of: it was put back. A reward that "
                "needs it changed runs in a process of its own under isolate: true",
                who,
                what,
            )


def _switches() -> dict[str, Switch]:
    switches: dict[str, Switch] = {
        "the working directory": (os.getcwd, os.chdir),
        "numpy's handling of errors": (np.geterr, lambda was: np.seterr(**was)),
    }
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            # None is a handler that C code has set, which Python cannot put back.
            if number is not None and signal.getsignal(number) is not None:
                switches[f"the handler of {name}"] = (
                    partial(signal.getsignal, number),
                    partial(signal.signal, number),
                )
        if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            switches["the alarm"] = (
                lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
                lambda _: signal.setitimer(signal.ITIMER_REAL, 0),
            )
    torch = sys.modules.get("torch")
    # A module that is being imported just now is there without its names.
    if torch is not None and hasattr(torch, "use_deterministic_algorithms"):
        switches |= _torch_switches(torch)
    return switches


def _torch_switches(torch: Any) -> dict[str, Switch]:
    cudnn = torch.backends.cudnn

    def deterministic() -> tuple[bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    def set_cudnn(was: tuple[bool, bool]) -> None:
        cudnn.deterministic, cudnn.benchmark = was

    return {
        "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
        "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "torch's default device": (
            torch.get_default_device,
            # Naming the CPU would install a hook around every function.
            lambda was: torch.set_default_device(None if was.type == "cpu" else was),
        ),
        "torch's choice of deterministic algorithms": (
            deterministic,
            lambda was: torch.use_deterministic_algorithms(was[0], warn_only=was[1]),
        ),
        "whether torch records gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "torch's precision of float32 products": (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        "cuDNN's choice of algorithms": (
            lambda: (cudnn.deterministic, cudnn.benchmark),
            set_cudnn,
        ),
    }
