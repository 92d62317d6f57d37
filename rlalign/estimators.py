"""What samples tell of a target: log Z, divergences from it, each with its error, or a refusal.

N responses were drawn from a proposal q, several to a prompt; `group` (N,) int64 names the prompt
of each. All else is (N,) in natural logs of whole-response probabilities: log q, log pi, and log P
of the unnormalised target, -inf where a hard constraint is violated; w = P / q and s = pi / q.
Everything is conditional: Z(x) = E_q w is estimated within a prompt, and each prompt counts alike.
The prompts are taken as given, so a standard error is one of drawing responses, not of prompts.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlalign.divergences import Divergence

NORMAL_95 = 1.959964
MIN_SAMPLES = 4  # of a prompt, where its Z(x) is needed
MIN_ESS = 100.0  # in all: log Z is then known to about 0.1
MAX_PARETO_K = 0.7  # above it a mean converges too slowly to be of use (Vehtari et al. 2024)
FINITE_VARIANCE = 0.5  # a Pareto tail of a smaller k has a variance
MIN_TAIL = 5
MORE = "take more samples a prompt, or draw them from a proposal nearer to the target"


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error: 0 where it is certain, nan where nothing is known of it."""

    value: float
    se: float

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95% interval, by the normal law."""
        return self.value - NORMAL_95 * self.se, self.value + NORMAL_95 * self.se

    def __str__(self) -> str:
        if not math.isfinite(self.value) or not 0 < self.se < math.inf:
            return f"{self.value:.4g} ± {self.se:.4g}"
        digits = max(0, -math.floor(math.log10(self.se)))
        return f"{self.value:.{digits}f} ± {self.se:.{digits}f}"


class Prompts:
    """Means within each of G prompts, in the order of their sorted numbers."""

    def __init__(self, group: Tensor) -> None:
        self.names, self.index, self.counts = group.unique(return_inverse=True, return_counts=True)

    def sum(self, x: Tensor) -> Tensor:
        """(N,) -> (G,)."""
        return x.new_zeros(len(self.counts)).index_add(0, self.index, x)

    def mean(self, x: Tensor) -> Tensor:
        """(N,) -> (G,)."""
        return self.sum(x) / self.counts

    def log_mean_exp(self, x: Tensor) -> Tensor:
        """(N,) -> (G,), -inf of nothing but -inf."""
        top = x.new_full((len(self.counts),), -math.inf)
        top = top.scatter_reduce(0, self.index, x, "amax").clamp(min=torch.finfo(x.dtype).min)
        return top + self.mean((x - top[self.index]).exp()).log()

    def estimate(self, values: Tensor, influence: Tensor) -> Estimate:
        """Mean of `values` (G,), with the error of `influence` (N,), of mean 0 in each prompt."""
        value = float(values.mean())
        if math.isinf(value):
            return Estimate(value, 0.0)  # one draw proves it: no other sample takes it back
        variance = self.sum(influence**2) / (self.counts - 1) / self.counts  # 0 / 0 of one sample
        return Estimate(value, float(variance.sum().sqrt()) / len(values))

    def estimate_mean(self, x: Tensor) -> Estimate:
        """Mean over prompts of the mean of `x` (N,) in each."""
        means = self.mean(x)
        return self.estimate(means, x - means[self.index])


def log_z(log_weights: Tensor, group: Tensor) -> Estimate:
    """Mean over prompts of log Z(x), each the log of the mean weight; its error by the delta method.

    Each log is too low by about (1 / ESS(x) - 1 / n(x)) / 2, which more prompts do not mend.
    Raises ValueError where all weights of a prompt are 0.
    """
    prompts = Prompts(group)
    log_zs = _log_zs(_checked("log_weights", log_weights, group), prompts)
    weights = (log_weights.double() - log_zs[prompts.index]).exp()
    return prompts.estimate(log_zs, weights - 1.0)


def estimate_divergence(
    d: Divergence, log_target: Tensor, log_policy: Tensor, log_proposal: Tensor, group: Tensor
) -> Estimate:
    """Mean over prompts of the divergence `d` in nats (or of its own unit), by plug-in of Z(x).

    inf ± 0 where a draw proves it infinite. The bias is of order 1 / n(x), and more prompts do not
    mend it. Raises ValueError as `log_z` does. What it cannot stand on, `refuse_divergence` says.
    """
    log_q = _checked("log_proposal", log_proposal, group, needs_support=True)
    log_w = _checked("log_target", log_target, group) - log_q
    log_s = _checked("log_policy", log_policy, group) - log_q
    prompts = Prompts(group)
    log_w = log_w - _log_zs(log_w, prompts)[prompts.index]
    plain = _plug_in(d, log_w, log_s, prompts, scales_policy=False)
    # s has the known mean 1, so dividing by its mean in the sample is a control variate (to first
    # order k3's r - 1). Two normalised sets of weights make a divergence of two distributions
    # on the sample: it is never negative, and 0 with no error where pi is the target.
    log_means = prompts.log_mean_exp(log_s)
    if bool(log_means.isinf().any()):  # the policy gives none of a prompt's samples
        return plain
    scaled = _plug_in(d, log_w, log_s - log_means[prompts.index], prompts, scales_policy=True)
    if plain.interval[1] < 0.0:
        return scaled
    # Where pi is far from q, s has its mean of 1 from responses that were not drawn. Dividing by
    # what was drawn is then worse than leaving it, and no error of the sample shows it.
    k = pareto_k(log_s)
    is_seen = k < FINITE_VARIANCE or k <= pareto_k(log_w)
    return scaled if is_seen and not scaled.se > plain.se else plain


def _plug_in(
    d: Divergence, log_p: Tensor, log_pi: Tensor, prompts: Prompts, scales_policy: bool
) -> Estimate:
    """From log p/q and log pi/q, with the error that comes from their scaling to a mean of 1."""
    h = d.integrand(log_p, log_pi)
    values = prompts.mean(h)
    # h is homogeneous, p f(pi/p), so its derivatives by log p and log pi sum to h. Where either
    # probability is 0, h is proportional to the other, and autograd would make 0 * inf = nan.
    by_p = torch.where(log_pi.isinf(), h, 0.0)
    both = log_p.isfinite() & log_pi.isfinite()
    inner = log_p[both].requires_grad_()
    with torch.enable_grad():
        (by_p[both],) = torch.autograd.grad(d.integrand(inner, log_pi[both]).sum(), inner)
    influence = h - values[prompts.index]
    slope = prompts.mean(by_p)[prompts.index]  # minus the derivative by log Z
    influence = influence - slope * (log_p.exp() - 1.0)
    if scales_policy:
        influence = influence - (values[prompts.index] - slope) * (log_pi.exp() - 1.0)
    return prompts.estimate(values, influence)


def kl_from_samples(log_sampled: Tensor, log_other: Tensor, group: Tensor) -> Estimate:
    """KL(sampled || other) in nats from samples of the first: KL(pi||a) of pi's, KL(a||pi) of a's.

    With r = other / sampled, the mean of k3 = r - 1 - log r (Schulman 2020), which is unbiased and
    never negative, or of k1 = -log r. inf ± 0 where `log_other` is -inf.
    """
    log_p = _checked("log_sampled", log_sampled, group, needs_support=True)
    log_r = _checked("log_other", log_other, group) - log_p
    prompts = Prompts(group)
    k1 = prompts.estimate_mean(-log_r)
    k3 = prompts.estimate_mean(log_r.expm1() - log_r)
    # Some nats apart, the mean of r = 1 comes from responses that are never drawn: k3 is then k1
    # less 1, with a small error that does not show it. So r is used where its variance exists.
    is_seen = pareto_k(log_r) < FINITE_VARIANCE and not k3.se > k1.se
    return k3 if is_seen or k1.interval[1] < 0.0 else k1


def effective_sample_size(log_weights: Tensor, group: Tensor) -> float:
    """Sum over prompts of (sum w)^2 / sum w^2 (Kish 1965); a prompt of no weight counts 0."""
    prompts = Prompts(group)
    log_w = _checked("log_weights", log_weights, group)
    log_ess = 2.0 * prompts.log_mean_exp(log_w) - prompts.log_mean_exp(2.0 * log_w)
    return float((prompts.counts * log_ess.exp()).nan_to_num(0.0).sum())


def pareto_k(log_weights: Tensor) -> float:
    """Shape k of the generalised Pareto tail of (N,) weights: moments of order below 1 / k exist.

    Vehtari et al. 2024, "Pareto smoothed importance sampling": the tail is the largest
    min(N / 5, 3 sqrt N), fitted by Zhang & Stephens 2009 and drawn to 0.5 by 10 observations'
    worth. -inf is a weight of 0, and counts in N. -inf comes back where no weight of the tail is
    above the threshold, as for equal weights; inf, for unknown, where fewer than 5 are. Weights of
    several prompts are to be divided by their Z(x) first; that bounds them by n(x), which hides
    the tail of few samples a prompt.
    """
    log_w = log_weights.double().sort().values
    n = len(log_w)
    size = math.ceil(min(0.2 * n, 3.0 * math.sqrt(n)))
    if size < MIN_TAIL or n <= size or math.isinf(float(log_w[-1])):
        return math.inf
    weights = (log_w[-size - 1 :] - log_w[-1]).exp()
    x = weights[1:] - weights[0]
    # Equal weights are not equal to the last bit.
    x = x[x > 1e-12]
    if len(x) == 0:
        return -math.inf
    if len(x) < MIN_TAIL:
        return math.inf
    size = len(x)
    count = 30 + math.isqrt(size)
    j = torch.arange(1, count + 1, dtype=x.dtype)
    quartile = x[math.floor(size / 4 + 0.5) - 1]
    theta = 1.0 / x[-1] + (1.0 - (count / (j - 0.5)).sqrt()) / (3.0 * quartile)  # (J,)
    k = torch.log1p(-theta[:, None] * x).mean(1)  # (J,), minus the paper's k: heavy is positive
    log_likelihood = size * ((-theta / k).log() - k - 1.0)
    # theta = 0 is 0 / 0; its neighbours on the grid stand for it.
    log_likelihood = log_likelihood.nan_to_num(nan=-math.inf)
    best = float((log_likelihood.softmax(0) * theta).sum())
    return (size * float(torch.log1p(-best * x).mean()) + 10.0 * 0.5) / (size + 10.0)


def log_z_bounds(
    log_weights: Tensor,
    group: Tensor,
    exact_log_weights: Tensor | None = None,
    exact_group: Tensor | None = None,
    samples: int = 1,
) -> tuple[Estimate, Estimate | None]:
    """Bounds of the mean over prompts of log Z(x): from below E_q log w, from above E_P log w.

    With `samples` K the lower one is E log of the mean of K weights (IWAE, Burda et al. 2016, eq.
    8), over blocks of K in the order given; what is left over is dropped. It is -inf ± 0 where a
    block has no weight. The upper one needs exact samples of the target, of every prompt (those
    of `rejection`), and is None without them.
    """
    log_w = _checked("log_weights", log_weights, group)
    prompts = Prompts(group)
    short = prompts.counts < samples
    if bool(short.any()):
        raise ValueError(f"samples={samples} of a prompt, and {_named(prompts, short)} fewer")
    order = prompts.index.sort(stable=True).indices
    starts = prompts.counts.cumsum(0) - prompts.counts
    place = torch.arange(len(order)) - starts[prompts.index[order]]  # in its prompt
    whole = place < (prompts.counts // samples * samples)[prompts.index[order]]
    blocks = order[whole].reshape(-1, samples)  # (blocks, K), each of one prompt
    bound = log_w[blocks].logsumexp(1) - math.log(samples)
    lower = Prompts(prompts.index[blocks[:, 0]]).estimate_mean(bound)
    if exact_log_weights is None or exact_group is None:
        return lower, None
    exact = Prompts(exact_group)
    if not torch.equal(exact.names, prompts.names):
        raise ValueError("exact samples are of other prompts than those of the proposal")
    exact_log_w = _checked("exact_log_weights", exact_log_weights, exact_group)
    return lower, exact.estimate_mean(exact_log_w)


def rejection(log_potential: Tensor, bound: float, generator: torch.Generator) -> Tensor:
    """(N,) bool: which samples of the reference are exact samples of the target.

    Each is accepted with probability exp(potential - bound); ValueError where one exceeds 1.
    """
    potential = _checked("log_potential", log_potential, log_potential)
    if len(potential) and float(potential.max()) > bound:
        raise ValueError(
            f"the largest potential is {float(potential.max()):.6g}, above bound={bound:.6g}: what "
            "is accepted would not be the target; give a bound that no response can exceed"
        )
    uniform = torch.rand(len(potential), generator=generator, dtype=torch.float64)
    return uniform.log() < potential - bound


def binomial_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a rate of which `k` of `n` draws were seen: at least `level`, whatever the rate.

    Clopper & Pearson 1934: at either end the tail up to k is (1 - level) / 2. By bisection, as
    scipy is not among the dependencies.
    """
    if not 0 <= k <= n or n < 1 or not 0 < level < 1:
        raise ValueError(f"k={k} of n={n} at level={level:g}: 0 <= k <= n, n >= 1, 0 < level < 1")
    upper = 1.0 if k == n else _rate_whose_tail_is(k, n, (1 - level) / 2)
    lower = 0.0 if k == 0 else 1.0 - _rate_whose_tail_is(n - k, n, (1 - level) / 2)
    return lower, upper


