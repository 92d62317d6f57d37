"""Checkpoints small enough to be written many times, for the tests of their files."""

from pathlib import Path

import torch

from rlalign.checkpoints.folder import save_checkpoint

STATE = {"cursor": [1, 2], "rng": 2**80 + 1, "beta": 0.1 + 0.2, "name": "ü", "none": None}


def tensors(value: float, size: int = 8) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "policy": {"a": torch.full((size,), value), "b": torch.ones(2, dtype=torch.bfloat16)},
        "rng": {"rank0": torch.arange(5, dtype=torch.uint8)},
    }


def save(root: Path, step: int, keep: int = 2, size: int = 8) -> Path:
    return save_checkpoint(root, step, tensors(step, size), {**STATE, "step": step}, keep=keep)


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}
