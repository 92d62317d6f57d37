"""Told to whoever waits for a reward: what is called now, and that it is still at work."""

import threading
from collections.abc import Callable
from contextvars import ContextVar

# Told which reward is about to be called on what.
watcher: ContextVar[Callable[[str], object]] = ContextVar("watcher", default=len)
pulse: ContextVar[Callable[[], object]] = ContextVar("pulse", default=bool)


def alive() -> None:
    """Say that a reward is at work: one call that says nothing for `run.timeout` counts as hung.

    Cheap enough for every sample. It is also a place where the run may stop when it is asked to.
    """
    # Where a run stops, an exception leaves from here, which another thread would swallow.
    if threading.current_thread() is threading.main_thread():
        pulse.get()()
