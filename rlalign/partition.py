"""log Z(x): what each prompt's target is normalised by, as far as the samples seen so far tell."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlalign.types import PromptBatch

MOST_PROMPTS = 100_000  # kept at once; the ones seen longest ago go first

Gather = Callable[[list[Any]], list[Any]]


def same(values: list[Any]) -> list[Any]:
    """What a run of one process gathers: its own."""
    return values


def keys_of(prompts: PromptBatch) -> list[str]:
    """A digest of each prompt, equal only where prompt and columns are: rewards may read those."""
    names = sorted(prompts.columns)
    read = [
        json.dumps([text, [prompts.columns[name][i] for name in names]], default=str)
        for i, text in enumerate(prompts.texts)
    ]
    return [hashlib.sha256(text.encode()).hexdigest()[:32] for text in read]


class Partition:
    """Running means of P / q for every prompt, over about its last `memory` samples.

    Each sample's weight has the mean Z(x) whatever proposal q drew it, so samples of all iterations
    count; those of the first, far from the target, are the noisiest, and are forgotten.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._sums: dict[str, tuple[float, float]] = {}  # key -> (log of the sum, count)

    def update(self, keys: Sequence[str], log_weights: Tensor, gather: Gather = same) -> Tensor:
        """(B,) log Z of each sample's prompt, these samples (and other ranks') counted in.

        -inf where none of a prompt's samples had any weight yet.
        """
        self.add(gather(list(zip(keys, log_weights.tolist(), strict=True))))
        return torch.tensor(
            [self.log_z(key) for key in keys], dtype=torch.float64, device=log_weights.device
        )

    def add(self, pairs: Sequence[tuple[str, float]]) -> None:
        """Count in samples, each with its prompt's key and log P / q."""
        by_key: dict[str, list[float]] = {}
        for key, log_weight in pairs:
            by_key.setdefault(key, []).append(log_weight)
        for key, values in by_key.items():
            log_sum, count = self._sums.pop(key, (-math.inf, 0.0))
            keep = max(1.0 - len(values) / self.memory, 0.0)
            old = log_sum + math.log(keep) if keep > 0 else -math.inf
            new = torch.tensor([old, *values], dtype=torch.float64).logsumexp(0)
            self._sums[key] = (float(new), count * keep + len(values))
        while len(self._sums) > MOST_PROMPTS:
            del self._sums[next(iter(self._sums))]

    def shift(self, by: float) -> None:
        """Add to every log Z: what a small change of the target does to them, on average."""
        self._sums = {key: (log_sum + by, n) for key, (log_sum, n) in self._sums.items()}

    def log_z(self, key: str) -> float:
        log_sum, count = self._sums.get(key, (-math.inf, 0.0))
        return log_sum - math.log(count) if count > 0 else -math.inf

    def state_dict(self) -> dict[str, Any]:
        # JSON has no infinity.
        return {k: [s if s > -math.inf else None, n] for k, (s, n) in self._sums.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = {
            key: (-math.inf if log_sum is None else float(log_sum), float(count))
            for key, (log_sum, count) in state.items()
        }
