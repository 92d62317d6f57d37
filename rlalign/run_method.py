"""A whole run of one method from a command line."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

from rlalign.config import load_config
from rlalign.exits import AuditStop, run_safely
from rlalign.guard import endings, stopping
from rlalign.loop import train
from rlalign.methods import METHODS
from rlalign.ranks import die_with_launcher
from rlalign.runs import check_run
from rlalign.session import Session
from rlalign.startup import QUICKSTART, config_stem, quiet_libraries, say
from rlalign.trainer import Trainer

THREAD_SECONDS = 3.0  # what threads may take to end after a failure


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """Train by a method of METHODS as the command line says; the exit code of `rlalign.exits`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    method = METHODS[name]

    def job() -> None:
        config = load_config(method.run_model, arguments, default=QUICKSTART)
        objective = method.objective(config)
        for line in objective.warnings:
            say(f"warning: {line}")
        with endings.watched(config.run) as ranks:
            if ranks.is_main:
                check_run(config.run)
            with stopping.interruptible():  # nothing is begun that could be lost
                session = Session(config, ranks=ranks)
            with session:
                trainer = Trainer(session, objective)
                result = train(trainer, stem=config_stem(arguments, QUICKSTART))
        if result.stopped is not None:
            raise AuditStop(result.stopped)

    return as_command(job)


def as_command(job: Callable[[], None]) -> int:
    """Do the job as a command: SIGTERM asks it to stop, and it ends with its launcher."""
    die_with_launcher()
    quiet_libraries()
    before = set(threading.enumerate())
    with stopping.listening():
        try:
            code = run_safely(job)
        finally:
            endings.leave()
    if code:
        end_in_spite_of(set(threading.enumerate()) - before, code)
    return code


def end_in_spite_of(threads: set[threading.Thread], code: int) -> None:
    """End now if threads of a failed run, a reward's say, would keep its process for ever."""
    end = time.monotonic() + THREAD_SECONDS
    waited_for = [thread for thread in threads if not thread.daemon]
    for thread in waited_for:
        thread.join(max(end - time.monotonic(), 0.0))
    if any(thread.is_alive() for thread in waited_for):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