def refuse_z(log_weights: Tensor, group: Tensor) -> str | None:
    """Why these weights (N,) do not support Z(x), with the rule and the fix; None where they do."""
    prompts = Prompts(group)
    log_w = _checked("log_weights", log_weights, group)
    few = prompts.counts < MIN_SAMPLES
    if bool(few.any()):
        least = int(prompts.counts.min())
        return (
            f"{_named(prompts, few)} fewer than {MIN_SAMPLES} samples, the least {least}: "
            f"Z(x) is estimated within a prompt and needs {MIN_SAMPLES}; take more samples a prompt"
        )
    log_zs = prompts.log_mean_exp(log_w)
    if bool(log_zs.isinf().any()):
        return f"{_named(prompts, log_zs.isinf())} no sample that the target allows; {MORE}"
    ess = effective_sample_size(log_w, group)
    if ess < MIN_ESS:
        return (
            f"{len(log_w)} samples are worth {ess:.3g} of the target (ESS), "
            f"and at least {MIN_ESS:g} are needed; {MORE}"
        )
    log_w = log_w - log_zs[prompts.index]
    reason = _heavy("weights P / q", log_w)
    if reason is None:
        z = log_z(log_w, group)
        relative = (prompts.mean((2.0 * log_w).exp()) - 1.0) / prompts.counts
        bias = float(relative.mean()) / 2.0
        if bias > 0.5 * z.se:
            return (
                f"log Z is too low by about {bias:.2g}, beyond half of its standard error "
                f"{z.se:.2g}: more prompts do not mend it; {MORE}"
            )
    return reason


