"""Fitting the weights of moments: the convex dual of "nearest to the reference with these means".

Among all distributions with E[phi] = mu the one nearest to a base b in KL(p||b) is
p proportional to b exp(lambda phi), and lambda minimises D = E_x log Z_x(lambda) - lambda mu
(Csiszar 1975; Khalifa et al. 2021, eq. 3). E_x averages over prompts, each normalised by itself:
one Z for all prompts would fit another problem, whose lambda misses the wish.

An interval [low, high] has a lambda of at most one sign: D gains -low lambda where it is positive
and -high lambda where it is negative, that is two variables >= 0, and Newton is projected.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 200
TOLERANCE = 1e-9  # of the gradient, in units of the features' spread
TOO_FAR = 300.0  # nats that a lambda may add over a feature's range: beyond, no mean moves


@dataclass(frozen=True)
class Samples:
    """What a fit knows of N responses: all float64, on the CPU."""

    features: Tensor  # (N, M)
    log_weights: Tensor  # (N,) log base / proposal, unnormalised; -inf outside of a hard constraint
    prompt: Tensor  # (N,) int64, 0..P-1

    @property
    def prompts(self) -> int:
        return int(self.prompt.max()) + 1

    def columns(self, index: Sequence[int]) -> "Samples":
        return Samples(self.features[:, list(index)], self.log_weights, self.prompt)

    def possible(self) -> "Samples":
        """Those of the prompts that have a sample of weight above 0, renumbered."""
        seen = torch.zeros(self.prompts, dtype=torch.bool)
        seen[self.prompt[self.log_weights > -torch.inf]] = True
        keep = seen[self.prompt]
        renumbered = seen.long().cumsum(0) - 1
        return Samples(self.features[keep], self.log_weights[keep], renumbered[self.prompt[keep]])


@dataclass(frozen=True)
class Fit:
    lambdas: Tensor  # (M,)
    se: Tensor  # (M,) of the responses' sampling; the prompts are taken as given
    means: Tensor  # (M,) E_x E[phi] under the fitted target
    log_z: Tensor  # (P,) log of each prompt's mean weight; against base / proposal as given
    ess: Tensor  # (P,) effective samples of each prompt at the fitted lambda
    is_reached: bool  # False: no lambda gives these means to these samples


def fit(samples: Samples, wishes: Sequence[tuple[float, float]]) -> Fit:
    """The lambdas (M,) whose target has means within `wishes`, by projected, damped Newton.

    Raises ValueError where no sample has any weight.
    """
    if not bool((samples.log_weights > -torch.inf).any()):
        raise ValueError("every sample has weight 0: nothing can be fitted")
    samples = samples.possible()
    matrix, wish, is_bounded = _variables(wishes)  # (M, K), (K,), (K,)
    spread = samples.features.amax(0) - samples.features.amin(0)  # (M,)
    theta = torch.zeros(len(wish), dtype=torch.float64)
    value, is_reached = _dual(samples, matrix @ theta) - wish @ theta, False
    for _ in range(STEPS):
        tilted = tilt(samples, matrix @ theta)
        gradient = matrix.T @ tilted.means - wish
        is_held = is_bounded & (theta <= 0.0) & (gradient > 0.0)
        free = ~is_held
        scale = (matrix.abs().T @ spread).clamp(min=1e-300)
        if bool(((gradient.abs() / scale)[free] < TOLERANCE).all()):
            is_reached = True
            break
        if bool(((matrix @ theta).abs() * spread > TOO_FAR).any()):
            break
        step = _newton(matrix.T @ tilted.covariance @ matrix, gradient, free)
        theta, value, moved = _line_search(
            samples, matrix, wish, is_bounded, theta, value, step, gradient
        )
        if not moved:
            is_reached = bool(((gradient.abs() / scale)[free] < 1e-6).all())
            break
    lambdas = matrix @ theta
    tilted = tilt(samples, lambdas)
    return Fit(lambdas, _standard_errors(samples, tilted, lambdas != 0), tilted.means, tilted.log_z,
               tilted.ess, is_reached)  # fmt: skip


def newton_step(
    samples: Samples,
    wishes: Sequence[tuple[float, float]],
    lambdas: Tensor,
    at: Tensor,
    rate: float,
) -> Tensor:
    """The lambdas (M,) after `rate` of one damped Newton step, shrunk by the effective share.

    The curvature is at least the squared gap to the wish, so a feature moves by `rate / gap` at
    most, also where the samples are too few to vary.

    The samples are weighted at `at`: the lambdas themselves, or 0 where they come from the fitted
    distribution already. An interval's lambda stops at 0 before it changes its sign.
    """
    samples = samples.possible()
    tilted = tilt(samples, at)
    share = float(tilted.ess.sum()) / len(samples.features)
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*wishes, strict=True))
    # The end of an interval that lambda's sign stands for; at 0 the nearest one, or none within.
    nearest = tilted.means.clamp(low, high)
    wish = torch.where(lambdas > 0, low, torch.where(lambdas < 0, high, nearest))
    gap, spread = wish - tilted.means, tilted.covariance.diagonal()
    # Of B samples it can be singular, whence the ridge beside the floor.
    floor = (gap**2 - spread).clamp(min=0.0) + 1e-2 * spread.mean() + 1e-12
    is_free = gap != 0.0  # within its interval a lambda rests, whatever the others do
    step = torch.zeros_like(lambdas)
    if bool(is_free.any()):
        index = is_free.nonzero().squeeze(1)
        curvature = (tilted.covariance + floor.diag())[index][:, index]
        step[index] = torch.linalg.solve(curvature, gap[index])
    new = lambdas + rate * share * step
    crosses = (low < high) & (new * lambdas < 0)
    return torch.where(crosses, 0.0, new)


def _variables(wishes: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """lambda = matrix theta: one free variable for a single wish, two >= 0 for an interval."""
    columns, wish, is_bounded = [], [], []
    for i, (low, high) in enumerate(wishes):
        unit = torch.zeros(len(wishes), dtype=torch.float64)
        unit[i] = 1.0
        if low == high:
            columns.append(unit)
            wish.append(low)
            is_bounded.append(False)
        else:
            columns += [unit, -unit]
            wish += [low, -high]
            is_bounded += [True, True]
    return (
        torch.stack(columns, 1),
        torch.tensor(wish, dtype=torch.float64),
        torch.tensor(is_bounded),
    )


def _newton(hessian: Tensor, gradient: Tensor, free: Tensor) -> Tensor:
    """Minus the damped inverse Hessian times the gradient, on the free variables alone."""
    step = torch.zeros_like(gradient)
    index = free.nonzero().squeeze(1)
    part = hessian[index][:, index]
    # An interval's two variables have opposite columns, so their part alone is singular.
    damping = 1e-9 * part.diagonal().mean().clamp(min=1e-12)
    eye = torch.eye(len(index), dtype=torch.float64)
    step[index] = -torch.linalg.solve(part + damping * eye, gradient[index])
    return step


def _line_search(
    samples: Samples, matrix: Tensor, wish: Tensor, is_bounded: Tensor, theta: Tensor,
    value: Tensor, step: Tensor, gradient: Tensor,
) -> tuple[Tensor, Tensor, bool]:  # fmt: skip
    """Halve the projected step until the dual falls by Armijo's share of what was promised."""
    spread = samples.features.amax(0) - samples.features.amin(0)
    # Far from the optimum a Newton step can be of any length: 5 nats over a feature at most.
    longest = float(((matrix @ step).abs() * spread).max())
    size = min(1.0, 5.0 / longest) if longest > 0 else 1.0
    for _ in range(60):
        new = theta + size * step
        new = torch.where(is_bounded, new.clamp(min=0.0), new)
        new_value = _dual(samples, matrix @ new) - wish @ new
        promised = float(gradient @ (new - theta))
        if float(new_value - value) <= 1e-4 * promised and bool((new != theta).any()):
            return new, new_value, True
        size /= 2
    return theta, value, False


