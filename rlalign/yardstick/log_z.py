"""Bounds on log Z(x): from below by any samples, from above where P_T itself can be sampled.

With an unbiased estimate Z^ of K samples, E log Z^ <= log Z (Burda et al. 2016). With one of them
replaced by an exact sample of P_T, E log Z^ >= log Z (bidirectional bounds; Grosse et al. 2015,
Zhao et al. 2024). The exact samples are the reference's, accepted with probability
exp(potential - its upper bound), which takes a potential that is bounded from above.
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards import registry
from rewards.constraints import shaped_range
from rewards.entries import RewardEntry
from rlalign.target import Target
from rlalign.yardstick.estimators import Estimate, mean_of
from rlalign.yardstick.evidence import Evidence

BATCHES = 16  # in all, at least, and a prompt four: they show the error
LEAST = 8  # samples of a prompt of each that draws


@dataclass(frozen=True)
class Bounds:
    """E_x log Z(x) lies between them, up to their standard errors."""

    lower: Estimate
    upper: Estimate  # no value, and why, where no exact sample of P_T was found
    exact: int  # samples of P_T that were found by rejection
    samples: int  # behind each single estimate of Z(x)


def log_z_bounds(evidence: Evidence, highest: float | None, generator: torch.Generator) -> Bounds:
    """Both bounds; `highest` is the potential's upper bound, None where it has none.

    Each prompt's samples are split into batches, each of which gives one estimate from below, and
    one from above if it has an exact sample; a prompt with fewer than two leaves no upper bound.
    """
    counts = [
        torch.bincount(evidence.prompt[mask], minlength=evidence.prompts)
        for mask in (evidence.is_policys, ~evidence.is_policys)
    ]
    fewest = int(torch.stack(counts).min())
    if fewest < LEAST:
        few = f"a prompt has {fewest} samples of the policy or of the reference; {LEAST} are needed"
        return Bounds(Estimate(None, note=few), Estimate(None, note=few), 0, 0)
    drawn = torch.rand(len(evidence), generator=generator, dtype=torch.float64)
    # -inf less infinity is -inf: without a bound nothing is accepted.
    ceiling = math.inf if highest is None else highest
    is_exact = ~evidence.is_policys & (drawn < (evidence.log_potential - ceiling).exp())
    count = min(max(BATCHES // evidence.prompts, 4), fewest // 2)
    batches = [
        Batch.of(part, is_exact[evidence.prompt == number], number, rows)
        for number, part in enumerate(evidence.by_prompt())
        for rows in dealt(part.is_policys, count)
    ]
    having = [batch for batch in batches if len(batch.exact)]
    held = Counter(batch.prompt for batch in having)
    prompt = torch.tensor([batch.prompt for batch in batches])
    below = torch.tensor([batch.lower() for batch in batches], dtype=torch.float64)
    if bool((below == -math.inf).any()):
        nothing = Estimate(None, note="a batch of samples has none that satisfies what is hard")
        return Bounds(nothing, nothing, 0, 0)
    exact = sum(len(batch.exact) for batch in batches)
    if highest is None:
        why = "one-sided: the potential has no upper bound, so P_T cannot be sampled by rejection"
    elif min(held[number] for number in range(evidence.prompts)) < 2:
        why = f"one-sided: rejection found only {exact} exact sample(s) of P_T, too few"
    else:
        why = ""
    above = Estimate(None, note=why)
    if not why:
        values = torch.tensor([batch.upper() for batch in having], dtype=torch.float64)
        above = mean_of(values, torch.tensor([batch.prompt for batch in having]))
    return Bounds(mean_of(below, prompt), above, exact, max(batch.k for batch in batches))


def dealt(is_policys: Tensor, count: int) -> list[Tensor]:
    """Row indices of each batch: an equal share of the policy's samples and of the reference's."""
    parts = [is_policys.nonzero().squeeze(1), (~is_policys).nonzero().squeeze(1)]
    return [torch.cat([rows[i::count] for rows in parts]) for i in range(count)]


@dataclass(frozen=True)
class Batch:
    """Some samples of one prompt: K that estimate Z, and beside them exact ones of P_T."""

    prompt: int
    of_policy: Evidence
    of_reference: Evidence
    exact: Evidence

    @classmethod
    def of(cls, part: Evidence, is_exact: Tensor, prompt: int, rows: Tensor) -> "Batch":
        policys, references = rows[part.is_policys[rows]], rows[~part.is_policys[rows]]
        # What may become an exact sample cannot also be one of those that it joins.
        candidates, rest = references[0::2], references[1::2]
        exact = candidates[is_exact[candidates]]
        return cls(prompt, part.rows(policys), part.rows(rest), part.rows(exact))

    @property
    def k(self) -> int:
        return len(self.of_policy) + len(self.of_reference)

    def lower(self) -> float:
        """log Z^, whose mean is at most log Z."""
        both = [self.log_weights(self.of_policy), self.log_weights(self.of_reference)]
        return float(torch.cat(both).logsumexp(0)) - math.log(self.k)

    def upper(self) -> float:
        """The mean over exact samples of log Z^ with one sample replaced by it: at least log Z.

        In the mixture an exact sample stands among the policy's or the reference's, each with the
        share that this one has of the mixture's density there.
        """
        policys, references = (
            self.log_weights(self.of_policy),
            self.log_weights(self.of_reference),
        )
        new = self.log_weights(self.exact)  # (E,)
        joined = torch.stack(
            [joins(new, policys[1:], references), joins(new, policys, references[1:])]
        )
        of = torch.stack([self.exact.log_policy, self.exact.log_reference])  # (2, E)
        share = (self._log_share.unsqueeze(1) + of - self.log_mixture(self.exact)).exp()
        return float((share * (joined - math.log(self.k))).sum(0).mean())

    @property
    def _log_share(self) -> Tensor:
        """(2,) of the policy's and of the reference's samples among the K."""
        counts = torch.tensor([len(self.of_policy), len(self.of_reference)], dtype=torch.float64)
        return counts.log() - math.log(self.k)

    def log_mixture(self, some: Evidence) -> Tensor:
        share = self._log_share
        return torch.logaddexp(share[0] + some.log_policy, share[1] + some.log_reference)

    def log_weights(self, some: Evidence) -> Tensor:
        return some.log_potential + some.log_reference - self.log_mixture(some)


def joins(new: Tensor, *others: Tensor) -> Tensor:
    """(E,) log of the sum of the others' weights and each new one."""
    return torch.logaddexp(new, torch.cat(others).logsumexp(0))


