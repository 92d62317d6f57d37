"""What samples can say of a target, and in words what they cannot."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlalign.yardstick.evidence import Evidence

LEAST_A_PROMPT = 4  # samples, below which Z(x) is not estimated
LEAST_IN_ALL = 100  # samples, below which the tail of the weights is not seen
LEAST_EFFECTIVE = 25.0  # samples of the target, in all
LEAST_EFFECTIVE_A_PROMPT = 10.0  # of half of the prompts: each Z(x) rests on its own samples
MOST_CARRIED_BY_FEW = 0.1  # share of prompts with fewer effective samples than LEAST_A_PROMPT


@dataclass(frozen=True)
class Support:
    """How much of the target the samples show."""

    ess: float  # effective samples of the target, (sum w)^2 / sum w^2 within each prompt, summed
    pareto_k: float  # shape of the weights' tail; nan where there are too few samples
    threshold: float  # above which a mean of the weights is not to be trusted
    is_whole: bool  # no weight can be much heavier than those that were seen, whatever k
    refusal: str  # why nothing that needs Z(x) is given; empty where it is


def support_of(evidence: Evidence, highest: float | None = None) -> Support:
    """What the samples can say of the target, in words where it is nothing.

    `highest` is the potential's upper bound, None where it has none.
    """
    n, prompts = len(evidence), evidence.prompts
    log_w = evidence.log_weights
    counts = torch.bincount(evidence.prompt, minlength=prompts)
    possible = torch.bincount(evidence.prompt[log_w > -math.inf], minlength=prompts)
    threshold = min(1.0 - 1.0 / math.log10(max(n / max(prompts, 1), 11)), 0.7)
    if int(counts.min()) < LEAST_A_PROMPT:
        return Support(
            0.0, math.nan, threshold, False,
            f"a prompt has {int(counts.min())} sample(s), and its Z(x) needs {LEAST_A_PROMPT} or "
            "more; raise eval.samples_per_prompt",
        )  # fmt: skip
    if n < LEAST_IN_ALL:
        return Support(
            0.0, math.nan, threshold, False,
            f"{n} samples do not show the tail of the weights, {LEAST_IN_ALL} are the least; raise "
            "eval.target_samples",
        )  # fmt: skip
    if int(possible.min()) < LEAST_A_PROMPT:
        few = int((possible < LEAST_A_PROMPT).sum())
        return Support(
            0.0, math.nan, threshold, False,
            f"fewer than {LEAST_A_PROMPT} samples of {few} of {prompts} prompt(s) satisfy what is "
            "hard, so their Z(x) is unknown; raise eval.samples_per_prompt or take other prompts",
        )  # fmt: skip
    weights = normalised_weights(evidence)
    sums = torch.zeros(2, prompts, dtype=torch.float64)
    sums.index_add_(1, evidence.prompt, torch.stack([weights, weights**2]))
    of_prompts = sums[0] ** 2 / sums[1]  # (P,)
    ess, median, k = float(of_prompts.sum()), float(of_prompts.median()), pareto_k(weights)
    refusal, is_whole = "", shows_the_heaviest(evidence, weights, highest)
    if k > threshold and not is_whole:
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
    elif median < LEAST_EFFECTIVE_A_PROMPT:
        refusal = (
            f"half of the prompts' samples are worth {median:.1f} of their target or fewer, "
            f"{LEAST_EFFECTIVE_A_PROMPT:g} are the least; raise eval.samples_per_prompt, or train "
            "nearer to the target"
        )
    elif float((of_prompts < LEAST_A_PROMPT).double().mean()) > MOST_CARRIED_BY_FEW:
        refusal = (
            f"the samples of {int((of_prompts < LEAST_A_PROMPT).sum())} of {prompts} prompts are "
            f"worth fewer than {LEAST_A_PROMPT} of their target: a lucky hit carries each; raise "
            "eval.samples_per_prompt, or train nearer to the target"
        )
    return Support(ess, k, threshold, is_whole, refusal)


def shows_the_heaviest(evidence: Evidence, weights: Tensor, highest: float | None) -> bool:
    """Whether in every prompt many weights (N,) are near the heaviest that there can be.

    The mixture holds a share of the reference, so P/m is at most exp(highest) over that share. Of a
    target of few values the weights crowd there, where a tail fitted to them says nothing: k comes
    from differences within the crowd. One weight there is no crowd, but a rare response that was
    met by luck; a bound that is small beside the number of samples needs none.
    """
    if highest is None:
        return False
    counts = torch.bincount(evidence.prompt, minlength=evidence.prompts).double()
    of_reference = torch.bincount(evidence.prompt[~evidence.is_policys], minlength=len(counts))
    log_z = torch.stack([part.log_weights.logsumexp(0) for part in evidence.by_prompt()])
    bound = (highest - (of_reference / counts).log() - (log_z - counts.log())).exp()  # (P,)
    is_near = (weights >= 0.5 * bound[evidence.prompt]).double()
    crowd = torch.zeros_like(counts).index_add(0, evidence.prompt, is_near)
    is_small = bound <= counts / LEAST_EFFECTIVE_A_PROMPT
    return bool(((crowd >= LEAST_EFFECTIVE_A_PROMPT) | is_small).all())


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
