"""What a run shows in the terminal: a line an iteration, samples side by side, and the end."""

import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeGuard, cast

from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from rlalign.evaluate import Evaluation
from rlalign.report.visible import visible
from rlalign.runs import RunFolder

WIDTH = 80
HEADER_EVERY = 20
NARROWEST, WIDEST = 6, 10  # of a reward's column
SAMPLES_AT_THE_END = 3
LONGEST = 600  # characters of a text that are shown
NONE = "–"  # noqa: RUF001 - a dash is meant

Row = Mapping[str, Any]


class LiveView:
    """The terminal's view of a run; one process has it, the others are `quiet`.

    Nothing that it is given can stop the run: text of a model is never markup, and a terminal that
    has gone away ends the view.
    """

    def __init__(
        self, iterations: int, names: Sequence[str], quiet: bool, stream: IO[str] | None = None
    ) -> None:
        self._iterations = iterations
        self._quiet = quiet
        stream = stream or sys.stdout
        console = Console(
            file=stream, highlight=False, markup=False, emoji=False, force_jupyter=False
        )
        width = min(console.width, 100) if console.is_terminal else WIDTH
        self._console = Console(
            file=cast(IO[str], _Patient(stream, trim=not console.is_terminal)), width=width,
            highlight=False, markup=False, emoji=False, force_jupyter=False,
            force_terminal=console.is_terminal, legacy_windows=False,
        )  # fmt: skip
        self._names, self._column = fitting_columns(names)
        self._all_names = list(names)
        self._lines = self._lines_in_all = 0
        self._began: float | None = None
        self._done = 0
        self._speeds: list[float] = []
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._before: dict[str, Row] = {}

    def iteration(self, stats: Row) -> None:
        """One line for the iteration, and one more where the policy was evaluated."""
        step = int(stats["iteration"])
        if "score" in stats:
            self._count(stats)
            cells = [f"{step}/{self._iterations}", *self._numbers(stats, "")]
            self._line([*cells, _number(stats.get("tokens_per_second")), self._time_left(step)])
        if "eval/score" in stats:
            cells = ["eval", *self._numbers(stats, "eval/")]
            self._line([*cells, "", ""], style="cyan")

    def samples(self, rows: Sequence[Row]) -> None:
        """One sample beside what the model wrote to the same prompt at the first call."""
        if not self._before:
            self._before = {str(row["prompt"]): row for row in rows}
            return
        for row in rows:
            before = self._before.get(str(row["prompt"]))
            if before is not None:
                self._print(_side_by_side(before, row, self._all_names))
                self._lines = 0  # the header comes again, after the interruption
                return

    def final(
        self,
        folder: RunFolder,
        before: Evaluation | None,
        after: Evaluation | None,
        warned: Sequence[str] = (),
    ) -> None:
        """Samples before and after, the change in every number, warnings, where everything lies."""
        if before is not None and after is not None:
            self._samples_at_the_end(before.rows, after.rows)
        self._print(Text())
        self._print(self._changes(before, after))
        if self._speeds:
            speed = _number(statistics.median(self._speeds))
            self._print(Text(f"\nspeed  {speed} tokens/s (median), {self._elapsed()} in all"))
        for line in warned:
            self._print(Text("\nwarning  ", style="bold yellow").append(visible(line), "default"))
        self._print(Text())
        self._where(folder)

    def _count(self, stats: Row) -> None:
        if self._began is None:
            # The first line appears when its iteration is over; its own time is in it.
            self._began = time.monotonic() - (stats.get("time/total") or 0.0)
        self._done += 1
        speed = stats.get("tokens_per_second")
        if _is_number(speed):
            self._speeds.append(speed)
        self._last = dict(stats)
        self._first = self._first or self._last

    def _numbers(self, stats: Row, prefix: str) -> list[str]:
        kl = stats.get("eval/kl" if prefix else "kl/ref")
        rewards = [_number(stats.get(f"{prefix}reward/{name}")) for name in self._names]
        return [_number(stats.get(f"{prefix}score")), *rewards, _number(kl)]

    def _line(self, cells: Sequence[str], style: str = "") -> None:
        if self._lines % HEADER_EVERY == 0:
            titles = ["iteration", "score", *self._names, "KL", "tok/s", "left"]
            if len(self._names) < len(self._all_names):
                hidden = len(self._all_names) - len(self._names)
                self._print(Text(f"({hidden} more rewards in metrics.jsonl)", style="dim"))
            if self._lines_in_all:
                self._print(Text())
            self._print(Text(self._joined(titles), style="bold"))
        self._lines += 1
        self._lines_in_all += 1
        self._print(Text(self._joined(cells), style=style))

    def _joined(self, cells: Sequence[str]) -> str:
        widths = [9, 7, *([self._column] * len(self._names)), 6, 6, 6]
        return " ".join(_right(cell, width) for cell, width in zip(cells, widths, strict=True))

    def _time_left(self, step: int) -> str:
        left = max(self._iterations - step, 0)
        if self._began is None or not self._done:
            return ""
        return duration(left * (time.monotonic() - self._began) / self._done)

    def _elapsed(self) -> str:
        return duration(time.monotonic() - self._began) if self._began is not None else NONE

    def _samples_at_the_end(self, before: Sequence[Row], after: Sequence[Row]) -> None:
        started = {str(row["prompt"]): row for row in before}
        shown: set[str] = set()
        for row in after:
            prompt = str(row["prompt"])
            if prompt in started and prompt not in shown and len(shown) < SAMPLES_AT_THE_END:
                shown.add(prompt)
                self._print(_side_by_side(started[prompt], row, self._all_names))

    def _changes(self, before: Evaluation | None, after: Evaluation | None) -> Table:
        if before is not None and after is not None:
            where = f"on {'held-out' if after.is_held_out else 'training'} prompts"
            start, end, prefix = before.stats, after.stats, "eval/"
        else:
            start, end, prefix, where = self._first, self._last, "", "in training"
        rows = [("score", f"{prefix}score", f"{prefix}score_se")]
        rows += [(name, f"{prefix}reward/{name}", "") for name in self._all_names]
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
            change = _number(b - a, sign=True) if _is_number(a) and _is_number(b) else NONE
            values = [_with_error(a, start.get(error)), _with_error(b, end.get(error)), change]
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
                shown = visible(_relative(path))
                line = Text(f"{title:<12} ", style="bold").append(shown, style="default")
                self._print(line, whole=True)

    def _print(self, what: RenderableType, whole: bool = False) -> None:
        """Write a line or a table; `whole` lines are not broken, so that paths can be copied."""
        if not self._quiet:
            self._console.print(what, soft_wrap=whole)


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


