"""How a batch is asked for: what all parts and groups of an entry share in one call of a set."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rewards.contract import WorkerLost
from rewards.randomness import derived

# Deadlines that the samples of one batch which hang may cost before the run is ended.
SEARCH = 5


class Overlong(Exception):
    """The search for samples that hang has had its time."""


@dataclass
class Search:
    """The time that samples which hang have cost so far in one batch."""

    seconds: float = 0.0

    @contextmanager
    def counting(self, *, always: bool) -> Iterator[None]:
        """Count what this takes: in any case, or where the worker is lost in it."""
        begun = time.monotonic()
        try:
            yield
        except WorkerLost:
            always = True
            raise
        finally:
            if always:
                self.seconds += time.monotonic() - begun

    def deadline(self, deadline: float) -> float:
        """The seconds that the next call may take; Overlong where there are none left."""
        left = SEARCH * deadline - self.seconds
        if left <= 0:
            raise Overlong(
                f"the {SEARCH * deadline:g} s that hanging samples of a batch may cost are over"
            )
        return min(deadline, left)


@dataclass(frozen=True)
class Call:
    """One scoring of a batch."""

    seed: int | None = None  # of what is drawn at random; None: every stream goes on
    reuse: bool = True  # equal samples are computed once
    search: Search = field(default_factory=Search)

    def within(self, *names: object) -> "Call":
        """The same call for a part, with random numbers of its own."""
        return replace(self, seed=derived(self.seed, *names))
