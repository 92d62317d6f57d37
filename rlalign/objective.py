"""What an algorithm is to the trainer that runs it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlalign.masking import SumOverRanks
from rlalign.partition import Gather
from rlalign.policy import Policy
from rlalign.types import LossOutput, Norm, ScoredRollout


class Objective(Protocol):
    """An algorithm: how a scored rollout becomes a batch, and a batch a loss.

    `batch` is the algorithm's own dataclass; `rows(index)` cuts samples out of it.
    """

    sum_over_ranks: SumOverRanks  # set by the trainer
    budget: int  # tokens of a pass, set by the trainer
    gather: Gather  # set by the trainer
    warnings: list[str]  # settings that move the optimum away from the target

    name: str  # of its section in the configuration
    title: str  # what a reader calls it
    smooths: bool  # whether what is hard must be possible, however unlikely
    reads_tokens: bool  # whether it matters which token a reward is paid at

    @property
    def kl_coef(self) -> float: ...  # beta of the target that is approached now
    @property
    def last_kl(self) -> Tensor: ...  # (B,) nats to the reference of the responses prepared last
    @property
    def last_log_ratio(self) -> Tensor: ...  # (B,) log reference / what drew them

    def proposal(self, policy: Policy) -> AbstractContextManager[None]: ...  # what draws, within it

    def prepare(self, policy: Policy, scored: ScoredRollout) -> tuple[Any, dict[str, float]]: ...
    def minibatches(self, batch: Any, generator: torch.Generator) -> Iterator[Tensor]: ...
    def loss(self, policy: nn.Module, batch: Any, norm: Norm) -> LossOutput: ...
    def stops_early(self, stats: dict[str, float]) -> bool: ...
    def after_iteration(self, samples: int) -> None: ...
    def retarget(self, log_z: float) -> None: ...  # the target moved, and log Z by this
    def learning_rates(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def tensors(self) -> dict[str, Tensor]: ...  # the part of its state that is no JSON
    def load_state_dict(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None: ...
