"""Align a language model's output distribution with readable rewards."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlalign.api import open_trainer, train
    from rlalign.problems import ConfigError

__all__ = ["ConfigError", "open_trainer", "train"]


def __getattr__(name: str) -> Any:
    # Late, so that `rlalign --help` and reading a configuration do not wait for torch.
    if name in ("train", "open_trainer"):
        from rlalign import api

        return getattr(api, name)
    if name == "ConfigError":
        from rlalign.problems import ConfigError

        return ConfigError
    raise AttributeError(f"module 'rlalign' has no attribute {name!r}")
