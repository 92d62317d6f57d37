"""The worker's side of `rewards/isolation.py`: build rewards, call them, answer in JSON."""

import ctypes
import faulthandler
import importlib
import json
import os
import pickle
import random
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards import classifiers, randomness, registry
from rewards.contract import (
    Failure,
    Loads,
    ReadsColumns,
    Reward,
    RewardConfigError,
    Score,
    Stateful,
    described,
)
from rewards.returned import Item, Wrong, taken
from rewards.state import plain_json

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Origin:
    """Where a worker finds a kind, and on what device its models are to run."""

    kind: str
    file: Path | None  # a reward file; its code is sent as it was when the run began
    code: bytes
    module: str
    device: str


def work(parent: int) -> None:
    """A worker's life: answer until the pipe closes or the parent ends."""
    _die_with(parent)
    # Whether a batch is given up is the parent's to decide, which hears the same signals.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a reward prints must not be taken for a reply
    rewards = Rewards()
    while size := requests.read(8):
        reply = _reply(requests.read(int.from_bytes(size, "big")), rewards)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()
    os._exit(0)  # whatever threads the reward has left running


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, however busy it is then.

    Its parent is the thread that started it: one that ends takes its workers along.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Rewards:
    """The rewards that a worker holds, all of one kind, each under a number."""

    def __init__(self) -> None:
        self._kind = ""
        self._built: dict[int, Reward] = {}

    def open(self, origin: Origin) -> None:
        random.seed(0)  # so that equal runs meet equal noise
        np.random.seed(0)
        classifiers.set_device(origin.device)
        if origin.file is not None:
            registry.load_code(origin.file, origin.code)
        else:
            importlib.import_module(origin.module)
        self._kind = origin.kind

    def build(self, number: int, params: bytes, seed: int | None) -> list[str]:
        """The columns that the reward's settings name; what it draws until a call is of `seed`."""
        _seed(seed)
        made: Reward = registry.get(self._kind).build(pickle.loads(params))
        self._built[number] = made
        return list(made.columns_read()) if isinstance(made, ReadsColumns) else []

    def load(self, number: int) -> None:
        made = self._built[number]
        if isinstance(made, Loads):
            made.load()

    def call(
        self, number: int, columns: dict[str, list[Any]], size: int, seed: int | None
    ) -> object:
        _seed(seed)
        return _sent(taken(self._built[number](**columns), size))

    def state(self, number: int) -> dict[str, Any]:
        made = self._built[number]
        assert isinstance(made, Stateful)
        return plain_json(made.state_dict(), type(made).__name__)

    def restore(self, number: int, state: dict[str, Any]) -> None:
        made = self._built[number]
        assert isinstance(made, Stateful)
        made.load_state_dict(state)

    def drop(self, number: int) -> None:
        self._built.pop(number, None)


def _seed(seed: int | None) -> None:
    if seed is not None:
        randomness.restore(randomness.seeded(seed))


def _reply(message: bytes, rewards: Rewards) -> dict[str, Any]:
    try:
        task, *data = pickle.loads(message)
        return {"returned": getattr(rewards, task)(*data)}
    except RewardConfigError as error:
        return {"misconfigured": str(error)}
    except (Exception, SystemExit) as error:
        return {"raised": described(error), "traceback": traceback.format_exc()}


def _sent(returned: list[Item] | Wrong) -> object:
    """It in JSON's terms; a float is written so that it reads back exactly."""
    return returned.what if isinstance(returned, Wrong) else [_sent_item(item) for item in returned]


def _sent_item(item: Item) -> object:
    if isinstance(item, Failure):
        return {"failure": item.reason}
    if isinstance(item, Wrong):
        return {"wrong": item.what}
    if isinstance(item, Score):
        return [float(item), [(span.start, span.end, span.credit) for span in item.spans]]
    return item
