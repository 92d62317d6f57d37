"""A trial's metrics.jsonl, while it grows and at its end."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from rlalign.settings.schema import nearest


class History:
    """A metric's values in a metrics.jsonl that is still being written."""

    def __init__(self, path: Path, metric: str) -> None:
        self._path, self._metric = path, metric
        self._file, self._offset = 0, 0  # its inode, and how far it was read
        self.values: list[float] = []

    def grows(self) -> bool:
        """Read on; whether there is a value that was not there before."""
        known = len(self.values)
        with suppress(OSError), self._path.open("rb") as file:
            about = self._path.stat()
            if about.st_ino != self._file or about.st_size < self._offset:
                # A run that was resumed began the file anew.
                self._file, self._offset, self.values, known = about.st_ino, 0, [], 0
            file.seek(self._offset)
            text = file.read()
            end = text.rfind(b"\n") + 1  # what follows is half a row
            self._offset += end
            rows = _parsed(text[:end])
            self.values += [row[self._metric] for row in rows if is_number(row.get(self._metric))]
        return len(self.values) > known


def read_value(path: Path, metric: str) -> tuple[float | None, str]:
    """The metric's last value in metrics.jsonl; or None, and why there is none."""
    value: Any = None
    names: set[str] = set()
    for row in read_rows(path):
        names |= row.keys()
        value = row.get(metric, value)
    if is_number(value):
        return float(value), ""
    if metric in names:
        return None, f"the last {metric} in metrics.jsonl is {json.dumps(value)}, not a number"
    if not names:
        return None, "it left no metrics.jsonl with a row in it"
    close = nearest(metric, names)
    hint = f"; did you mean {close}?" if close else ""
    return None, f"metrics.jsonl has no {metric}{hint}"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows; none where there is no file."""
    with suppress(OSError):
        return list(_parsed(path.read_bytes()))
    return []


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _parsed(lines: bytes) -> Iterator[dict[str, Any]]:
    for line in lines.decode("utf-8", errors="replace").split("\n"):
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row
