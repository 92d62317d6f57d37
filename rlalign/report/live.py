"""What a run shows in the terminal: a bar, a line an iteration, samples, and the end."""

import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Protocol, Self, cast

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from rlalign.guard.whereabouts import HERE
from rlalign.report.live_bar import Bar, BarConsole, Progress
from rlalign.report.live_text import (
    NONE,
    Row,
    columns_in,
    duration,
    is_number,
    number,
    relative,
    side_by_side,
    with_error,
)
from rlalign.report.visible import visible
from rlalign.runs import RunFolder

WIDTH = 80  # of what is no terminal
WIDEST = 100  # of what is one
HEADER_EVERY = 20
SAMPLE_EVERY = 5  # lines of the table, at the most
SAMPLES_AT_THE_END = 3
PROMPTS = 1000  # that are remembered, to show what was written to them before


class Measured(Protocol):
    """An evaluation, as `rlalign.evaluate` makes it."""

    @property
    def stats(self) -> Mapping[str, Any]: ...

    @property
    def rows(self) -> Sequence[Row]: ...

    @property
    def is_held_out(self) -> bool: ...


class LiveView:
    """The terminal's view of a run; one process has it, the others are `quiet`.

    Within `with`, and on a terminal, a bar moves below the lines. Nothing that it is given can stop
    the run: text of a model is never markup, and a terminal that has gone away ends the view.
    `now` says what is being done; `clock` is of seconds, of which the iterations took some.
    """

    def __init__(
        self,
        iterations: int,
        names: Sequence[str],
        quiet: bool,
        stream: IO[str] | None = None,
        now: Callable[[], str] = lambda: HERE.phase,
        clock: Callable[[], float] = lambda: time.monotonic(),
    ) -> None:
        self.iterations, self.names = iterations, list(names)
        self._quiet, self._now, self._clock = quiet, now, clock
        stream = stream or sys.stdout
        asked = Console(
            file=stream, highlight=False, markup=False, emoji=False, force_jupyter=False
        )
        is_terminal = asked.is_terminal
        self._console = BarConsole(
            file=cast(IO[str], _Patient(stream, trim=not is_terminal)),
            width=None if is_terminal else WIDTH,
            highlight=False, markup=False, emoji=False, force_jupyter=False,
            force_terminal=is_terminal, legacy_windows=False,
        )  # fmt: skip
        # FORCE_COLOR makes a file a terminal to rich, for the colours; lines that move are more.
        self._can_move = not quiet and asked.is_interactive and is_tty(stream)
        self._bar: Bar | None = None
        self._columns = columns_in(self._width, names, iterations)
        self._lines = self._lines_in_all = 0  # since the last header
        self._since_sample = SAMPLE_EVERY
        self._samples_shown = 0
        self._began: float | None = None
        self._ended: float | None = None  # the last iteration
        self._done = 0
        self._speeds: list[float] = []
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._before: dict[str, Row] = {}

    def __enter__(self) -> Self:
        if self._can_move:
            self._bar = Bar(self._console, self._progress)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def has_bar(self) -> bool:
        return self._bar is not None

    @property
    def _width(self) -> int:
        """As wide as the terminal is now."""
        return min(self._console.width, WIDEST)

    def iteration(self, stats: Row) -> None:
        """One line for the iteration, and one more where the policy was evaluated."""
        step = int(stats["iteration"])
        if "score" in stats:
            self.count(stats)
            name = f"{step}/{self.iterations}" if self.iterations else f"{step}"
            left = self._time_left(since_last=False)
            cells = {"KL": "kl/ref", "tok/s": "tokens_per_second"}
            ends = {title: number(stats.get(key)) for title, key in cells.items()} | {"left": left}
            self._line(name, stats, "", ends)
        if "eval/score" in stats:
            self._line("eval", stats, "eval/", {"KL": number(stats.get("eval/kl"))}, style="cyan")

    def count(self, stats: Row) -> None:
        """Take in an iteration, without a line for it."""
        now = self._clock()
        if self._began is None:
            # It is told when it is over; its own time is in it.
            took = stats.get("time/total")
            self._began = now - (took if is_number(took) else 0.0)
        self._ended = now
        self._done += 1
        speed = stats.get("tokens_per_second")
        if is_number(speed):
            self._speeds.append(speed)
        self._last = dict(stats)
        self._first = self._first or self._last

    def samples(self, rows: Sequence[Row]) -> None:
        """One sample beside what was first written to its prompt, now and then; another each time.

        The first call is remembered and shows nothing; the end has samples of its own.
        """
        again = [row for row in rows if str(row["prompt"]) in self._before]
        for row in rows[:PROMPTS]:
            self._before.setdefault(str(row["prompt"]), row)
        is_over = 0 < self.iterations <= self._last.get("iteration", 0)
        if again and self._since_sample >= SAMPLE_EVERY and not is_over:
            row = again[self._samples_shown % len(again)]
            self._print(side_by_side(self._before[str(row["prompt"])], row, self.names))
            self._samples_shown += 1
            self._since_sample = 0
            self._lines = 0  # the header comes again, after the interruption

    def final(
        self,
        folder: RunFolder,
        before: Measured | None,
        after: Measured | None,
        warned: Sequence[str] = (),
    ) -> None:
        """Samples before and after, the change in every number, warnings, where everything lies."""
        self.__exit__()
        if before is not None and after is not None:
            self._samples_at_the_end(before.rows, after.rows)
        self._print(Text())
        self._print(self._changes(before, after))
        if self._speeds:
            speed = number(statistics.median(self._speeds))
            self._print(Text(f"\nspeed  {speed} tokens/s (median), {self._elapsed()} in all"))
        for line in warned:
            self._print(Text("\nwarning  ", style="bold yellow").append(visible(line), "default"))
        self._print(Text())
        self._where(folder)

    def say(self, text: str, style: str = "dim") -> None:
        """A line of words between those of numbers."""
        self._print(Text(visible(text), style=style))
        self._lines = 0

    def tell(self, title: str, text: str) -> None:
        """A line of words under a title, not broken, so that what it names can be copied."""
        line = Text(f"{title:<12} ", style="bold").append(visible(text), style="default")
        self._print(line, whole=True)

    def _progress(self) -> Progress:
        last = self._last
        return Progress(
            done=int(last.get("iteration", 0)),
            total=self.iterations,
            now=self._now(),
            score=last.get("score"),
            kl=last.get("kl/ref"),
            speed=last.get("tokens_per_second"),
            left=self._time_left(since_last=True),
        )

    def _line(
        self, name: str, stats: Row, prefix: str, ends: dict[str, str], style: str = ""
    ) -> None:
        columns = columns_in(self._width, self.names, self.iterations)
        if self._lines % HEADER_EVERY == 0 or columns != self._columns:
            self._columns, self._lines = columns, 0
            if columns.hidden:
                self._print(Text(f"({columns.hidden} more rewards in metrics.jsonl)", style="dim"))
            if self._lines_in_all:
                self._print(Text())
            self._print(Text(columns.line(columns.titles), style="bold"))
        self._lines += 1
        self._lines_in_all += 1
        self._since_sample += 1
        score = number(stats.get(f"{prefix}score"))
        rewards = [number(stats.get(f"{prefix}reward/{reward}")) for reward in columns.rewards]
        after = [ends.get(title, "") for title in columns.after]
        self._print(Text(columns.line([name, score, *rewards, *after]), style=style))

    def _time_left(self, since_last: bool) -> str:
        if self._began is None or self._ended is None or not self.iterations:
            return ""
        left = max(self.iterations - int(self._last["iteration"]), 0)
        seconds = left * (self._ended - self._began) / self._done
        if since_last:
            seconds = max(seconds - (self._clock() - self._ended), 0.0)
        return duration(seconds)

    def _elapsed(self) -> str:
        return duration(self._clock() - self._began) if self._began is not None else NONE

    def _samples_at_the_end(self, before: Sequence[Row], after: Sequence[Row]) -> None:
        started = {str(row["prompt"]): row for row in before}
        shown: set[str] = set()
        for row in after:
            prompt = str(row["prompt"])
            if prompt in started and prompt not in shown and len(shown) < SAMPLES_AT_THE_END:
                shown.add(prompt)
                self._print(side_by_side(started[prompt], row, self.names))

    def _changes(self, before: Measured | None, after: Measured | None) -> Table:
        if before is not None and after is not None:
            where = f"on {'held-out' if after.is_held_out else 'training'} prompts"
            start, end, prefix = before.stats, after.stats, "eval/"
        else:
            start, end, prefix, where = self._first, self._last, "", "in training"
        rows = [("score", f"{prefix}score", f"{prefix}score_se")]
        rows += [(name, f"{prefix}reward/{name}", "") for name in self.names]
        rows += [("KL, nats per response", "eval/kl" if prefix else "kl/ref", f"{prefix}kl_se")]
        rows += [("length, tokens", f"{prefix}length", "")]
        if prefix:
            rows += [("distinct-2", "eval/distinct2", "")]
        table = Table.grid(padding=(0, 2))
        table.add_column(overflow="ellipsis", no_wrap=True, max_width=34)
        for _ in range(3):
            table.add_column(justify="right", no_wrap=True)
        table.add_row(*(Text(title, style="bold") for title in (where, "start", "end", "change")))
        for title, key, error in rows:
            a, b = start.get(key), end.get(key)
            change = number(b - a, sign=True) if is_number(a) and is_number(b) else NONE
            values = [with_error(a, start.get(error)), with_error(b, end.get(error)), change]
            table.add_row(Text(visible(title)), *(Text(value) for value in values))
        return table

    def _where(self, folder: RunFolder) -> None:
        places = {
            "metrics": folder.metrics_jsonl,
            "samples": folder.samples_jsonl,
            "plots": folder.plots,
            "model": folder.model,
            "checkpoints": folder.checkpoints,
            "the run": folder.run_json,
        }
        for title, path in places.items():
            if path.exists():
                self.tell(title, relative(path))

    def _print(self, what: RenderableType, whole: bool = False) -> None:
        """Write a line or a table; `whole` lines are not broken, so that paths can be copied."""
        if not self._quiet:
            self._console.print(what, soft_wrap=whole, width=None if whole else self._width)


class _Patient:
    """A stream that never raises: ? for what its encoding lacks, silence once it is gone."""

    def __init__(self, stream: IO[str], trim: bool) -> None:
        self._stream = stream
        self._trim = trim
        self._is_gone = False
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if self._trim:  # a file needs no spaces up to its edge
            text = re.sub(" +\n", "\n", text)
        text = text.encode(self.encoding, "replace").decode(self.encoding)
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        if not self._is_gone:
            try:
                act()
            except (OSError, ValueError):
                # Closed, or a pipe whose reader went away; rich would answer with SystemExit.
                self._is_gone = True
            except RuntimeError:
                pass  # a signal's handler prints while the stream is being written to


def is_tty(stream: IO[str]) -> bool:
    """Whether lines that were written to the stream can be moved over."""
    try:
        return stream.isatty()
    except (OSError, ValueError):
        return False
