"""A whole run of one method from a command line."""

import sys
from collections.abc import Sequence

from rlalign import endings, stopping
from rlalign.config import load_config
from rlalign.exits import AuditStop, run_safely
from rlalign.loop import train
from rlalign.methods import METHODS
from rlalign.ranks import Ranks, die_with_launcher
from rlalign.runs import check_run
from rlalign.session import Session
from rlalign.startup import QUICKSTART, config_stem, is_rank_zero, quiet_libraries, say
from rlalign.trainer import Trainer

SLACK_SECONDS = 60.0  # the guard, which can say who hangs, gives up before the backend does


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """Train by a method of METHODS as the command line says; the exit code of `rlalign.exits`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    method = METHODS[name]

    def job() -> None:
        config = load_config(method.run_model, arguments, default=QUICKSTART)
        objective = method.objective(config)
        for line in objective.warnings:
            say(f"warning: {line}")
        if is_rank_zero():
            check_run(config.run)
        ranks = Ranks(config.run.timeout + SLACK_SECONDS)
        endings.watch(ranks, config.run)
        try:
            with stopping.interruptible():  # nothing is begun that could be lost
                session = Session(config, ranks=ranks)
            with session:
                trainer = Trainer(session, objective)
                result = train(trainer, stem=config_stem(arguments, QUICKSTART))
        except BaseException as error:
            ending = endings.ended(error, ranks.rank)
            if ending.error is error:
                raise
            raise ending.error from error
        ranks.close()
        if result.stopped is not None:
            raise AuditStop(result.stopped)

    die_with_launcher()
    quiet_libraries()
    with stopping.listening():
        try:
            return run_safely(job)
        finally:
            endings.leave()