def refuse_divergence(
    d: Divergence, log_target: Tensor, log_policy: Tensor, log_proposal: Tensor, group: Tensor
) -> str | None:
    """Why these samples (N,) do not support `d`, with the rule and the fix; None where they do."""
    violates = log_target.isinf() & log_policy.isfinite()
    if d.needs_support and bool(violates.any()):
        return (
            f"{d.title} is infinite: {int(violates.sum())} of {len(group)} samples are possible "
            "under the policy and violate a hard constraint; choose a divergence that is finite "
            "there (KL(P_T||pi), Jensen-Shannon, total variation), or smooth the constraint"
        )
    reason = refuse_z(log_target - log_proposal, group)
    if reason is not None:
        return reason
    prompts = Prompts(group)
    log_w = (log_target - log_proposal).double()
    log_w = log_w - _log_zs(log_w, prompts)[prompts.index]
    log_s = (log_policy - log_proposal).double()
    terms = d.integrand(log_w, log_s).abs().log()
    return _heavy("ratios pi / q", log_s) or _heavy(f"terms of {d.title}", terms)


def _heavy(what: str, log_weights: Tensor) -> str | None:
    k = pareto_k(log_weights)
    if k <= MAX_PARETO_K:
        return None
    found = f"have a tail of Pareto k {k:.2f}" if k < math.inf else "have too few draws in the tail"
    return (
        f"the {what} of {len(log_weights)} samples {found}; "
        f"a mean needs k of at most {MAX_PARETO_K:g}; {MORE}"
    )


