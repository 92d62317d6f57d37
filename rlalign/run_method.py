"""A whole run of one method from a command line."""

import sys
from collections.abc import Sequence

from rlalign.config import load_config
from rlalign.exits import AuditStop, run_safely
from rlalign.loop import train
from rlalign.methods import METHODS
from rlalign.ranks import die_with_launcher
from rlalign.runs import check_run
from rlalign.session import Session
from rlalign.startup import QUICKSTART, config_stem, is_rank_zero, quiet_libraries, say
from rlalign.trainer import Trainer


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
        with Session(config) as session:
            trainer = Trainer(session, objective)
            result = train(trainer, stem=config_stem(arguments, QUICKSTART))
        session.ranks.close()
        if result.stopped is not None:
            raise AuditStop(result.stopped)

    die_with_launcher()
    quiet_libraries()
    return run_safely(job)