def highest_potential(target: Target) -> float | None:
    """The largest value that the potential can have; None where a reward has no upper bound."""
    moments = sum(highest(entry, target.lambdas.get(entry.name, 0.0)) for entry in target.moments)
    plain = [entry for entry in target.entries if not entry.is_constraint]
    # A value that is missing adds 0.
    weighted = sum(max(highest(entry, entry.weight_at(None)), 0.0) for entry in plain)
    if target.score.clip is not None:
        weighted = min(max(weighted, target.score.clip[0]), target.score.clip[1])
    total = moments if target.beta == 0 else moments + weighted / target.beta
    return total if math.isfinite(total) else None


def highest(entry: RewardEntry, factor: float) -> float:
    """The largest value of factor times the entry's; infinity where it has no bound."""
    if factor == 0.0:
        return 0.0
    options = {"scale": entry.scale, "clip": entry.clip, "threshold": entry.threshold}
    # A function that was passed in from Python is no kind, and has no stated bounds.
    bounds = registry.get(entry.kind).bounds if entry.kind in registry.kinds() else None
    ends = shaped_range(bounds, options)
    if ends is None:
        return math.inf
    failed = [] if entry.error_value is None else [factor * entry.shaped(entry.error_value)]
    return max(factor * ends[0], factor * ends[1], *failed)