# -- the distribution at a lambda ------------------------------------------------------------------


@dataclass(frozen=True)
class Tilted:
    """The samples, weighted within each prompt by base / proposal exp(lambda phi)."""

    weights: Tensor  # (N,), their sum is 1 within a prompt
    of_prompts: Tensor  # (P, M) means within each prompt
    means: Tensor  # (M,) their mean over prompts
    covariance: Tensor  # (M, M) mean over prompts of the covariance within
    log_z: Tensor  # (P,)
    ess: Tensor  # (P,)


def tilt(samples: Samples, lambdas: Tensor) -> Tilted:
    logits = samples.log_weights + samples.features @ lambdas  # (N,)
    prompts, prompt = samples.prompts, samples.prompt
    total = _logsumexp(logits, prompt, prompts)  # (P,)
    weights = (logits - total[prompt]).exp()
    width = samples.features.shape[1]
    zeros = torch.zeros(prompts, width, dtype=torch.float64)
    of_prompts = zeros.index_add(0, prompt, weights.unsqueeze(1) * samples.features)
    centred = samples.features - of_prompts[prompt]
    covariance = (centred * weights.unsqueeze(1)).T @ centred / prompts
    counts = torch.bincount(prompt, minlength=prompts).double()
    ess = 1.0 / torch.zeros(prompts, dtype=torch.float64).index_add(0, prompt, weights**2)
    return Tilted(weights, of_prompts, of_prompts.mean(0), covariance, total - counts.log(), ess)


def _dual(samples: Samples, lambdas: Tensor) -> Tensor:
    """E_x log Z_x, up to a constant."""
    logits = samples.log_weights + samples.features @ lambdas
    return _logsumexp(logits, samples.prompt, samples.prompts).mean()


def _logsumexp(x: Tensor, index: Tensor, size: int) -> Tensor:
    """(size,) log of the sum of exp(x) over the entries of each index."""
    most = torch.full((size,), -torch.inf, dtype=x.dtype).scatter_reduce(0, index, x, "amax")
    most = torch.where(most > -torch.inf, most, 0.0)
    return (
        most + torch.zeros(size, dtype=x.dtype).index_add(0, index, (x - most[index]).exp()).log()
    )


def _standard_errors(samples: Samples, tilted: Tilted, is_fitted: Tensor) -> Tensor:
    """Of the lambdas, by the sandwich H^-1 S H^-1 (distribution-free); 0 for one that is held at 0.

    S sums w^2 (phi - m)(phi - m)' within the prompts, the variance of a self-normalised mean.
    """
    centred = samples.features - tilted.of_prompts[samples.prompt]
    counts = torch.bincount(samples.prompt).double()
    correction = (counts / (counts - 1).clamp(min=1.0))[samples.prompt]
    scaled = centred * (tilted.weights * correction.sqrt()).unsqueeze(1)
    meat = scaled.T @ scaled / samples.prompts**2  # (M, M)
    index = is_fitted.nonzero().squeeze(1)
    found = torch.zeros(len(is_fitted), dtype=torch.float64)
    inverse = torch.linalg.pinv(tilted.covariance[index][:, index])
    found[index] = (inverse @ meat[index][:, index] @ inverse).diagonal().clamp(min=0.0).sqrt()
    return found
