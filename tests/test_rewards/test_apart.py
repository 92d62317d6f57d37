"""What a reward changes of its process is put back, and said once."""

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewards import RewardSet, apart, load_file, parse_entries

CHANGES: dict[str, tuple[str, Callable[[], Any]]] = {
    "os.chdir('/')": ("the working directory", os.getcwd),
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)": (
        "the handler of SIGTERM",
        lambda: signal.getsignal(signal.SIGTERM),
    ),
    "signal.signal(signal.SIGALRM, print), signal.alarm(1)": (
        "the alarm",
        lambda: signal.getitimer(signal.ITIMER_REAL),
    ),
    "torch.set_num_threads(3)": ("torch's number of threads", torch.get_num_threads),
    "torch.set_default_dtype(torch.float64)": ("torch's default dtype", torch.get_default_dtype),
    "torch.set_default_device('meta')": ("torch's default device", torch.get_default_device),
    "torch.use_deterministic_algorithms(True, warn_only=True)": (
        "torch's choice of deterministic algorithms",
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
    ),
    "torch.set_grad_enabled(False)": ("whether torch records gradients", torch.is_grad_enabled),
    "torch.set_float32_matmul_precision('medium')": (
        "torch's precision of float32 products",
        torch.get_float32_matmul_precision,
    ),
    "setattr(torch.backends.cudnn, 'benchmark', True)": (
        "cuDNN's choice of algorithms",
        lambda: torch.backends.cudnn.benchmark,
    ),
    "np.seterr(all='raise')": ("numpy's handling of errors", np.geterr),
}
FILE = """
import os, signal
import numpy as np, torch
from rewards import reward

AT = {at!r}
if AT == "import":
    {change}


@reward("changing.reward")
class Changing:
    def __init__(self) -> None:
        if AT == "build":
            {change}

    def load(self) -> None:
        if AT == "load":
            {change}

    def __call__(self, completions: list[str]) -> list[float]:
        if AT == "call":
            {change}
        return [0.0] * len(completions)


async def waiting(completions, **kwargs):
    if AT == "await":
        {change}
    return [0.0] * len(completions)
"""


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch):
    """Whatever a test that fails leaves behind must not reach the next."""
    monkeypatch.setattr(apart, "_warned", set())
    with apart.Apart("a test"):
        yield


def use(tmp_path: Path, change: str, at: str) -> None:
    """Import, build, load and call a reward that changes something at one of these."""
    path = tmp_path / "changing.py"
    path.write_text(FILE.format(change=change, at=at))
    load_file(path)
    section = {"x": {"kind": "changing.reward"}, "y": {"kind": "waiting"}}
    rewards = RewardSet(parse_entries(section))
    for _ in range(2):
        rewards([""], ["a"])


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_call_changes_is_put_back_and_said_once(tmp_path, caplog, change):
    what, read = CHANGES[change]
    before = read()
    with caplog.at_level(logging.WARNING, "rewards.apart"):
        use(tmp_path, change, "call")
    assert read() == before
    said = [m for m in caplog.messages if f"changed {what}, which" in m]
    assert len(said) == 1 and said[0].startswith("reward 'x' (changing.reward, ")


@pytest.mark.parametrize("at", ["import", "build", "load", "await"])
def test_so_is_what_is_changed_before_the_first_call_or_while_waiting(tmp_path, caplog, at):
    before = os.getcwd(), torch.get_default_dtype()
    use(tmp_path, "os.chdir('/'), torch.set_default_dtype(torch.float64)", at)
    assert (os.getcwd(), torch.get_default_dtype()) == before
    who = {"import": "reward file '", "await": "reward 'y' (waiting, "}.get(at, "reward 'x' (chan")
    assert all(message.startswith(who) for message in caplog.messages) and caplog.messages


def test_keeping_apart_costs_next_to_nothing():
    own = apart.Apart("a test")
    begun = time.process_time()
    for _ in range(100):
        with own:
            pass
    assert (time.process_time() - begun) / 100 < 0.01  # some 0.1 ms, twice a call of a reward


def test_a_reward_may_hold_async_rewards(tmp_path):
    (tmp_path / "waits.py").write_text(
        "import asyncio, random\n"
        "async def waits(completions, **kwargs):\n"
        "    await asyncio.sleep(0.001)\n"
        "    return [random.random() for _ in completions]\n"
    )
    load_file(tmp_path / "waits.py")
    parts = {
        "a": {"kind": "waits"},
        "b": {"kind": "combine.min", "parts": {"c": {"kind": "waits"}}},
    }
    inner = RewardSet(parse_entries(parts))

    def outer(completions):
        return inner([""] * len(completions), completions, seed=1).score.tolist()

    rewards = RewardSet([], [outer])
    assert rewards([""], ["a"]).values.tolist() == rewards([""], ["a"]).values.tolist()
