"""f-divergences between a policy and its target: what each rewards, and what a sample tells of it.

Every function takes log-probabilities of whole responses. With t = pi / p, a divergence is
D_f(pi || p) = E_p f(t), and its gradient in pi's parameters is E_pi[f'(t) grad log pi] (Go et al.
2023, "Aligning language models with preferences through f-divergence minimization", theorem 1). So
a policy gradient on the pseudo-reward -f'(t) descends it; constants a prompt are free.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

LOG_2 = math.log(2.0)

# (log pi - log p) (N,) -> pseudo-reward (N,)
Reward = Callable[[Tensor], Tensor]
# (log p/q, log pi/q), both (N,) -> (N,) whose mean over samples of q is the divergence
Integrand = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """One f-divergence; `needs_support` says that it is infinite where p is 0 and pi is not."""

    title: str
    reward: Reward
    integrand: Integrand
    needs_support: bool


def product(log_weight: Tensor, factor: Tensor) -> Tensor:
    """exp(log_weight) * factor, 0 where the weight is 0 whatever the factor."""
    weight = log_weight.exp()
    return torch.where(weight > 0, weight * factor, 0.0)


# The integrands of the two KLs carry pi/q - p/q, of mean 0: so they are never negative, and their
# variance vanishes with the divergence (as k3 does for a KL to the reference).
def _forward_kl(log_p: Tensor, log_pi: Tensor) -> Tensor:
    return product(log_p, log_p - log_pi - 1.0) + log_pi.exp()


def _reverse_kl(log_p: Tensor, log_pi: Tensor) -> Tensor:
    return product(log_pi, log_pi - log_p - 1.0) + log_p.exp()


def _total_variation(log_p: Tensor, log_pi: Tensor) -> Tensor:
    return 0.5 * (log_pi.exp() - log_p.exp()).abs()


def _jensen_shannon(log_p: Tensor, log_pi: Tensor) -> Tensor:
    """Half of KL(p || m) + KL(pi || m) with m = (p + pi) / 2; p/m = 2 / (1 + t)."""
    u = log_pi - log_p
    of_p = product(log_p, LOG_2 - softplus(u))
    of_pi = product(log_pi, LOG_2 - softplus(-u))
    return 0.5 * (of_p + of_pi)


def _forward_chi2(log_p: Tensor, log_pi: Tensor) -> Tensor:
    # (p - pi)^2 / pi = p (p / pi - 2) + pi, which is infinite where pi alone is 0.
    return product(log_p, (log_p - log_pi).exp() - 2.0) + log_pi.exp()


def _reverse_chi2(log_p: Tensor, log_pi: Tensor) -> Tensor:
    u = log_pi - log_p
    # p (t - 1)^2 = pi (t - 2) + p, which is infinite, not nan, where p is 0.
    return product(log_pi, u.exp() - 2.0) + log_p.exp()


def _hellinger(log_p: Tensor, log_pi: Tensor) -> Tensor:
    return 0.5 * ((0.5 * log_pi).exp() - (0.5 * log_p).exp()) ** 2


def _alpha(a: float, log_p: Tensor, log_pi: Tensor) -> Tensor:
    """p f(t) with f(t) = (t^a - a t + a - 1) / (a (a - 1)): KL(p||pi) at 0, KL(pi||p) at 1."""
    u = log_pi - log_p
    # p t^a = pi t^(a - 1): the one whose weight does not hide an infinity.
    power = product(log_p, (a * u).exp()) if a < 1.0 else product(log_pi, ((a - 1.0) * u).exp())
    return (power - a * log_pi.exp() + (a - 1.0) * log_p.exp()) / (a * (a - 1.0))


def _alpha_reward(a: float, u: Tensor) -> Tensor:
    return (((a - 1.0) * u).exp() - 1.0) / (1.0 - a)


FORWARD_KL = Divergence("KL(P_T||pi)", lambda u: (-u).exp(), _forward_kl, False)
REVERSE_KL = Divergence("KL(pi||P_T)", lambda u: -u, _reverse_kl, True)
DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": FORWARD_KL,
    "reverse_kl": REVERSE_KL,
    "js": Divergence(
        "Jensen-Shannon", lambda u: 0.5 * (softplus(-u) - LOG_2), _jensen_shannon, False
    ),
    "tv": Divergence("total variation", lambda u: -0.5 * u.sign(), _total_variation, False),
    "forward_chi2": Divergence("chi2(P_T||pi)", lambda u: (-2.0 * u).exp(), _forward_chi2, False),
    "reverse_chi2": Divergence("chi2(pi||P_T)", lambda u: -2.0 * u.exp(), _reverse_chi2, True),
    "hellinger": Divergence("Hellinger^2", lambda u: 0.5 * (-0.5 * u).exp(), _hellinger, False),
}


def alpha_divergence(a: float) -> Divergence:
    """The alpha-divergence of order `a` (Amari), whose limits at 0 and 1 are the two KLs."""
    if a == 0.0:
        return FORWARD_KL
    if a == 1.0:
        return REVERSE_KL
    return Divergence(f"alpha={a:g}", partial(_alpha_reward, a), partial(_alpha, a), a > 1.0)


def divergence(name: str, alpha: float = 0.5) -> Divergence:
    """The divergence of a name: one of DIVERGENCES, or `alpha` with its order."""
    return alpha_divergence(alpha) if name == "alpha" else DIVERGENCES[name]
