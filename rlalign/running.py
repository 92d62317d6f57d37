"""The running spread of the score, by which score and KL are divided alike."""

from typing import Any

import torch
from torch import Tensor

from rlalign.masking import SumOverRanks, one_rank


class RunningScale:
    """Standard deviation of every score seen so far, over all ranks (Chan's parallel update)."""

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self.squares = 0.0  # sum of squared deviations from the mean

    @property
    def value(self) -> float:
        """The spread; 1 while there is none to speak of."""
        if self.count < 2 or self.squares <= 1e-12 * self.count:
            return 1.0
        return float((self.squares / self.count) ** 0.5)

    def update(self, score: Tensor, sum_over_ranks: SumOverRanks = one_rank) -> float:
        """Take in scores (B,) and return the spread with them counted."""
        score = score.double()
        sums = torch.stack([score.new_tensor(float(len(score))), score.sum()])
        count, total = sum_over_ranks(sums).tolist()
        mean = total / count
        squares = float(sum_over_ranks(((score - mean) ** 2).sum()))
        delta = mean - self.mean
        everything = self.count + count
        self.squares += squares + delta**2 * self.count * count / everything
        self.mean += delta * count / everything
        self.count = everything
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.mean = float(state["count"]), float(state["mean"])
        self.squares = float(state["squares"])
