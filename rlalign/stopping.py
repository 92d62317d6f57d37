"""SIGTERM: the run saves itself and ends, as soon as nothing is half done."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rlalign.whereabouts import HERE, Interrupted

logger = logging.getLogger(__name__)

# Told once, when the first signal comes.
on_request: list[Callable[[], None]] = []
_at_once = 0  # whether the signal itself interrupts, because the code is not ours to place ticks in


@contextmanager
def listening() -> Iterator[None]:
    """Within it SIGTERM is a request to stop; after it, whatever it was before."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is _requested:  # no other thread may
        yield
        return
    previous = signal.signal(signal.SIGTERM, _requested)
    HERE.stop_requested = False
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


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
    if HERE.stop_requested:
        return
    HERE.stop_requested = True
    logger.warning("SIGTERM in %s: saving, then stopping", HERE)
    for told in on_request:
        told()
    if _at_once:
        raise Interrupted
