"""The global random generators of Python, numpy and torch, kept apart for those who share them."""

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

# Each generator's way back, and the state to go back to.
States = list[tuple[Callable[[Any], object], Any]]


class OwnRandomness:
    """Within it the global generators are a stream of its own; after it, as they were.

    The stream goes on where it stopped: a bare restore would let every call draw the same numbers.
    It begins as a copy of the generators and is no part of a checkpoint.
    """

    def __init__(self) -> None:
        self._own: States = []
        self._others: States = []

    def __enter__(self) -> None:
        self._others = _states()
        _restore(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = _states()
        _restore(self._others)


def _states() -> States:
    states: States = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
    ]
    torch = sys.modules.get("torch")
    if torch is not None:
        states.append((torch.set_rng_state, torch.get_rng_state()))
        if torch.cuda.is_initialized():
            states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return states


def _restore(states: States) -> None:
    for set_state, state in states:
        set_state(state)
