"""Divergences and means from samples, each with its error.

Every number is a mean over prompts of a function of weighted means within the prompt; its bias and
standard error come from the jackknife, which leaves out a sample at a time (Efron 1982, ch. 2-3;
Jones 1974 for several strata). Errors are those of the responses; the prompts are taken as given.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlalign.divergences import DIVERGENCES, Integrand
from rlalign.moments import Samples, tilt
from rlalign.yardstick.evidence import Evidence

Z_95 = 1.959964
BLOCKS = 512  # of a prompt's samples, at most, that are left out one at a time
STEP = 1e-4  # of lambda, in a difference quotient
CELLS = 2**20  # numbers that a jackknife holds at once

# (G, N) weights of the samples, one prompt's -> (G,)
Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; or none, and why."""

    value: float | None
    se: float | None = None
    note: str = ""  # why there is no value, or what the value is of
    ends: tuple[float, float] | None = None  # of an interval that is not value and se's

    @property
    def interval(self) -> tuple[float, float] | None:
        """The two ends of the 95% interval."""
        if self.ends is not None or self.value is None or self.se is None:
            return self.ends
        return self.value - Z_95 * self.se, self.value + Z_95 * self.se


# -- the jackknife ---------------------------------------------------------------------------------


def jackknife(evidence: Evidence, statistic_of: Callable[[Evidence], Statistic]) -> Estimate:
    """The mean over prompts of a statistic of each, less its bias, with its standard error."""
    values, variances = [], []
    for part in evidence.by_prompt():
        kept, ratio = Strata(part.is_policys), (part.log_policy - part.log_mixture).exp()
        bare = statistic_of(part)

        def statistic(weights: Tensor, bare: Statistic = bare, ratio: Tensor = ratio) -> Tensor:
            return bare(calibrated(weights, ratio))

        value = float(statistic(kept.everything())[0])
        bias = variance = 0.0
        for blocks in kept.left_out():
            without = torch.cat([statistic(rows) for rows in blocks])  # (G,)
            g, middle = len(without), without.mean()
            bias += (g - 1) * (float(middle) - value)
            variance += (g - 1) / g * float(((without - middle) ** 2).sum())
        values.append(value - bias)
        variances.append(variance)
    count = len(values)
    found = Estimate(math.fsum(values) / count, math.sqrt(math.fsum(variances)) / count)
    if not (math.isfinite(found.value or 0.0) and math.isfinite(found.se or 0.0)):
        return Estimate(None, note="single samples carry it: without one of them it is undefined")
    return found


def of_target(evidence: Evidence, statistic_of: Callable[[Evidence], Statistic]) -> Estimate:
    """`jackknife` of what depends on the target, whose lambdas may be of the same samples.

    Without a sample lambda would have been another: by one Newton step of the dual, H^-1 times
    what the fitted mean loses. So k = H^-1 dD/dlambda times the mean's change is taken off, which
    carries lambda's error into the statistic's, and its bias to first order.
    """
    if not evidence.fitted:
        return jackknife(evidence, statistic_of)
    columns = list(evidence.fitted)
    nothing = torch.zeros(len(columns), dtype=torch.float64)
    samples = Samples(evidence.features[:, columns], evidence.log_weights, evidence.prompt)
    slope = torch.tensor([derivative(evidence, statistic_of, column) for column in columns])
    k = torch.linalg.lstsq(tilt(samples, nothing).covariance, slope.double()).solution

    def less_lambda(part: Evidence) -> Statistic:
        bare, log_w, phi = statistic_of(part), part.log_weights, part.features[:, columns]
        scaled = (log_w - log_w.max()).exp()  # (N,)
        wished = (scaled @ phi) / scaled.sum()  # (M,), this prompt's share of the wish

        def statistic(weights: Tensor) -> Tensor:
            means = (weights * scaled) @ phi / (weights @ scaled).unsqueeze(1)  # (G, M)
            taken_off: Tensor = (means - wished) @ k
            return bare(weights) - taken_off

        return statistic

    return jackknife(evidence, less_lambda)


def derivative(
    evidence: Evidence, statistic_of: Callable[[Evidence], Statistic], column: int
) -> float:
    """d statistic / d lambda of one feature, the mean over prompts, by a central difference."""
    values = []
    for sign in (1.0, -1.0):
        step = sign * STEP * evidence.features[:, column]
        moved = evidence.with_potential(evidence.log_potential + step)
        parts = [(part, Strata(part.is_policys).everything()) for part in moved.by_prompt()]
        values.append(sum(float(statistic_of(part)(each)[0]) for part, each in parts))
    return (values[0] - values[1]) / (2.0 * STEP * evidence.prompts)


def calibrated(weights: Tensor, ratio: Tensor) -> Tensor:
    """Weights (G, N) under which pi / m has the mean 1 that it is known to have, and so has a / m.

    The regression estimator of survey sampling (Deville & Sarndal 1992): near the target the
    weights P / m are nearly Z pi / m, and nearly all noise of Z goes.
    """
    mean = (weights @ ratio).unsqueeze(1)  # (G, 1)
    centred = ratio - mean  # (G, N)
    variance = (weights * centred**2).sum(1, keepdim=True)
    slope = torch.where(variance > 1e-12, (1.0 - mean) / variance.clamp(min=1e-12), 0.0)
    return weights * (1.0 + slope * centred)