def _log_zs(log_weights: Tensor, prompts: Prompts) -> Tensor:
    """(G,) log Z(x) of each prompt; ValueError where one has no weight."""
    log_zs = prompts.log_mean_exp(log_weights)
    if bool(log_zs.isinf().any()):
        raise ValueError(
            f"{_named(prompts, log_zs.isinf())} no sample that the target allows; {MORE}"
        )
    return log_zs


def _named(prompts: Prompts, of: Tensor) -> str:
    """Subject and verb: `prompt 3 has`, or `2 of 5 prompts (the first is 3) have`."""
    first, count = int(prompts.names[of][0]), int(of.sum())
    if count == 1:
        return f"prompt {first} has"
    return f"{count} of {len(of)} prompts (the first is {first}) have"


def _checked(name: str, x: Tensor, group: Tensor, needs_support: bool = False) -> Tensor:
    """`x` in float64; ValueError unless it is (N,) of logs, above -inf if it `needs_support`."""
    if x.shape != group.shape or x.dim() != 1 or len(x) == 0:
        raise ValueError(f"{name} has the shape {tuple(x.shape)}, group {tuple(group.shape)}: (N,)")
    wrong = ~x.isfinite() if needs_support else x.isnan() | x.isposinf()
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name} is {float(x[row])} for sample {row}; it must be a finite log")
    return x.double()


def _rate_whose_tail_is(k: int, n: int, tail: float) -> float:
    """The rate under which at most `k` of `n` are seen with probability `tail`."""
    j = torch.arange(k + 1, dtype=torch.float64)
    choose = math.lgamma(n + 1) - torch.lgamma(j + 1) - torch.lgamma(n - j + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = 0.5 * (low + high)
        terms = choose + j * math.log(rate) + (n - j) * math.log1p(-rate)
        low, high = (rate, high) if float(terms.logsumexp(0)) > math.log(tail) else (low, rate)
    return 0.5 * (low + high)
