"""SIGTERM: the run saves itself and ends, as soon as nothing is half done."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from rlalign.guard.whereabouts import HERE, Interrupted

logger = logging.getLogger(__name__)

# Told once, when the first signal comes.
on_request: list[Callable[[], None]] = []
_at_once = 0  # whether the signal itself interrupts, because the code is not ours to place ticks in
_previous: Any = signal.SIG_DFL  # what the signal meant before
_listener = 0  # the process that listens


@contextmanager
def listening(*, pass_on: bool = False) -> Iterator[None]:
    """Within it SIGTERM is a request to stop; after it, whatever it was before.

    `pass_on`: a request that came too late to stop anything is then sent again, to whoever hears it
    after this.
    """
    global _previous, _listener
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is _requested:  # no other thread may
        yield
        return
    _previous = signal.signal(signal.SIGTERM, _requested) or signal.SIG_DFL  # None: set in C
    _listener = os.getpid()
    HERE.stop_requested = False
    try:
        yield
        was_late = pass_on and HERE.stop_requested
    finally:
        signal.signal(signal.SIGTERM, _previous)
        HERE.stop_requested = False
    if was_late:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Code of others, which may take long and holds nothing of ours: the signal ends it."""
    global _at_once
    with HERE.stoppable():
        _at_once += 1
        try:
            yield
        finally:
            _at_once -= 1


def _requested(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _listener:  # a child that was forked a moment ago
        _forget()
        signal.raise_signal(signal.SIGTERM)
        return
    if HERE.stop_requested:
        return
    HERE.stop_requested = True
    for told in on_request:
        told()
    with suppress(RuntimeError):  # the signal came while something was being printed
        logger.warning("SIGTERM in %s: saving, then stopping", HERE)
    if _at_once:
        raise Interrupted


def _forget() -> None:
    """In a forked process, which is none of the run's own: a signal to it is no request."""
    HERE.on_life = HERE.on_fault = None
    on_request.clear()
    if signal.getsignal(signal.SIGTERM) is _requested:
        signal.signal(signal.SIGTERM, _previous)


os.register_at_fork(after_in_child=_forget)
