"""A terminal to run a program on, and to look at."""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyte

ROOT = Path(__file__).parent.parent
LINES = 24


@dataclass
class Seen:
    """What a program left on its terminal."""

    columns: int
    raw: bytes = b""
    code: int | None = None
    screen: pyte.HistoryScreen = field(init=False)

    def __post_init__(self) -> None:
        self.screen = pyte.HistoryScreen(self.columns, LINES, history=10_000, ratio=1)
        self.stream = pyte.ByteStream(self.screen)

    @property
    def lines(self) -> list[str]:
        """All lines, those that have scrolled away too, without the empty ones at the end."""
        above = ["".join(line[x].data for x in sorted(line)) for line in self.screen.history.top]
        return (
            "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip().split("\n")
        )

    @property
    def last(self) -> str:
        return self.lines[-1]


def run_on_terminal(
    program: str,
    columns: int = 80,
    meanwhile: Callable[[int, Seen], None] | None = None,
    stderr: Path | None = None,
    **env: str,
) -> Seen:
    """Run Python code on a terminal; `meanwhile` is called with its pid after each piece of output.

    With `stderr` its standard error is that file.
    """
    seen = Seen(columns)
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the program
        if stderr is not None:
            os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # workers of pytest-xdist ignore it
        kept = {key: os.environ[key] for key in os.environ if key not in ("NO_COLOR", "COLUMNS")}
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**kept, "TERM": "xterm-256color", "PYTHONPATH": path, **env}
        os.execve(sys.executable, [sys.executable, "-c", program], environment)
    resize(terminal, seen, columns)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            read = os.read(terminal, 65536) if select.select([terminal], [], [], 0.05)[0] else None
        except OSError:  # the program is gone
            break
        if read is not None:
            seen.raw += read
            seen.stream.feed(read)
            if meanwhile is not None:
                meanwhile(pid, seen)
    else:
        os.kill(pid, signal.SIGKILL)  # it would be waited for without an end
    seen.code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return seen


def resize(terminal: int, seen: Seen, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
    seen.screen.resize(LINES, columns)
