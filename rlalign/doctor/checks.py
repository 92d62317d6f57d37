"""What a look at one thing found: a fact, and what follows from it for a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

GIB = 2**30
State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """Something to know before a run; `code` is the exit code that it would end with, or 0."""

    says: str
    fix: str = ""
    code: int = 0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what is the case, and what was found about it."""

    name: str
    says: str
    findings: Sequence[Finding] = ()

    @property
    def state(self) -> State:
        if any(finding.code for finding in self.findings):
            return "problem"
        return "note" if self.findings else "ok"


def exit_code(findings: Sequence[Finding]) -> int:
    """0 where a run can start; a wrong configuration outweighs missing resources."""
    codes = {finding.code for finding in findings}
    return 2 if 2 in codes else max(codes, default=0)
