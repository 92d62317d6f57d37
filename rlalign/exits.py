"""How a run ends: exit codes, and a last line on stderr that says what to do."""

import errno
import os
import sys
import traceback
from collections.abc import Callable

from rewards.contract import RewardConfigError, RewardError
from rewards.embedded import EmbeddedError
from rlalign.checkpoints.folder import CheckpointError
from rlalign.config import ConfigError
from rlalign.files import DiskError
from rlalign.guard.whereabouts import HERE, Interrupted
from rlalign.heap import is_out_of_memory
from rlalign.problems import HubError
from rlalign.ranks import OutOfMemory, RankFailed
from rlalign.terminal import printable


class Preempted(Exception):
    """The run was asked to stop, and saved itself first, if it `can_go_on`."""

    def __init__(self, message: str, can_go_on: bool = True) -> None:
        super().__init__(message)
        self.can_go_on = can_go_on


class AuditStop(Exception):
    """A warning of the audit ended the run, which finished and saved itself first."""


class DivergedError(RuntimeError):
    """The gradient stopped being finite, step after step."""


OURS = (
    EmbeddedError,
    HubError,
    ConfigError,
    RewardConfigError,
    RewardError,
    CheckpointError,
    DiskError,
    Preempted,
    AuditStop,
    DivergedError,
    RankFailed,
    Interrupted,
    KeyboardInterrupt,
)


def exit_code(error: BaseException) -> int:
    """0 done, 2 configuration, 3 checkpoint, 4 resources, 5 reward, 6 audit, 7 hung.

    And 130 by hand, 137 killed, 143 told to stop. 6 and 143 come after a clean save; 7 and 137
    stand in run.json only, because the process was past saying so.
    """
    if isinstance(error, RankFailed):
        return error.exit_code
    if isinstance(error, ConfigError | RewardConfigError):
        return 2
    if isinstance(error, CheckpointError):
        return 3
    if isinstance(error, RewardError):
        return 5
    if isinstance(error, AuditStop):
        return 6
    if isinstance(error, Preempted | Interrupted):
        return 143
    if isinstance(error, KeyboardInterrupt):
        return 130
    is_full = isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    )
    return (
        4
        if is_out_of_memory(error) or isinstance(error, EmbeddedError | HubError) or is_full
        else 1
    )


def run_safely(job: Callable[[], None]) -> int:
    """Run a command's job and return its exit code; faults of the user's making get one line."""
    try:
        job()
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        if not isinstance(error, OURS) and not is_out_of_memory(error):
            print(printable(traceback.format_exc()), end="", file=sys.stderr, flush=True)
        # A configuration is wrong on every rank alike; once is enough.
        if not isinstance(error, ConfigError) or os.environ.get("RANK", "0") == "0":
            print(printable(f"rlalign: {last_line(error)}"), file=sys.stderr, flush=True)
        return exit_code(error)
    return 0


def last_line(error: BaseException) -> str:
    """What went wrong, where, and what to do about it."""
    if isinstance(error, Preempted):
        how = "go on with --run.resume=auto and the same --run.name"
        return f"{error}; {how if error.can_go_on else 'start again'}"
    if isinstance(error, Interrupted):
        return "stopped before anything was begun"
    if isinstance(error, AuditStop):
        return (
            f"audit.stop: {error}; the model is saved; go on with --run.resume=auto --audit.stop=[]"
        )
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; a named run goes on from its last checkpoint with --run.resume=auto"
    place = f" (in {HERE})" if HERE.iteration is not None else ""
    if is_out_of_memory(error):
        what = str(error) if isinstance(error, OutOfMemory) else f"out of memory{place}"
        return (
            f"{what}; lower optim.micro_batch_tokens or sampling.batch_size, or use "
            "model.lora or model.gradient_checkpointing"
        )
    if isinstance(error, DivergedError):
        return f"{error}{place}"
    if isinstance(error, OURS):
        return str(error) or type(error).__name__
    return (
        f"{type(error).__name__}: {error}{place}; the traceback is above; a named run goes on from "
        "its last checkpoint with --run.resume=auto"
    )
