"""Seeds by name, and the states of the global random generators of Python, numpy and torch."""

import hashlib
import random
import sys
from typing import Any, overload

import numpy as np

States = dict[str, Any]  # by generator
_LOW = 2**32 - 1


@overload
def derived(seed: int, *names: object) -> int: ...
@overload
def derived(seed: int | None, *names: object) -> int | None: ...
def derived(seed: int | None, *names: object) -> int | None:
    """A seed of 63 bits that is a function of another and of these names alone; None of None."""
    if seed is None:
        return None
    # Hashed, because sums would let one seed's later names be another's earlier ones.
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seeded(seed: int) -> States:
    """The states that the generators would have if each was given this seed."""
    states: States = {
        "python": random.Random(seed).getstate(),
        "numpy": np.random.RandomState([seed & _LOW, seed >> 32 & _LOW]).get_state(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.Generator().manual_seed(seed).get_state()
        if torch.cuda.is_initialized():
            states["cuda"] = [
                torch.Generator(f"cuda:{i}").manual_seed(seed).get_state()
                for i in range(torch.cuda.device_count())
            ]
    return states


def current() -> States:
    """The states that the generators have now."""
    states: States = {"python": random.getstate(), "numpy": np.random.get_state()}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore(states: States) -> None:
    """Go back to these states; torch, where it has come since, to that of a fresh start."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch = sys.modules.get("torch")
    if torch is None:
        return
    torch.set_rng_state(states["torch"] if "torch" in states else torch.Generator().get_state())
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
