"""A reward that does what its text says, and fixtures that run it in a worker process."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewards import (
    RewardSet,
    load_file,
    registry,
)
from rewards.asking import Call
from rewards.compose import RewardEntry
from rewards.isolation import Isolated

DEADLINE = 1.0


REWARD_FILE = '''
import ctypes
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

from rewards import isolation
from rewards import RewardConfigError, RewardError, Score, Span, reward

seen = 0


@reward("own.moody")
def moody(completions: list[str], *, factor: float = 1.0) -> list[float]:
    """What the text says that it should do."""
    return [react(text, factor) for text in completions]


def react(text, factor):
    global seen
    seen += 1
    if text.startswith("hang"):
        while True:
            pass
    if text == "sleep":
        time.sleep(60)
    if text == "power":  # one call into C, which holds the interpreter
        9 ** (9 ** 9)
    if text == "backtrack":
        re.fullmatch("(a|a)*b", "a" * 64)
    if text == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if text == "flood":
        while True:
            for number in range(3, 20):
                try:
                    os.write(number, b"x" * 65536)
                except OSError:
                    pass
    if text.startswith("child "):
        log = text.split()[1]
        shell = ["sh", "-c", f"echo $$ > {log}; exec sleep 120"]
        subprocess.Popen(shell, start_new_session=True)
        while not os.path.exists(log) or not open(log).read():
            time.sleep(0.01)
        while True:
            pass
    if text == "segfault":
        ctypes.string_at(0)
    if text == "exit":
        os._exit(3)
    if text == "scribble":
        for number in range(3, 20):
            try:
                os.write(number, b"nonsense\\n")
            except OSError:
                pass
    if text == "leave":
        sys.exit(3)
    if text == "memory":
        raise MemoryError
    if text == "raise":
        raise ValueError("bad text")
    if text == "print":
        print('{"returned": [9.0]}', flush=True)
        os.write(1, b'{"returned": [9.0]}\\n')
        os.system("echo from a shell; read line")
        threading.Thread(target=time.sleep, args=(60,)).start()
    if text.startswith("doze"):
        time.sleep(0.3)
    if text == "ours":
        raise RewardError("inner trouble")
    if text.startswith("chance"):
        return random.random()
    if text == "pid":
        return os.getpid()
    if text == "seen":
        return seen
    if text == "tiny":
        return Score(0.1 + 0.2, [Span(0, 1, 5e-324), Span(1, 2, -0.0)])
    if text == "none":
        return None
    # Unlike for a text that came back changed in any character.
    value = factor * sum((i + 1) * ord(c) for i, c in enumerate(text)) / 7
    return Score(value, [Span(0, len(text) // 2, value / 3), Span(0, len(text), value / 7)])


RETURNED = {
    "no list": lambda: 0.5,
    "a string": lambda: "ab",
    "nothing": lambda: None,
    "too few": lambda: [0.5],
    "text": lambda: [0.0, "0.5"],
    "complex": lambda: [0.0, 1j],
    "list": lambda: [0.0, [0.5]],
    "nan": lambda: [0.0, math.nan],
    "infinite": lambda: [0.0, -math.inf],
    "huge": lambda: [0.0, 10**400],
    "beyond": lambda: [0.0, Score(1.0, [Span(0, 9, 1.0)])],
    "credit": lambda: [0.0, Score(1.0, [Span(0, 1, math.nan)])],
}


@reward("own.wrong", cache=False)
def wrong(completions: list[str], how: list[str]) -> list[float]:
    return RETURNED[how[0]]()


@reward("own.heavy")
class Heavy:
    """Writes down the worker that builds and loads it."""

    def __init__(self, *, log: str, fault: str = "") -> None:
        self.log, self.loads = log, 0
        open(log, "a").write(f"{os.getpid()}\\n")
        if fault == "config":
            raise RewardConfigError("fault='config' is wrong; remove it")
        self.fault = fault

    def load(self) -> None:
        if self.fault == "crash":
            os._exit(3)
        self.loads += 1

    def __call__(self, completions: list[str]) -> list[float]:
        return [self.loads if "loads" in text else os.getpid() for text in completions]
'''


@pytest.fixture(scope="module", autouse=True)
def reward_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    specs, files = dict(registry._specs), dict(registry._files)
    path = tmp_path_factory.mktemp("isolated") / "moody.py"
    path.write_text(REWARD_FILE)
    load_file(path)
    yield path
    for kept, now in ((specs, registry._specs), (files, registry._files)):
        now.clear()
        now.update(kept)


def reward_set(kind: str = "own.moody", isolate: bool = True, **options) -> RewardSet:
    return RewardSet([RewardEntry("x", kind, isolate=isolate, **options)])


@pytest.fixture(scope="module")
def isolated() -> Iterator[RewardSet]:
    """One for all tests, which start a new worker where the one before has lost its own."""
    rewards = reward_set()
    yield rewards
    rewards.close()


@pytest.fixture(scope="module")
def hasty() -> Iterator[RewardSet]:
    rewards = reward_set(on_error="skip", deadline=DEADLINE)
    yield rewards
    rewards.close()


@pytest.fixture(scope="module")
def function() -> Iterator[Callable[..., list]]:
    made = Isolated(registry.get("own.moody"), {}, DEADLINE)
    yield lambda completions: made.call({"completions": completions}, len(completions), Call())
    made.close()


def exists(pid: int) -> bool:
    """Whether there is such a process, a dead one that nobody waited for included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def worker_of(rewards: RewardSet) -> int:
    return int(rewards([""], ["pid"]).values[0, 0])
