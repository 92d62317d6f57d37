"""Numbers, columns and samples as the terminal's view of a run writes them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from rlalign.report.visible import visible

NARROWEST, WIDEST = 6, 10  # of a reward's column
LONGEST = 600  # characters of a text that are shown
NONE = "–"  # noqa: RUF001 - a dash is meant

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns of the table that fit into a line, with their widths."""

    rewards: Sequence[str]  # those that have a column
    hidden: int  # how many have none
    after: Sequence[str]  # of KL, tok/s, left
    widths: Sequence[int]

    @property
    def titles(self) -> list[str]:
        return ["iteration", "score", *self.rewards, *self.after]

    def line(self, cells: Sequence[str]) -> str:
        return " ".join(right(*pair) for pair in zip(cells, self.widths, strict=True))


def columns_in(width: int, names: Sequence[str], iterations: int) -> Columns:
    """What of the table fits into `width`: all but the last columns go, then rewards."""
    first = max(9, 2 * len(str(iterations)) + 1)
    used = first + 1 + 7
    after = []
    for title in ("KL", "tok/s", "left"):
        if used + 7 <= width:
            after.append(title)
            used += 7
    room = max(width - used, 0)
    shown = list(names[: room // (NARROWEST + 1)])
    each = min(WIDEST, room // max(len(shown), 1) - 1)
    return Columns(
        shown, len(names) - len(shown), after, [first, 7, *[each] * len(shown), *[6] * len(after)]
    )


def right(text: str, width: int) -> str:
    """The text at the right of a column, cut to it."""
    text = visible(text)
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    return " " * (width - cell_len(text)) + text


def side_by_side(before: Row, after: Row, names: Sequence[str]) -> Table:
    """Two responses to one prompt, with what they were worth."""
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


def is_number(value: object) -> TypeGuard[float]:
    # Not more than any reward may be: what is told of it in digits has to end.
    return isinstance(value, int | float) and abs(value) <= 1e15


def number(value: object, sign: bool = False) -> str:
    """A number in at most 6 columns, 7 with its sign."""
    if not is_number(value):
        return NONE
    size = abs(value)
    digits = 3 if size < 9.9995 else 2 if size < 99.995 else 1 if size < 999.95 else 0
    if size >= 99_999.5:
        return f"{value:{'+' if sign else ''}.0e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:{'+' if sign else ''}.{digits}f}"


def with_error(value: object, error: object) -> str:
    return f"{number(value)} ± {number(error)}" if is_number(error) else number(value)


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


def relative(path: Path) -> str:
    """The path from here, if it lies here."""
    from_here = os.path.relpath(path)
    return str(path) if from_here.startswith("..") else from_here


def _rewards_of(row: Row, names: Sequence[str]) -> str:
    rewards = row.get("rewards")
    values = rewards if isinstance(rewards, Mapping) else {}
    parts = [f"score {number(row.get('score'))}", f"KL {number(row.get('kl'))}"]
    return ", ".join([*parts, *(f"{visible(n)} {number(values.get(n))}" for n in names)])


def _cut(text: str) -> str:
    return visible(text if len(text) <= LONGEST else text[:LONGEST] + " …")
