"""A run that a fault meets at a chosen place: `python tests/faults.py ppo --config=...`.

FAULTS in the environment is a JSON list of {"kind", "phase", "iteration", "rank"}: that rank meets
the fault once, on entering that phase in that iteration or, if there is none in it, a later one;
"amid PHASE" is at the first sign of life within it.
"""

import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from rlalign import run_method
from rlalign.algorithms.ppo import PPO
from rlalign.guard.whereabouts import HERE, Whereabouts
from rlalign.trl_trainers import run as trl_run

RANK = int(os.environ.get("RANK", "0"))
ONCE = {"armed": ""}  # what the update meets


def meet(kind: str) -> None:
    """The fault itself."""
    print(f"met: {kind}", file=sys.stderr, flush=True)
    if kind == "exception":
        raise TypeError("a fault of ours")
    if kind in ("out of memory", "nan"):
        ONCE["armed"] = kind
    elif kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "sleep":
        time.sleep(1000)
    elif kind == "loop in C":
        re.match(r"(a|aa)+$", "a" * 60 + "b")  # Python runs no other thread and no handler
    elif kind == "kill the guard":
        signal_children("guard.watching", signal.SIGKILL)
    elif kind == "kill the reward":
        signal_children("rewards.worker", signal.SIGKILL)
    elif kind == "freeze the reward":
        signal_children("rewards.worker", signal.SIGSTOP)
    elif kind == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "SIGTERM to the launcher":
        os.kill(os.getppid(), signal.SIGTERM)
    elif kind == "SIGKILL to the launcher":
        os.kill(os.getppid(), signal.SIGKILL)
    else:
        raise ValueError(kind)


def signal_children(command: str, number: signal.Signals) -> None:
    """Send a signal to this process's children that run a command."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            parent = f"PPid:\t{os.getpid()}\n"
            if command.encode() in place.read_bytes() and parent in (
                place.with_name("status").read_text()
            ):
                os.kill(int(place.parent.name), number)


def install(faults: list[dict]) -> None:
    """Have `HERE.within` meet the faults, and the update what they have armed."""
    left = [fault for fault in faults if fault["rank"] == RANK]
    within, backward, loss = Whereabouts.within, torch.autograd.backward, PPO.loss
    tick, does = Whereabouts.tick, Whereabouts.does

    def watched(self: Whereabouts, phase: str):
        entered = within(self, phase)
        for fault in list(left):
            since, now = fault.get("iteration"), self.iteration
            is_time = since == now or (since is not None and now is not None and since <= now)
            if fault["phase"] == phase and is_time:
                left.remove(fault)
                return _meeting(entered, fault["kind"])
        return entered

    def ticking(self: Whereabouts) -> None:
        place = f"amid {self.phase}"  # the first token of a batch, or the first of its passes
        for fault in list(left):
            if fault["phase"] == place and (self.iteration or 0) >= (fault["iteration"] or 0):
                left.remove(fault)
                meet(fault["kind"])
        tick(self)

    def asking(self: Whereabouts, what: str) -> None:
        does(self, what)
        if what and self.phase == "score":
            ticking(self)

    def exhausted(*given, **more):
        if ONCE["armed"] == "out of memory":
            ONCE["armed"] = ""
            raise torch.OutOfMemoryError("a fault of ours")
        backward(*given, **more)

    def broken(self: PPO, *given):
        out = loss(self, *given)
        if ONCE["armed"] == "nan":
            ONCE["armed"] = ""
            stats = {name: x * math.nan for name, x in out.stats.items()}
            return replace(out, loss=out.loss * math.nan, stats=stats)
        return out

    Whereabouts.within = watched  # type: ignore[method-assign]
    Whereabouts.tick, Whereabouts.does = ticking, asking  # type: ignore[method-assign]
    torch.autograd.backward = exhausted
    PPO.loss = broken  # type: ignore[method-assign]


class _meeting:
    """The phase, in which the fault is met first."""

    def __init__(self, entered, kind: str) -> None:
        self.entered, self.kind = entered, kind

    def __enter__(self) -> None:
        self.entered.__enter__()
        meet(self.kind)

    def __exit__(self, *error) -> bool | None:
        return self.entered.__exit__(*error)


def main(argv: Sequence[str]) -> int:
    """`rlalign METHOD ...`."""
    method, *settings = argv
    if method in ("grpo", "rloo"):
        return trl_run.main(method, settings)
    return run_method.main(method, settings)


if __name__ == "__main__":
    install(json.loads(os.environ.get("FAULTS", "[]")))
    assert HERE.phase == "start"
    sys.exit(main(sys.argv[1:]))
