"""The processes of a run: how many there are, what they agree on, how many threads each takes."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from rewards.contract import RewardConfigError, RewardError
from rlalign.config import ConfigError

PR_SET_PDEATHSIG = 1
Result = TypeVar("Result")


class Ranks:
    """Accelerate's processes: sums, maxima and messages over all of them."""

    def __init__(self) -> None:
        refuse_sharding(dict(os.environ))
        # Without cpu=True, a machine with no accelerator reports rank 0 of 1 whatever was launched.
        # Mixed precision is the policy's own, the same in sampling, training and reference.
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
        self.size = int(self.accelerator.num_processes)
        self.rank = int(self.accelerator.process_index)
        self.is_main = bool(self.accelerator.is_main_process)
        self.device = self.accelerator.device
        check_world(self.size, dict(os.environ))

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum over all ranks, the same on each."""
        if self.size == 1:
            return x
        total: Tensor = self.accelerator.reduce(x, reduction="sum")
        return total

    def max(self, value: int) -> int:
        """The largest value that any rank has."""
        if self.size == 1:
            return value
        values = self.accelerator.gather(torch.tensor([value], device=self.device))
        return int(values.max())

    def any(self, claim: bool) -> bool:
        """Whether the claim holds on some rank."""
        return bool(self.max(int(claim)))

    def from_main(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        return broadcast_object_list([value])[0]

    def gather(self, values: list[Any]) -> list[Any]:
        """Every rank's items, in the order of ranks, on every rank."""
        if self.size == 1:
            return values
        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, values)
        return [item for part in parts for item in part]

    def together(self, job: Callable[[], Result]) -> Result:
        """The job's result; a reward that fails on one rank fails on all, with the same message.

        The job must not talk to other ranks. Without this the others would wait for the failed one,
        and rank 0, which writes down how the run ended, would blame the connection.
        """
        result: list[Result] = []
        faults: list[tuple[type[Exception], str]] = []
        try:
            result.append(job())
        except (RewardError, RewardConfigError) as error:
            if self.size == 1:
                raise
            kind = RewardError if isinstance(error, RewardError) else RewardConfigError
            faults.append((kind, f"{error} (rank {self.rank})"))
        everywhere = self.gather(faults)
        if everywhere:
            kind, message = everywhere[0]
            raise kind(message)
        return result[0]

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Take the process group down, where there is one, so that the exit is clean."""
        self.accelerator.end_training()


def refuse_sharding(environment: dict[str, str]) -> None:
    """Refuse launchers that split the weights: sampling would wait for shards for ever."""
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "ZeRO")):
        if environment.get(variable) == "true":
            raise ConfigError(
                f"the launcher shards by {name} ({variable}=true): sampling from, evaluating and "
                "saving sharded weights is not there yet; use launch/accelerate/ddp.yaml"
            )


def check_world(size: int, environment: dict[str, str]) -> None:
    """Refuse to run with fewer processes than the launcher was asked for."""
    asked = int(environment.get("WORLD_SIZE", "1"))
    # accelerate's CPU launcher starts one process whatever --num_processes says, but for more than
    # one it sets the address at which they would have met.
    started_alone = "ACCELERATE_DYNAMO_BACKEND" in environment and "WORLD_SIZE" not in environment
    if started_alone and size == 1 and "MASTER_PORT" in environment:
        raise ConfigError(
            "the launcher was asked for several processes (it set MASTER_PORT) and started 1; "
            "use --config_file launch/accelerate/cpu2.yaml (accelerate's --cpu starts one only)"
        )
    if size != asked:
        raise ConfigError(f"the launcher started {asked} processes, but {size} found each other")


def set_threads(threads: int | Literal["auto"]) -> int:
    """Set torch's threads in this process and return how many; auto shares the allowed cores.

    Launchers set OMP_NUM_THREADS=1 for each process, which leaves cores idle.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    count = threads if isinstance(threads, int) else max(allowed_cores() // local, 1)
    torch.set_num_threads(count)
    return count


def allowed_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with_launcher() -> None:
    """Ask the kernel to end this process when its launcher ends: a killed one leaves no orphan.

    Without a launcher the parent is a shell, which a run in the background may outlive.
    """
    is_launched = bool({"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"} & os.environ.keys())
    if sys.platform == "linux" and is_launched:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
