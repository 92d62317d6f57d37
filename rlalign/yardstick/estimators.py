"""Divergences and means from samples, each with its error; and what samples cannot support.

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
from rlalign.yardstick.evidence import Evidence

Z_95 = 1.959964
LEAST_A_PROMPT = 4  # samples, below which Z(x) is not estimated
LEAST_IN_ALL = 100  # samples, below which the tail of the weights is not seen
LEAST_EFFECTIVE = 25.0  # samples of the target
BLOCKS = 512  # of a prompt's samples, at most, that are left out one at a time
CELLS = 2**20  # numbers that a jackknife holds at once

# (G, N) weights of the samples, one prompt's -> (G,)
Statistic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; or none, and why."""

    value: float | None
    se: float | None = None
    note: str = ""  # why there is no value, or what the value is of

    @property
    def interval(self) -> tuple[float, float] | None:
        """The two ends of the 95% interval."""
        if self.value is None or self.se is None:
            return None
        return self.value - Z_95 * self.se, self.value + Z_95 * self.se


# -- what can be had -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Support:
    """How much of the target the samples show."""

    ess: float  # effective samples of the target, (sum w)^2 / sum w^2 within each prompt, summed
    pareto_k: float  # shape of the weights' tail; nan where there are too few samples
    threshold: float  # above which a mean of the weights is not to be trusted
    refusal: str  # why nothing that needs Z(x) is given; empty where it is


def support_of(evidence: Evidence) -> Support:
    """What the samples can say of the target, in words where it is nothing."""
    n, prompts = len(evidence), evidence.prompts
    log_w = evidence.log_weights
    counts = torch.bincount(evidence.prompt, minlength=prompts)
    possible = torch.bincount(evidence.prompt[log_w > -math.inf], minlength=prompts)
    threshold = min(1.0 - 1.0 / math.log10(max(n, 11)), 0.7)
    if int(counts.min()) < LEAST_A_PROMPT:
        return Support(
            0.0, math.nan, threshold,
            f"a prompt has {int(counts.min())} sample(s), and its Z(x) needs {LEAST_A_PROMPT} or "
            "more; raise eval.samples_per_prompt",
        )  # fmt: skip
    if n < LEAST_IN_ALL:
        return Support(
            0.0, math.nan, threshold,
            f"{n} samples do not show the tail of the weights, {LEAST_IN_ALL} are the least; raise "
            "eval.target_samples",
        )  # fmt: skip
    if int(possible.min()) == 0:
        none = int((possible == 0).sum())
        return Support(
            0.0, math.nan, threshold,
            f"none of the samples of {none} of {prompts} prompt(s) satisfies what is hard, so "
            f"their Z(x) is unknown (below {3 / int(counts.min()):.2g}, 95%); raise "
            "eval.samples_per_prompt or take other prompts",
        )  # fmt: skip
    weights = normalised_weights(evidence)
    sums = torch.zeros(2, prompts, dtype=torch.float64)
    sums.index_add_(1, evidence.prompt, torch.stack([weights, weights**2]))
    ess, k = float((sums[0] ** 2 / sums[1]).sum()), pareto_k(weights)
    refusal = ""
    if k > threshold:
        refusal = (
            f"the weights' tail is too heavy (Pareto k {k:.2f}, at most {threshold:.2f}): a few "
            "responses carry the target, and another draw would give another number; raise "
            "eval.target_samples, or train nearer to the target"
        )
    elif ess < LEAST_EFFECTIVE:
        refusal = (
            f"the samples are worth {ess:.1f} of the target, {LEAST_EFFECTIVE:g} are the least; "
            "raise eval.target_samples, or train nearer to the target"
        )
    return Support(ess, k, threshold, refusal)


def normalised_weights(evidence: Evidence) -> Tensor:
    """(N,) P_T / m of each sample, of mean 1 within its prompt."""
    log_w, prompt = evidence.log_weights, evidence.prompt
    most = torch.full((evidence.prompts,), -math.inf, dtype=torch.float64)
    most = most.scatter_reduce(0, prompt, log_w, "amax")
    weights = (log_w - most[prompt]).exp()
    sums = torch.zeros_like(most).index_add(0, prompt, weights)
    return weights / (sums / torch.bincount(prompt, minlength=len(most)))[prompt]


def pareto_k(weights: Tensor) -> float:
    """Shape of a generalised Pareto distribution fitted to the largest of the weights (N,).

    The tail's size is that of Vehtari et al. 2024 ("Pareto smoothed importance sampling", 3.2), the
    fit Zhang and Stephens 2009 with that paper's prior. -inf where the largest are all the same,
    nan of too few.
    """
    n = len(weights)
    size = math.ceil(min(0.2 * n, 3.0 * math.sqrt(n)))
    if size < 5:
        return math.nan
    ordered = weights.double().sort().values
    excess = ordered[-size:] - ordered[-size - 1]  # (M,) ascending, above the cut-off
    # A weight that repeats, of a response that was drawn again, is no part of a smooth tail.
    excess = excess[excess > 1e-9 * ordered[-1]]
    size = len(excess)
    if size < 5:
        return -math.inf
    candidates = 30 + int(math.sqrt(size))
    quartile = excess[int(size / 4 + 0.5) - 1]
    rank = torch.arange(1, candidates + 1, dtype=torch.float64) - 0.5
    theta = 1.0 / excess[-1] + (1.0 - (candidates / rank).sqrt()) / (3.0 * quartile)
    shapes = torch.log1p(-theta.unsqueeze(1) * excess).mean(1)  # (m,)
    likelihood = size * ((-theta / shapes).log() - shapes - 1.0)
    posterior = likelihood.softmax(0)
    k = float(torch.log1p(-(posterior * theta).sum() * excess).mean())
    return (size * k + 5.0) / (size + 10.0)


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
    return Estimate(math.fsum(values) / count, math.sqrt(math.fsum(variances)) / count)


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

    return jackknife(evidence, statistic_of)


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

    return jackknife(evidence, statistic_of)


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
    return Estimate(float(means.mean()), math.sqrt(variance * float((1 / counts).sum())) / prompts)
