"""The processes of a run: how many there are, what they agree on, how many threads each takes."""

import ctypes
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor, nn

from rewards.contract import RewardConfigError, RewardError
from rlalign.config import ConfigError
from rlalign.cores import allowed_cores
from rlalign.guard.whereabouts import HERE, Interrupted
from rlalign.heap import is_out_of_memory

PR_SET_PDEATHSIG = 1
FOR_EVER = 30 * 86_400.0  # seconds
BUCKET_ELEMENTS = 8 << 20  # of gradients that travel together
Result = TypeVar("Result")


class RankFailed(RuntimeError):
    """Another rank failed, and this one cannot go on without it."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class OutOfMemory(MemoryError):
    """Memory ran out on some rank; the message says where."""


class Ranks:
    """Accelerate's processes: sums, maxima and messages over all of them.

    `timeout` is how many seconds a meeting of all may take before the backend gives it up (None:
    weeks).
    """

    def __init__(self, timeout: float | None = None) -> None:
        refuse_sharding(dict(os.environ))
        seconds = FOR_EVER if timeout is None else timeout
        patience = InitProcessGroupKwargs(timeout=timedelta(seconds=seconds))
        # Without cpu=True, a machine with no accelerator reports rank 0 of 1 whatever was launched.
        # Mixed precision is the policy's own, the same in sampling, training and reference.
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[patience]
        )
        self.size = int(self.accelerator.num_processes)
        self.rank = int(self.accelerator.process_index)
        self.local_rank = int(self.accelerator.local_process_index)
        self.is_main = bool(self.accelerator.is_main_process)
        self.device = self.accelerator.device
        check_world(self.size, dict(os.environ))
        HERE.rank = self.rank if self.size > 1 else None
        self.host = host_name()
        self.hosts: list[str] = self.gather([self.host])  # of every rank

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum over all ranks, the same on each."""
        if self.size == 1:
            return x
        with HERE.waiting():
            total: Tensor = self.accelerator.reduce(x, reduction="sum")
        return total

    def max(self, value: int) -> int:
        """The largest value that any rank has."""
        if self.size == 1:
            return value
        with HERE.waiting():
            values = self.accelerator.gather(torch.tensor([value], device=self.device))
        return int(values.max())

    def any(self, claim: bool) -> bool:
        """Whether the claim holds on some rank."""
        return bool(self.max(int(claim)))

    def from_main(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        with HERE.waiting():
            return broadcast_object_list([value])[0]

    def gather(self, values: list[Any]) -> list[Any]:
        """Every rank's items, in the order of ranks, on every rank."""
        if self.size == 1:
            return values
        parts: list[Any] = [None] * self.size
        with HERE.waiting():
            torch.distributed.all_gather_object(parts, values)
        return [item for part in parts for item in part]

    def together(self, job: Callable[[], Result], *, stoppable: bool = True) -> Result:
        """The job's result; where it fails on one rank it fails on all, by the same message.

        The job must not talk to other ranks, and, if `stoppable`, leave nothing half done: where
        the run is asked to stop it ends at its next tick, with Interrupted on all ranks. Without
        this the others would wait for the rank that failed.
        """
        result: list[Result] = []
        fault: BaseException | None = None
        try:
            with HERE.stoppable() if stoppable else nullcontext():
                result.append(job())
        except (Exception, SystemExit, Interrupted) as error:
            fault = error
        faults = []
        if fault is not None:
            kind, message = told(fault)
            faults = [(self.rank, kind, message)]
            if kind is not Interrupted and HERE.on_fault is not None:  # others may be busy for long
                HERE.on_fault(fault if kind is RankFailed else kind(message))
        if not self.any(bool(faults)):
            return result[0]
        faults = self.gather(faults)
        rank, kind, message = min(faults, key=lambda each: (each[1] is Interrupted, each[0]))
        if rank == self.rank and fault is not None and kind is RankFailed:
            raise fault
        raise kind(message) from fault

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every gradient becomes the sum over all ranks; one that no rank has stays missing.

        By hand and after the last micro-batch, not by DistributedDataParallel in its midst: there a
        rank that fails in its backward pass leaves the others waiting for ever.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        gradients = []
        for parameter, some_has in zip(parameters, self.sum(has).tolist(), strict=True):
            if some_has and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        with HERE.waiting():
            moving: deque[tuple[list[Tensor], Tensor, Any]] = deque()
            for bucket in buckets(gradients):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                moving.append((bucket, flat, torch.distributed.all_reduce(flat, async_op=True)))
                if len(moving) > 1:  # no more copies at once than keep the line busy
                    put_back(*moving.popleft())
            while moving:
                put_back(*moving.popleft())

    def from_main_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Rank 0's values, into the same tensors of every rank."""
        if self.size == 1:
            return
        with HERE.waiting(), torch.no_grad():
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def wait(self) -> None:
        with HERE.waiting():
            self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Take the process group down, where there is one, so that the exit is clean."""
        self.accelerator.end_training()


def told(fault: BaseException) -> tuple[type[BaseException], str]:
    """What every rank raises for a fault of this one: its kind, if it is of the user's making.

    Other kinds may not be made from a message alone, nor unpickled.
    """
    if isinstance(fault, Interrupted):
        return Interrupted, ""
    for kind in (RewardError, RewardConfigError):
        if isinstance(fault, kind):
            return kind, f"{fault} (in {HERE})" if HERE.iteration is not None else str(fault)
    if is_out_of_memory(fault):
        return OutOfMemory, f"out of memory (in {HERE})"
    return RankFailed, f"{type(fault).__name__}: {fault} (in {HERE})"


def put_back(bucket: list[Tensor], flat: Tensor, work: Any) -> None:
    """Wait for a bucket's sum, and give each gradient its part."""
    work.wait()
    parts = torch.split(flat, [gradient.numel() for gradient in bucket])
    for gradient, part in zip(bucket, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def buckets(gradients: Iterable[Tensor]) -> list[list[Tensor]]:
    """Gradients of one type each, so many together that few messages carry them all."""
    filled: list[list[Tensor]] = []
    room, dtype = 0, None
    for gradient in gradients:
        if gradient.dtype != dtype or gradient.numel() > room:
            filled.append([])
            room, dtype = BUCKET_ELEMENTS, gradient.dtype
        filled[-1].append(gradient)
        room -= gradient.numel()
    return filled


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says no more than that another rank is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)


def host_name() -> str:
    """Of this machine; two of the same name differ by when they were started."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot}"


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


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return bool({"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"} & os.environ.keys())


def die_with_launcher() -> None:
    """Ask the kernel to end this process when its launcher ends: a killed one leaves no orphan.

    Without a launcher the parent is a shell, which a run in the background may outlive.
    """
    if sys.platform == "linux" and is_launched():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
