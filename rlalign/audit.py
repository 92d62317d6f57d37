"""Reward hacking made visible: numbers of every iteration, warnings where a line is crossed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rewards.entries import RewardEntry
from rlalign.problems import ConfigError
from rlalign.settings.audit_section import LINES, AuditSection, WarningName
from rlalign.signs import (
    CHECKS,
    SHARES,
    Finding,
    Look,
    judge_disagrees,
    kept_of,
    shared,
    sign_of,
    traded_away,
)
from rlalign.symptoms import Row, batch_numbers, moments

LEAST = 64  # responses that a window holds at least
ALWAYS = {  # in what is kept of an iteration; correlations may be absent
    *("samples", "length", "kl_per_token"),
    *("phrase_share", "opening_share", "duplicates", "distinct1", "distinct2"),
}
RELEASE = 0.9  # of a line: where a warning ends


@dataclass(frozen=True)
class Warned:
    """A warning that a run gave: after which iteration it began, and ended if it did."""

    name: WarningName
    began: int
    text: str
    ended: int | None = None

    def __str__(self) -> str:
        until = "" if self.ended is None else f", until iteration {self.ended}"
        return f"{self.name} from iteration {self.began} on{until}: {self.text}"


ADVICE: dict[WarningName, str] = {
    "length-driven": "find the reward that pays for length, and clip it or bound the length",
    "length-runs": "bound the length by structure.word_count, or clip what pays for it",
    "repeated-phrase": "clip the reward that the phrase pleases, or raise kl.coef",
    "same-opening": "clip the reward that the opening pleases, or raise kl.coef",
    "duplicates": "raise kl.coef, lower the learning rate, or add structure.repetition",
    "collapsed-diversity": "raise kl.coef, or add lexical.diversity",
    "traded-away": "raise its weight, or join the two by combine.min",
    "judge-disagrees": "read the top outputs in samples.jsonl; clip what they please",
    "far-from-reference": "raise kl.coef, or set kl.target",
}


class Audit:
    """Looks at the samples of every iteration, and keeps what its warnings look back on.

    `entries` are the run's rewards, `samples` the responses of an iteration over all processes.
    Every process must be shown the same rows, so that all decide alike.
    """

    def __init__(self, section: AuditSection, entries: Sequence[RewardEntry], samples: int) -> None:
        self.section = section
        self.entries = entries
        self.window = max(section.window, -(-LEAST // samples))
        self.first: list[Look] = []  # the run's first `window` iterations
        self.recent: list[Look] = []  # its last
        self.count = 0
        self.warned: list[Warned] = []

    @property
    def active(self) -> list[Warned]:
        """The warnings whose line is crossed now."""
        return [each for each in self.warned if each.ended is None]

    @property
    def stopping(self) -> list[Warned]:
        """Those of them that the configuration ends the run on."""
        return [each for each in self.active if each.name in self.section.stop]

    def look(self, rows: Sequence[Row], iteration: int) -> dict[str, float]:
        """`audit/...` metrics of an iteration's samples; warnings begin and end by them.

        `rows` are every process's, as samples.jsonl holds them; `iteration` counts from 1.
        """
        numbers = batch_numbers(rows, paid(self.entries, iteration - 1))
        look: Look = {**numbers, "samples": len(rows), "means": means(rows, self.entries)}
        tokens = sum(row["length"] for row in rows)
        look["length"] = tokens / len(rows)
        look["kl_per_token"] = sum(row["kl"] for row in rows) / tokens
        self.count += 1
        if len(self.first) < self.window:
            self.first.append(look)
        self.recent = [*self.recent, look][-self.window :]
        self._update(self.findings(rows), iteration)
        stats = {f"audit/{name}": value for name, value in numbers.items()}
        stats["audit/kl_per_token"] = look["kl_per_token"]
        for n in ("distinct1", "distinct2"):
            kept = kept_of(self.first[0], look, n)
            if kept is not None:
                stats[f"audit/{n}_kept"] = kept
        stats["audit/warnings"] = float(len(self.active))
        return stats

    def findings(self, rows: Sequence[Row]) -> list[Finding]:
        """Where each warning stands that can be judged yet."""
        if len(self.recent) < self.window:
            return []
        found = [check(self.section, self.first, self.recent) for check in CHECKS]
        found += [shared(name, self.section, self.first, self.recent, rows) for name in SHARES]
        if self.count >= 2 * self.window:  # before, the windows share iterations
            signs = {entry.name: sign_of(entry.weight_at(None)) for entry in self.entries}
            found.append(traded_away(self.section, self.first, self.recent, signs))
            found.append(judge_disagrees(self.section, self.first, self.recent))
        return [finding for finding in found if finding is not None]

    def _update(self, found: Sequence[Finding], iteration: int) -> None:
        """Begin what crosses its line; end what has come well back from it."""
        by_name = {finding.name: finding for finding in found}
        for i, warned in enumerate(self.warned):
            if warned.ended is None:
                finding = by_name.pop(warned.name, None)
                if finding is not None and finding.level < RELEASE:
                    self.warned[i] = replace(warned, ended=iteration)
        for name, finding in by_name.items():
            if finding.level >= 1:
                line = vars(self.section)[LINES[name]]
                text = f"{finding.text} (audit.{LINES[name]}={line:g}); {ADVICE[name]}"
                self.warned.append(Warned(name, iteration, text))

    def state_dict(self) -> dict[str, Any]:
        warned = [asdict(each) for each in self.warned]
        return {
            "first": self.first, "recent": self.recent, "count": self.count, "warned": warned
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first = [as_look(each) for each in state["first"]]
        self.recent = [as_look(each) for each in state["recent"]][-self.window :]
        self.count = int(state["count"])
        self.warned = [Warned(**each) for each in state["warned"]]
        if self.count and not (self.first and self.recent):
            raise ValueError("its audit has seen no iteration")


def as_look(saved: Mapping[str, Any]) -> Look:
    """What a checkpoint kept of an iteration; ValueError where it is not what `look` makes."""
    own = {name: value for name, value in saved.items() if name != "means"}
    numbers = [*own.values(), *(value for each in saved["means"].values() for value in each)]
    is_whole = own.keys() >= ALWAYS and all(len(each) == 4 for each in saved["means"].values())
    if not is_whole or not all(type(x) in (int, float) and abs(x) < 1e15 for x in numbers):
        raise ValueError("its audit holds something else than the numbers of an iteration")
    if min(own["samples"], own["length"]) <= 0:
        raise ValueError("its audit speaks of an iteration without responses")
    return dict(saved)


def check_judges(section: AuditSection, names: Sequence[str]) -> None:
    """Refuse a judge that is no reward of the run."""
    for judge in section.judges:
        if judge not in names:
            there = ", ".join(names) or "none"
            raise ConfigError(
                f"audit.judges={section.judges}: no reward is named {judge!r}; there are: {there}"
            )


def paid(
    entries: Sequence[RewardEntry], iteration: int | None
) -> dict[str, Callable[[float], float]]:
    """By reward: what one of its values adds to the score in an iteration, the first being 0."""

    def adds(entry: RewardEntry) -> Callable[[float], float]:
        weight = entry.weight_at(iteration)
        return lambda value: weight * entry.shaped(value)

    return {entry.name: adds(entry) for entry in entries}


def means(rows: Sequence[Row], entries: Sequence[RewardEntry]) -> dict[str, list[float]]:
    """The moments of the score, under "", and of each reward by its name."""
    prompts = [str(row["prompt"]) for row in rows]
    found = {"": moments([row["score"] for row in rows], prompts)}
    for entry in entries:
        found[entry.name] = moments([row["rewards"].get(entry.name) for row in rows], prompts)
    return {name: each for name, each in found.items() if each is not None}
