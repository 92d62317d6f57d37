"""A folder with a program to sweep, and workers that do not outlive their test."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_sweeps import PROGRAM, Started


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


@pytest.fixture
def start(here: Path) -> Iterator[Any]:
    """Starts workers, and leaves none behind."""
    workers: list[Started] = []

    def begin(*arguments: str) -> Started:
        workers.append(Started(*arguments))
        return workers[-1]

    yield begin
    for each in workers:
        if not each.is_over:
            each.signal(signal.SIGKILL)
            each.wait()
