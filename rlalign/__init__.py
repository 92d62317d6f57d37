"""Align a language model's output distribution with readable rewards."""

import os
from typing import TYPE_CHECKING, Any

# OpenMP's threads spin while they wait for each other. By default one spins for a whole time slice
# where another program holds the other's core, and a step takes ten times as long; with 1000 turns
# they sleep and wake at every small product, which costs a third. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

if TYPE_CHECKING:
    from rlalign.api import open_trainer, train
    from rlalign.problems import ConfigError
    from rlalign.trl_trainers.rewards import trl_reward_funcs

__all__ = ["ConfigError", "open_trainer", "train", "trl_reward_funcs"]


def __getattr__(name: str) -> Any:
    # Late, so that `rlalign --help` and reading a configuration do not wait for torch.
    if name in ("train", "open_trainer"):
        from rlalign import api

        return getattr(api, name)
    if name == "trl_reward_funcs":
        from rlalign.trl_trainers.rewards import trl_reward_funcs

        return trl_reward_funcs
    if name == "ConfigError":
        from rlalign.problems import ConfigError

        return ConfigError
    raise AttributeError(f"module 'rlalign' has no attribute {name!r}")