def fitting_columns(names: Sequence[str]) -> tuple[list[str], int]:
    """The rewards that fit into a line of 80 columns, and the width of each one's column."""
    room = WIDTH - sum(width + 1 for width in (9, 7, 6, 6)) - 6
    fitting = list(names[: room // (NARROWEST + 1)])
    return fitting, min(WIDEST, room // max(len(fitting), 1) - 1)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45s, 3m10s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 100 else f"{hours // 24}d"


def _side_by_side(before: Row, after: Row, names: Sequence[str]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    whole = Table.grid(expand=True)
    whole.add_column(overflow="fold")
    table.add_row(Text("before", style="bold"), Text("after", style="bold green"))
    table.add_row(*(Text(_cut(str(row.get("response", "")))) for row in (before, after)))
    table.add_row(*(Text(_rewards_of(row, names), style="dim") for row in (before, after)))
    whole.add_row(Text())
    whole.add_row(Text("▸ " + _cut(str(after["prompt"])), style="bold"))
    whole.add_row(table)
    return whole


def _rewards_of(row: Row, names: Sequence[str]) -> str:
    rewards = row.get("rewards") or {}
    parts = [f"score {_number(row.get('score'))}", f"KL {_number(row.get('kl'))}"]
    return ", ".join([*parts, *(f"{visible(n)} {_number(rewards.get(n))}" for n in names)])


def _cut(text: str) -> str:
    return visible(text if len(text) <= LONGEST else text[:LONGEST] + " …")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: object, sign: bool = False) -> str:
    """A number in at most 6 columns, 7 with its sign."""
    if not _is_number(value):
        return NONE
    size = abs(value)
    digits = 3 if size < 9.9995 else 2 if size < 99.995 else 1 if size < 999.95 else 0
    if size >= 99_999.5:
        return f"{value:{'+' if sign else ''}.0e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:{'+' if sign else ''}.{digits}f}"


def _with_error(value: object, error: object) -> str:
    return f"{_number(value)} ± {_number(error)}" if _is_number(error) else _number(value)


def _right(text: str, width: int) -> str:
    text = visible(text)
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    return " " * (width - cell_len(text)) + text


def _relative(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
