"""The signs of reward hacking that a run warns of: functions of its first and last iterations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlalign.settings.audit_section import AuditSection, WarningName
from rlalign.symptoms import Row, commonest, opening, phrases, spaced

SURE = 4.0  # standard errors by which a mean must have moved

# What is kept of an iteration, as JSON: the numbers of `batch_numbers`, and under `means` the
# moments of the score and of each reward.
Look = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """Where a warning's number stands: it begins at 1 or more, `level` being a share of its line.

    `number` is what the setting speaks of; `text` says it with its circumstances.
    """

    name: WarningName
    level: float
    number: float
    text: str


def length_driven(
    section: AuditSection, first: Sequence[Look], recent: Sequence[Look]
) -> Finding | None:
    corr = _mean(recent, "score/length")
    if section.length_corr is None or corr is None:
        return None
    text = f"score and length have a rank correlation of {corr:.2f} over {_span(recent)}"
    return Finding("length-driven", abs(corr) / section.length_corr, corr, text)


def length_runs(
    section: AuditSection, first: Sequence[Look], recent: Sequence[Look]
) -> Finding | None:
    start, now = first[0]["length"], _mean(recent, "length")
    if section.length_factor is None or now is None:
        return None
    factor = max(now / start, start / now)
    text = f"responses went from {start:.1f} tokens to {now:.1f} over {_span(recent)}"
    # On a scale of doublings, so that no change at all is 0.
    level = math.log(factor) / math.log(section.length_factor)
    return Finding("length-runs", level, factor, text)


def collapsed_diversity(
    section: AuditSection, first: Sequence[Look], recent: Sequence[Look]
) -> Finding | None:
    kept = [kept_of(first[0], look, "distinct2") for look in recent]
    known = [value for value in kept if value is not None]
    if section.distinct2_lost is None or len(known) < len(recent):
        return None
    lost = 1 - sum(known) / len(known)
    text = f"distinct-2 is {1 - lost:.0%} of the first iteration's over {_span(recent)}"
    return Finding("collapsed-diversity", lost / section.distinct2_lost, lost, text)


def far_from_reference(
    section: AuditSection, first: Sequence[Look], recent: Sequence[Look]
) -> Finding | None:
    kl = _mean(recent, "kl_per_token")
    if section.kl_per_token is None or kl is None:
        return None
    text = f"KL to the reference is {kl:.2f} nats a token over {_span(recent)}"
    return Finding("far-from-reference", kl / section.kl_per_token, kl, text)


CHECKS = (length_driven, length_runs, collapsed_diversity, far_from_reference)
# The number that each of these compares with the first iteration's.
SHARES: dict[WarningName, str] = {
    "repeated-phrase": "phrase_share",
    "same-opening": "opening_share",
    "duplicates": "duplicates",
}


def shared(
    name: WarningName,
    section: AuditSection,
    first: Sequence[Look],
    recent: Sequence[Look],
    rows: Sequence[Row],
) -> Finding | None:
    """What responses share, above what they shared at the start; `rows` tell which phrase."""
    key = SHARES[name]
    line, now, start = vars(section)[key], _mean(recent, key), first[0][key]
    if line is None or now is None:
        return None
    texts = [str(rows[i]["response"]) for i in spaced(len(rows))]
    what = {
        "repeated-phrase": f'hold one phrase, now "{commonest(texts, phrases)[1]}",',
        "same-opening": f'begin alike, now by "{commonest(texts, opening)[1]}",',
        "duplicates": "repeat another",
    }[name]
    text = f"{now:.0%} of the responses {what} over {_span(recent)}, {start:.0%} at the start"
    return Finding(name, (now - start) / line, now - start, text)


@dataclass(frozen=True)
class Move:
    """How a mean moved from the first window to the last."""

    start: float
    now: float
    deviations: float  # of one sample
    errors: float  # standard errors of the difference

    def __str__(self) -> str:
        return f"{self.start:.3g} to {self.now:.3g}"


def traded_away(
    section: AuditSection,
    first: Sequence[Look],
    recent: Sequence[Look],
    signs: Mapping[str, float],
) -> Finding | None:
    """The reward that fell most, where another rose; a negative weight turns both round."""
    moves = {name: move_of(first, recent, name, sign) for name, sign in signs.items() if sign}
    known = {name: move for name, move in moves.items() if move is not None}
    if section.traded_drop is None or len(known) < 2:
        return None
    falls = min(known, key=lambda name: known[name].deviations)
    rises = max(known, key=lambda name: known[name].deviations)
    fall, rise = known[falls], known[rises]
    text = (
        f"reward '{falls}' went from {fall} over {_span(recent)}, {-fall.errors:.1f} standard "
        f"errors for the worse, while '{rises}' went from {rise}"
    )
    level = min(-fall.deviations / section.traded_drop, -fall.errors / SURE, rise.errors / SURE)
    return Finding("traded-away", level, -fall.deviations, text)


def judge_disagrees(
    section: AuditSection, first: Sequence[Look], recent: Sequence[Look]
) -> Finding | None:
    """The judge that fell most while the score rose."""
    score = move_of(first, recent, "")
    moves = {judge: move_of(first, recent, judge) for judge in section.judges}
    known = {name: move for name, move in moves.items() if move is not None}
    if section.judge_drop is None or score is None or not known:
        return None
    judge = min(known, key=lambda name: known[name].deviations)
    move = known[judge]
    text = (
        f"judge '{judge}' went from {move} over {_span(recent)}, {-move.errors:.1f} standard "
        f"errors down, while the score went from {score}"
    )
    level = min(-move.deviations / section.judge_drop, -move.errors / SURE, score.errors / SURE)
    return Finding("judge-disagrees", level, -move.deviations, text)


def move_of(
    first: Sequence[Look], recent: Sequence[Look], name: str, sign: float = 1.0
) -> Move | None:
    """How a reward's mean moved; None unless every iteration of both windows has it.

    The standard error is the larger of two: from the prompts within iterations, and from the means
    of the iterations, which also holds what their prompts have in common.
    """
    both = [[look["means"].get(name) for look in looks] for looks in (first, recent)]
    if any(each is None for each in [*both[0], *both[1]]):
        return None
    (start, start_se2, start_var), (now, now_se2, now_var) = (_pooled(each) for each in both)
    change, deviation = sign * (now - start), math.sqrt((start_var + now_var) / 2)
    error = math.sqrt(start_se2 + now_se2)
    return Move(start, now, _ratio(change, deviation), _ratio(change, error))


def _pooled(parts: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean, its squared standard error and a sample's variance over iterations."""
    groups = sum(part[0] for part in parts)
    mean = sum(part[0] * part[1] for part in parts) / groups
    within = sum(part[0] * part[2] for part in parts) / groups**2
    between = 0.0
    if len(parts) > 1:
        deviations = sum((part[1] - mean) ** 2 for part in parts)
        between = deviations / (len(parts) - 1) / len(parts)
    variance = sum(part[0] * part[3] for part in parts) / groups
    return mean, max(within, between), variance


def _ratio(change: float, spread: float) -> float:
    """change / spread; of no spread 0 where nothing changed, else infinite."""
    if spread > 0:
        return change / spread
    return 0.0 if change == 0 else math.copysign(math.inf, change)


def kept_of(start: Look, look: Look, name: str) -> float | None:
    """A distinct-n as a share of the start's; None where they are not of equally many texts."""
    if start["samples"] != look["samples"] or not start[name]:
        return None
    return float(look[name] / start[name])


def _mean(looks: Sequence[Look], name: str) -> float | None:
    """Over the iterations that have the number; None where fewer than half of them do."""
    known = [float(look[name]) for look in looks if name in look]
    return sum(known) / len(known) if 2 * len(known) >= len(looks) else None


def _span(looks: Sequence[Look]) -> str:
    return f"the last {len(looks)} iterations"


def sign_of(weight: float) -> float:
    return 0.0 if weight == 0 else math.copysign(1.0, weight)
