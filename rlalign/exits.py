"""How a run ends: exit codes, and a last line on stderr that says what to do."""

import errno
import os
import sys
import traceback
from collections.abc import Callable

import torch

from rewards.contract import RewardConfigError, RewardError
from rewards.embedded import EmbeddedError
from rlalign.checkpoint import CheckpointError
from rlalign.config import ConfigError
from rlalign.terminal import printable


class Preempted(Exception):
    """The run was asked to stop, and saved itself first."""


class AuditStop(Exception):
    """A warning of the audit ended the run, which finished and saved itself first."""


class DivergedError(RuntimeError):
    """The gradient stopped being finite, step after step."""


OURS = (
    EmbeddedError,
    ConfigError,
    RewardConfigError,
    RewardError,
    CheckpointError,
    Preempted,
    AuditStop,
    DivergedError,
    KeyboardInterrupt,
)


def exit_code(error: BaseException) -> int:
    """0 done, 2 configuration, 3 checkpoint, 4 resources, 5 reward, 6 audit; 130 by hand, 143 told.

    6 and 143 come after a clean save.
    """
    if isinstance(error, ConfigError | RewardConfigError):
        return 2
    if isinstance(error, CheckpointError):
        return 3
    if isinstance(error, RewardError):
        return 5
    if isinstance(error, AuditStop):
        return 6
    if isinstance(error, Preempted):
        return 143
    if isinstance(error, KeyboardInterrupt):
        return 130
    is_full = isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    )
    return 4 if is_out_of_memory(error) or isinstance(error, EmbeddedError) or is_full else 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's CPU allocator says so in a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def run_safely(job: Callable[[], None]) -> int:
    """Run a command's job and return its exit code; faults of the user's making get one line."""
    try:
        job()
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, OURS) and not is_out_of_memory(error):
            print(printable(traceback.format_exc()), end="", file=sys.stderr, flush=True)
        # A configuration is wrong on every rank alike; once is enough.
        if not isinstance(error, ConfigError) or os.environ.get("RANK", "0") == "0":
            print(printable(f"rlalign: {last_line(error)}"), file=sys.stderr, flush=True)
        return exit_code(error)
    return 0


def last_line(error: BaseException) -> str:
    """What went wrong and what to do about it."""
    if is_out_of_memory(error):
        return (
            "out of memory; lower optim.micro_batch_tokens or sampling.batch_size, or use "
            "model.lora or model.gradient_checkpointing"
        )
    if isinstance(error, Preempted):
        return f"{error}; go on with --run.resume=auto and the same --run.name"
    if isinstance(error, AuditStop):
        return (
            f"audit.stop: {error}; the model is saved; go on with --run.resume=auto --audit.stop=[]"
        )
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; a named run goes on from its last checkpoint with --run.resume=auto"
    return str(error) or type(error).__name__
