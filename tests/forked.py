"""Work in forked processes, alone or as ranks that meet over gloo: torch is imported only once."""

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable

from accelerate.state import AcceleratorState, GradientState
from ports import free_port

Job = Callable[[], None]


def fork(work: Job) -> int:
    """The process that does `work`: it ends with 0, or with 1 after a traceback."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def ended(child: int, deadline: float) -> int:
    """The wait status of a child, which is killed at the deadline."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"process {child} did not end in time")
        time.sleep(0.005)


def in_ranks(world: int, work: Job, seconds: float = 120.0) -> list[int]:
    """Do `work` in so many processes of one group; their wait statuses, rank 0's first."""
    port = free_port()
    deadline = time.monotonic() + seconds

    def as_rank(rank: int) -> Job:
        def begin() -> None:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            logging.getLogger("rlalign").addHandler(logging.StreamHandler())
            if world > 1:
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(world),
                    "LOCAL_WORLD_SIZE": str(world),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "ACCELERATE_USE_CPU": "true",
                }
            work()

        return begin

    children = [fork(as_rank(rank)) for rank in range(world)]
    return [ended(child, deadline) for child in children]
