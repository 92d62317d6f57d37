"""The results file: one JSON, written anew after every row, so that a stop loses nothing."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.settings import Job

Row = dict[str, Any]


class Store:
    """Rows by the key of their job; a job whose row is finished is not run again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = []  # the machine at each call
        self.rows: list[Row] = []
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.runs, self.rows = kept["runs"], kept["rows"]

    def started(self, machine: dict[str, Any]) -> None:
        self.runs.append(machine)
        self.save()

    def has(self, job: Job) -> bool:
        return any(row["key"] == job.key and row["status"] == "done" for row in self.rows)

    def add(self, job: Job, result: Row) -> Row:
        """Keep a job's result, in place of an unfinished one that it had."""
        row = {"key": job.key, "table": job.table, "name": job.name, "repeat": job.repeat}
        row |= {"run": len(self.runs) - 1, "setting": asdict(job.setting), **result}
        self.rows = [old for old in self.rows if old["key"] != job.key] + [row]
        self.save()
        return row

    def of(self, table: str) -> list[Row]:
        return [row for row in self.rows if row["table"] == table]

    def save(self) -> None:
        """Whole or not at all: the new file is moved over the old one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".tmp")
        text = json.dumps({"runs": self.runs, "rows": self.rows}, indent=1)
        new.write_text(text + "\n", encoding="utf-8")
        os.replace(new, self.path)
