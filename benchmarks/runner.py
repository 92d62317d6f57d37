"""Runs a job in a process of its own and reads its rows as they come."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from benchmarks import machine
from benchmarks.settings import PPO, ROOT, TRL_PPO, Job, Setting
from benchmarks.worker import MARK

LAUNCH = ("accelerate.commands.launch", "--config_file", "launch/accelerate/cpu2.yaml")


def run(job: Job, limit: float) -> dict[str, Any]:
    """The job's result: status done, cut short (by `limit` seconds) or failed, and what it sent."""
    before, start = machine.load(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command(job.setting),
            cwd=ROOT,
            env=environment(job.setting),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # so that its children end with it
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            end(process)

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            messages = list(read(process))
        finally:
            timer.cancel()
            end(process)
        code = process.wait()
        errors.seek(0)
        complaint = errors.read()[-2000:]
    result = collect(messages)
    result |= {"load_average": before, "wall": time.perf_counter() - start}
    if late.is_set():
        return result | {"status": "cut short"}
    if code != 0:
        return result | {"status": "failed", "error": complaint}
    return result | {"status": "done"}


def collect(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Iterations in order, and the floors where they were measured."""
    floors = [m["floors"] for m in messages if "floors" in m]
    iterations = [m for m in messages if "floors" not in m]
    return {"iterations": iterations, "floors": floors[0] if floors else None}


def read(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(MARK):
            yield json.loads(line.removeprefix(MARK))


def end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def command(setting: Setting) -> list[str]:
    worker = ["-m", "benchmarks.worker", setting.to_json()]
    if setting.processes == 1:
        return [sys.executable, *worker]
    processes = ["--num_processes", str(setting.processes)]
    return [sys.executable, "-m", *LAUNCH, *processes, *worker]


def environment(setting: Setting) -> dict[str, str]:
    """The same threads for every system; only TRL's PPO finds its own TRL first."""
    path = [str(TRL_PPO), str(ROOT)] if setting.system == PPO else [str(ROOT)]
    threads = str(max(setting.threads // setting.processes, 1))
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONWARNINGS": "ignore",
    }
