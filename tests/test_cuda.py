"""On a CUDA device: what a run on the CPU gives, and what only such a device can do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CLOCK = ("time/", "tokens_per_second", "memory/")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def launch(folder: Path, device: str, **environment: str) -> list[dict[str, Any]]:
    """The metrics of tests/launched_run.py in a process that sees the device, or none."""
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, str(ROOT / "tests" / "launched_run.py"), str(folder)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]),
            **hidden,
            **environment,
        },
        check=True,
        capture_output=True,
        text=True,
    )
    return [json.loads(line) for line in next(folder.rglob("metrics.jsonl")).open()]


def steady(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith(CLOCK)}


def test_a_run_on_the_device_is_the_run_on_the_cpu(tmp_path):
    """The random numbers of sampling come from the CPU on both; the rest is rounding."""
    on_cpu, on_cuda = (launch(tmp_path / device, device) for device in ("cpu", "cuda"))
    assert on_cuda[-1]["memory/peak_mb"] < 100 < on_cpu[-1]["memory/peak_mb"]  # it did run there
    assert [steady(row).keys() for row in on_cuda] == [steady(row).keys() for row in on_cpu]
    for ours, theirs in zip(map(steady, on_cuda), map(steady, on_cpu), strict=True):
        for name, value in theirs.items():
            if isinstance(value, float):
                assert ours[name] == pytest.approx(value, rel=2e-3, abs=2e-4), name


def test_a_run_on_the_device_goes_on_where_it_stopped(tmp_path):
    whole = launch(tmp_path / "whole", "cuda")
    launch(tmp_path / "parts", "cuda", ITERATIONS="2")
    parts = launch(tmp_path / "parts", "cuda")
    for ours, theirs in zip(map(steady, parts), map(steady, whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
