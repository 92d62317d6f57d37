"""Reading a run's files while somebody else writes them."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]
HEAD, TAIL = 2**19, 2**21  # bytes of samples.jsonl that are read of what was there before
LARGEST = 10**9  # iteration


class Lines:
    """The whole lines of a file that is appended to, or replaced by another one.

    With `ends` only the beginning and the end are read of what is there at first.
    """

    def __init__(self, path: Path, ends: bool = False) -> None:
        self._path, self._ends = path, ends
        self._file: IO[bytes] | None = None  # held open, so that no other file gets its number
        self._end = 0  # of the last whole line: a half-written one may yet be taken back

    def read(self) -> tuple[list[bytes], bool]:
        """The lines that have come since, and whether they begin another file than before."""
        try:
            there = os.stat(self._path)
            if self._is_open_at(there):
                return self._from(self._end), False
            self.close()
            self._file = open(self._path, "rb")  # noqa: SIM115 - `close` closes it
            if self._ends and there.st_size > HEAD + TAIL:
                first = self._from(0, HEAD)
                return first + self._from(there.st_size - TAIL)[1:], True
            return self._from(0), True
        except OSError:  # not there yet, or for a moment
            self.close()
            return [], False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_open_at(self, there: os.stat_result) -> bool:
        if self._file is None or there.st_size < self._end:
            return False
        return os.path.samestat(os.fstat(self._file.fileno()), there)

    def _from(self, start: int, size: int = -1) -> list[bytes]:
        assert self._file is not None
        self._file.seek(start)
        read = self._file.read(size)
        whole = read[: read.rfind(b"\n") + 1]
        self._end = start + len(whole)
        return whole.split(b"\n")[:-1]


class Metrics:
    """The rows of a metrics.jsonl, each once, also over a resume, which takes rows back."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        self._seen: list[int] = []  # hashes, of all lines

    def read(self) -> tuple[list[Row], int | None]:
        """The rows that have come, and after which iteration, where the run went back to it."""
        lines, is_other = self._lines.read()
        hashes = [hash(line) for line in lines]
        if not is_other:
            self._seen += hashes
            return rows_in(lines), None
        pairs = zip(self._seen, hashes, strict=False)
        same = next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(self._seen), len(lines))
        )
        is_back, self._seen = same < len(self._seen), hashes
        kept = rows_in(lines[:same])
        return rows_in(lines[same:]), (kept[-1]["iteration"] if kept else 0) if is_back else None

    def close(self) -> None:
        self._lines.close()


def rows_in(lines: Sequence[bytes]) -> list[Row]:
    """The rows of an iteration among the lines; what is damaged is left out."""
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
            number = row["iteration"]
            if isinstance(number, int | float) and 0 <= number < LARGEST:
                rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return rows


def reward_names(row: Row) -> list[str]:
    """The rewards that a row of metrics speaks of, in its order."""
    keys = [key.removeprefix("eval/") for key in row]
    names = [key.removeprefix("reward/") for key in keys if key.startswith("reward/")]
    return list(dict.fromkeys(name.partition("/")[0] for name in names))


def seconds_of(row: Row) -> float:
    """What an iteration took, as far as its row says."""
    took = row.get("time/total")
    return took if isinstance(took, int | float) and math.isfinite(took) and took > 0 else 0.0