class Strata:
    """Weights of one prompt's samples in a mean over the mixture, all there or some left out."""

    def __init__(self, is_policys: Tensor) -> None:
        self.parts = [rows for rows in (is_policys.nonzero(), (~is_policys).nonzero()) if len(rows)]
        self.size = len(is_policys)

    def everything(self) -> Tensor:
        """(1, N) one over the count."""
        return torch.full((1, self.size), 1.0 / self.size, dtype=torch.float64)

    def left_out(self) -> Iterator[Iterator[Tensor]]:
        """For each of the two that drew, (G, N) weights, each row without one block of its samples.

        Those that stay take over the weight of those that go.
        """
        for rows in self.parts:
            if len(rows) > 1:
                yield self._without(rows.squeeze(1))

    def _without(self, rows: Tensor) -> Iterator[Tensor]:
        blocks = torch.split(rows, -(-len(rows) // BLOCKS))
        at_once = max(CELLS // self.size, 1)
        for start in range(0, len(blocks), at_once):
            some = blocks[start : start + at_once]
            weights = self.everything().repeat(len(some), 1)
            for i, block in enumerate(some):
                weights[i, rows] *= len(rows) / (len(rows) - len(block))
                weights[i, block] = 0.0
            yield weights


# -- what is estimated -----------------------------------------------------------------------------


def divergence_to_target(evidence: Evidence, name: str, *, of_reference: bool = False) -> Estimate:
    """A divergence of `rlalign.divergences` of the policy (or its reference) from the target.

    Self-normalised: Z(x) is the mean weight of the same samples. Raises ValueError where it is
    infinite because something forbidden was sampled.
    """
    divergence = DIVERGENCES[name]
    if divergence.needs_support and bool((evidence.log_potential == -math.inf).any()):
        raise ValueError(f"{name} is infinite: the policy writes what its target forbids")

    def statistic_of(part: Evidence) -> Statistic:
        measured = part.log_reference if of_reference else part.log_policy
        return normalised(divergence.integrand, part.log_weights, measured - part.log_mixture)

    return of_target(evidence, statistic_of)


def normalised(integrand: Integrand, log_w: Tensor, log_pi: Tensor) -> Statistic:
    """The mean of the integrand under weights (G, N), P divided by its own mean weight."""
    most = float(log_w.max())
    scaled = (log_w - most).exp()

    def statistic(weights: Tensor) -> Tensor:
        log_z = most + (weights @ scaled).log()  # (G,)
        found = integrand(log_w - log_z.unsqueeze(1), log_pi.expand(len(weights), -1))  # (G, N)
        return (weights * found).sum(1)

    return statistic


def divergence_to_reference(evidence: Evidence, name: str) -> Estimate:
    """The same with the reference in the target's place, whose normaliser is known."""
    integrand = DIVERGENCES[name].integrand

    def statistic_of(part: Evidence) -> Statistic:
        mixture = part.log_mixture
        found = integrand(part.log_reference - mixture, part.log_policy - mixture)  # (N,)
        return lambda weights: weights @ found

    return jackknife(evidence, statistic_of)


def mean_under_target(evidence: Evidence, column: int) -> Estimate:
    """E[feature] under P_T, self-normalised within each prompt."""

    def statistic_of(part: Evidence) -> Statistic:
        log_w, values = part.log_weights, part.features[:, column]
        scaled = (log_w - log_w.max()).exp()
        return lambda weights: (weights @ (scaled * values)) / (weights @ scaled)

    return of_target(evidence, statistic_of)


def mean_of(values: Tensor, prompt: Tensor) -> Estimate:
    """The mean over prompts of (N,) values with its standard error; NaN is left out.

    The variance within the prompts is pooled where each has but a few samples.
    """
    keep = ~values.isnan()
    values, prompt = values[keep], prompt[keep]
    if not len(values):
        return Estimate(None, note="no sample has this value")
    _, prompt = torch.unique(prompt, return_inverse=True)
    prompts = int(prompt.max()) + 1
    counts = torch.bincount(prompt).double()
    means = torch.zeros(prompts, dtype=torch.float64).index_add(0, prompt, values.double()) / counts
    freedom = len(values) - prompts
    if freedom < 1:
        return Estimate(float(means.mean()), note="one sample a prompt shows no error")
    variance = float(((values - means[prompt]) ** 2).sum()) / freedom
    se = math.sqrt(variance * float((1 / counts).sum())) / prompts
    is_share = bool(((values == 0.0) | (values == 1.0)).all())
    ends = wilson(float(means.mean()), len(values)) if is_share else None
    return Estimate(float(means.mean()), se, ends=ends)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95% interval of a share of n (Wilson 1927), which none of n does not make certain."""
    z = Z_95**2 / n
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(share * (1 - share) * z + z * z / 4) / (1 + z)
    # At 0 and 1 an end is the share itself, but for rounding.
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)
