"""Why a run ends: this process's error, or the other rank's that brought it about."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlalign.exits import AuditStop, Preempted, exit_code, last_line
from rlalign.guard.telling import Guarded, guarded, where
from rlalign.guard.whereabouts import HERE
from rlalign.ranks import RankFailed, Ranks, is_lost_connection
from rlalign.redact import redact_text
from rlalign.settings.run_section import RunSection

Status = Literal["stopped", "failed", "preempted"]
SLACK_SECONDS = 60.0  # the guard, which can say who hangs, gives up before the backend does
_guard: Guarded | None = None  # this process's, where it was started from a command line


@dataclass(frozen=True)
class Ending:
    """How a run ends badly, and where it was."""

    error: BaseException
    rank: int
    where: str

    @property
    def status(self) -> Status:
        return status_of(self.error)


@contextmanager
def watched(section: RunSection) -> Iterator[Ranks]:
    """The ranks of a run from a command line, watched by this machine's guard until `leave`."""
    global _guard
    timeout = section.timeout
    ranks = Ranks(None if timeout is None else timeout + SLACK_SECONDS)
    _guard = guarded(ranks, timeout or 0.0, section.grace)
    HERE.on_fault = lambda error: ended(error, ranks.rank)
    try:
        yield ranks
    except BaseException as error:
        ending = ended(error, ranks.rank)
        if ending.error is error:
            raise
        raise ending.error from error
    ranks.close()


def found(folder: Path) -> None:
    """Tell the guard where the run is written down."""
    if _guard is not None:
        _guard.found(folder)


def ended(error: BaseException, rank: int) -> Ending:
    """How the run ends by this error, or by another rank's that was there first."""
    own = Ending(error, rank, where())
    if _guard is None or isinstance(error, AuditStop):
        return own
    message = redact_text(last_line(error))
    cause = _guard.cause(status_of(error), exit_code(error), message, is_lost_connection(error))
    if cause is None or cause.rank == _guard.rank or cause.status == "preempted":
        return own
    return Ending(RankFailed(cause.message, cause.exit_code), cause.rank, cause.where)


def leave() -> None:
    """Nothing more is to come of this process that the guard should wait for."""
    global _guard
    HERE.on_fault = None
    if _guard is not None:
        _guard.leave()
        _guard = None


def status_of(error: BaseException) -> Status:
    return "preempted" if isinstance(error, Preempted) else "failed"
