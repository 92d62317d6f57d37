"""One measurement in a process of its own: `python -m benchmarks.worker SETTING`.

Prints a line `RESULT {...}` as each iteration ends; anything else on the output is chatter.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.machine import peak_memory_mb
from benchmarks.settings import GRPO, OURS, PPO, Setting

MARK = "RESULT "
Emit = Callable[[dict[str, Any]], None]


class Finished(Exception):
    """The score has been reached, or the time is up."""


class Recorder:
    """Sends each iteration's row to the parent, and ends the run where the setting says so."""

    def __init__(self, setting: Setting, is_main: bool = True) -> None:
        self.setting, self.is_main = setting, is_main
        self.scores: list[float] = []
        self.spent = 0.0  # seconds of iterations

    def __call__(self, row: dict[str, Any]) -> None:
        """Take an iteration's row; raises Finished after the last one."""
        self.spent += row["total"]
        self.scores.append(row["score"])
        row.setdefault("peak_mb", peak_memory_mb())
        self.send({"iteration": len(self.scores), "spent": self.spent, **row})
        if is_over(self.scores, self.spent, self.setting):
            raise Finished

    def send(self, message: dict[str, Any]) -> None:
        if self.is_main:
            print(MARK + json.dumps(message), flush=True)


def is_over(scores: list[float], spent: float, setting: Setting) -> bool:
    """Whether the last window's mean is the target, or the time or the iterations are used up."""
    if has_reached(scores, setting) or len(scores) >= setting.iterations:
        return True
    return setting.seconds is not None and spent >= setting.seconds


def has_reached(scores: list[float], setting: Setting) -> bool:
    """A full window of iterations is asked for: a lucky first one is no result."""
    if setting.target is None or len(scores) < setting.window:
        return False
    return sum(scores[-setting.window :]) / setting.window >= setting.target


def now() -> float:
    """Seconds, after whatever an accelerator still had to do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def run(setting: Setting) -> None:
    # Each in its own module: the TRL that one of them needs is not the one that others import.
    if setting.technique is not None:
        from benchmarks import ablation

        ablation.run(setting)
    elif setting.system == OURS:
        from benchmarks import ours

        ours.run(setting)
    elif setting.system == PPO:
        from benchmarks import trl_ppo

        trl_ppo.run(setting)
    elif setting.system == GRPO:
        from benchmarks import trl_grpo

        trl_grpo.run(setting)


if __name__ == "__main__":
    run(Setting.from_json(sys.argv[1]))
