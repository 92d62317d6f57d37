"""The line at the bottom of a terminal that moves while a run does.

Whatever else is printed meanwhile, by anyone, stands above it. The cursor is never hidden, so a
process that is killed leaves a terminal as it should be.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from rlalign.report.live_text import number

REFRESHES = 4  # a second
SHORTEST, LONGEST = 6, 40  # the bar itself, in columns
PHASE = 8  # columns of what is being done, so that the bar stands still


@dataclass(frozen=True)
class Progress:
    """How far a run is; `total` 0: nobody knows how far it goes."""

    done: int
    total: int
    now: str = ""  # what is being done
    score: object = None
    kl: object = None
    speed: object = None  # tokens a second
    left: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Not up to the edge: a terminal whose last column is written is about to wrap.
        width = options.max_width - 1
        count = f"{self.done}/{self.total}" if self.total else f"{self.done}"
        room = width - cell_len(count) - 2 - SHORTEST
        fitting = {}
        for title, part in self._parts():
            if part and cell_len(part) < room:
                fitting[title] = part
                room -= cell_len(part) + 1
        before = " ".join([count, *(fitting[title] for title in ("now",) if title in fitting)])
        shown = [fitting[title] for title in ("score", "kl", "speed", "left") if title in fitting]
        after = " ".join(["", *shown])
        bar = min(max(width - cell_len(before + after) - 1, 0), LONGEST)
        yield Text(before[:width] + " " * (bar > 0), end="", style="bold")
        if bar:
            yield ProgressBar(
                max(self.total, 1), self.done, bar, complete_style="green", finished_style="green"
            )
        yield Text(after, end="")

    def _parts(self) -> Iterator[tuple[str, str]]:
        """What stands before and after the bar, in the order in which it may claim the room."""
        yield "left", self.left and f"{self.left} left"
        yield "score", "" if self.score is None else f"score {number(self.score)}"
        yield "kl", "" if self.kl is None else f"KL {number(self.kl)}"
        yield "speed", "" if self.speed is None else f"{number(self.speed)} tok/s"
        yield "now", self.now and f"{self.now:<{PHASE}}"


class BarConsole(Console):
    """A console that leaves the cursor alone."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class Bar:
    """The bar on a console, drawn anew several times a second, until it is taken away."""

    def __init__(self, console: Console, progress: Callable[[], Progress]) -> None:
        self._console = console
        self._live = Live(
            console=console, get_renderable=progress, refresh_per_second=REFRESHES,
            transient=True, redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._diverted: list[_Above] = []

    def start(self) -> None:
        global _shown
        _shown = self
        for name in ("stdout", "stderr"):
            if getattr(sys, name).isatty():  # a file, or a pipe, has no bar to stay clear of
                self._diverted.append(_Above(name, self.above))
        self._live.start(refresh=True)

    def stop(self) -> None:
        global _shown
        _shown = None
        self._live.stop()
        self.let_go()

    def above(self, line: str) -> None:
        self._console.print(Text.from_ansi(line), soft_wrap=True)

    def let_go(self) -> None:
        """Give standard output and error back."""
        while self._diverted:
            self._diverted.pop().end()


class _Above:
    """Standard output or error in the meantime: whole lines, above the bar."""

    def __init__(self, name: str, above: Callable[[str], None]) -> None:
        self._name, self._print = name, above
        self._stream: IO[str] = getattr(sys, name)
        self._rest = ""
        self._is_over = False
        self._lock = threading.RLock()  # a signal's handler may print, too
        self._handlers = handlers_on(self._stream)
        for handler in self._handlers:
            handler.setStream(cast(IO[str], self))
        setattr(sys, name, self)

    def write(self, text: str) -> int:
        if self._is_over:  # somebody kept it
            return self._stream.write(text)
        with self._lock:
            *lines, rest = (self._rest + text).split("\n")
            self._rest = rest[rest.rfind("\r", 0, -1) + 1 :]  # a bar writes no line for long
        for line in lines:
            # Of a bar of somebody else's, which begins its line anew, the last state.
            self._print(line.rstrip("\r").rpartition("\r")[2])
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def end(self) -> None:
        self._is_over = True
        if getattr(sys, self._name) is self:
            setattr(sys, self._name, self._stream)
        for handler in self._handlers:
            if handler.stream is cast(IO[str], self):
                handler.setStream(self._stream)
        if self._rest:
            self._stream.write(self._rest)


def handlers_on(stream: IO[str]) -> list["logging.StreamHandler[IO[str]]"]:
    """The handlers of any logger that write to this stream."""
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    return [
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        # Not Python's last resort, which looks for standard error anew each time.
        if isinstance(handler, logging.StreamHandler) and vars(handler).get("stream") is stream
    ]


def _leave_it_to_the_parent() -> None:
    """In a forked process, where no thread draws the bar and its locks may be held for ever."""
    global _shown
    if _shown is not None:
        _shown.let_go()
        _shown = None


_shown: Bar | None = None
os.register_at_fork(after_in_child=_leave_it_to_the_parent)
