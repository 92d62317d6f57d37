"""Where this process is in its run, for messages, for its guard, and for where it may stop."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TELL_SECONDS = 1.0  # at most so often is a sign of life passed on


class Interrupted(BaseException):
    """The run was asked to stop, here, where nothing is half done.

    No Exception, so that no reward takes it for a fault of its own.
    """


class Whereabouts:
    """The iteration and phase of a process, and what it does there; one a process, `HERE`."""

    def __init__(self) -> None:
        self.rank: int | None = None  # where there are several
        self.iteration: int | None = None  # the one that is being made, from 1
        self.phase = "start"
        self.doing = ""  # within the phase: a reward and its samples
        self.is_waiting = False  # for the other ranks
        self.stop_requested = False
        self.on_life: Callable[[], None] | None = None  # told of changes, and now and then of life
        self.on_fault: Callable[[BaseException], object] | None = None  # of what ends the run
        self._may_stop = 0
        self._told = 0.0

    def __str__(self) -> str:
        parts = [] if self.rank is None else [f"rank {self.rank}"]
        parts += [] if self.iteration is None else [f"iteration {self.iteration}"]
        return ", ".join([*parts, self.phase + (f": {self.doing}" if self.doing else "")])

    def begin(self) -> None:
        """Forget where an earlier run of this process was."""
        self.iteration, self.phase, self.doing, self.is_waiting = None, "start", "", False

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """A phase; an error leaves it standing, because that is where the error was."""
        before, self.phase = self.phase, phase
        self._changed()
        yield
        self.phase, self.doing = before, ""
        self._changed()

    def does(self, what: str) -> None:
        """Say what is done next within the phase."""
        self.doing = what
        self._changed()
        self._stop_if_asked()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A meeting with the other ranks."""
        self.is_waiting = True
        self._changed()
        yield
        self.is_waiting = False
        self._changed()

    def tick(self) -> None:
        """A sign of life, and a place where the run may stop; cheap enough for every token."""
        self._stop_if_asked()
        if time.monotonic() - self._told > TELL_SECONDS:
            self._changed()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Within it nothing is half done: a tick may raise Interrupted."""
        self._may_stop += 1
        try:
            self._stop_if_asked()
            yield
        finally:
            self._may_stop -= 1

    def _stop_if_asked(self) -> None:
        if self.stop_requested and self._may_stop:
            raise Interrupted

    def _changed(self) -> None:
        self._told = time.monotonic()
        if self.on_life is not None:
            self.on_life()


HERE = Whereabouts()
