"""Every divergence's pseudo-reward descends it, and its integrand measures it: by enumeration."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlalign.divergences import DIVERGENCES, alpha_divergence, divergence

ALL = {**DIVERGENCES, **{f"alpha={a}": alpha_divergence(a) for a in (-1.0, 0.3, 0.5, 2.0)}}
SIZE = 9


def log_distribution(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, generator=generator, dtype=torch.float64).log_softmax(0)


P, Q = log_distribution(1), log_distribution(2)
THETA = log_distribution(3)


def by_definition(name: str, p: torch.Tensor, pi: torch.Tensor) -> torch.Tensor:
    m = (p + pi) / 2
    return {
        "forward_kl": lambda: (p * (p / pi).log()).sum(),
        "reverse_kl": lambda: (pi * (pi / p).log()).sum(),
        "js": lambda: 0.5 * (p * (p / m).log()).sum() + 0.5 * (pi * (pi / m).log()).sum(),
        "tv": lambda: 0.5 * (p - pi).abs().sum(),
        "forward_chi2": lambda: (p**2 / pi).sum() - 1,
        "reverse_chi2": lambda: (pi**2 / p).sum() - 1,
        "hellinger": lambda: 1 - (p * pi).sqrt().sum(),
    }[name]()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_integrand_under_any_proposal_is_the_divergence(name):
    exact = by_definition(name, P.exp(), THETA.exp())
    for proposal in (Q, P, THETA):
        found = (proposal.exp() * DIVERGENCES[name].integrand(P - proposal, THETA - proposal)).sum()
        assert_close(found, exact)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("is_off_policy", [False, True])
def test_the_pseudo_reward_has_the_gradient_of_the_divergence(name, is_off_policy):
    found = ALL[name]
    theta = THETA.clone().requires_grad_()
    exact_value = (Q.exp() * found.integrand(P - Q, theta.log_softmax(0) - Q)).sum()
    (exact,) = torch.autograd.grad(exact_value, theta)
    log_pi = theta.log_softmax(0)
    held = log_pi.detach()
    reward = found.reward(held - P) - 0.7  # a constant is free
    draws = Q.exp() * (held - Q).exp() if is_off_policy else held.exp()
    (ours,) = torch.autograd.grad(-(draws * reward * log_pi).sum(), theta)
    assert_close(ours, exact)


@pytest.mark.parametrize("name", ALL)
def test_a_forbidden_response_makes_infinite_what_needs_support_and_nothing_nan(name):
    forbidden = P.clone()
    forbidden[0] = -math.inf
    forbidden = forbidden.log_softmax(0)
    found = ALL[name]
    value = (Q.exp() * found.integrand(forbidden - Q, THETA - Q)).sum()
    reward = found.reward(THETA - forbidden)
    assert not reward.isnan().any()
    assert bool(value.isinf()) == found.needs_support
    assert bool(reward.isinf().any()) == found.needs_support


INFINITE = {"forward_kl", "forward_chi2", "alpha=-1.0"}


@pytest.mark.parametrize("name", ALL)
def test_a_policy_that_cannot_write_what_the_target_does_is_infinitely_far_where_it_should_be(name):
    """Exact zeros, as of top-k; seen only in samples of another proposal."""
    mute = THETA.clone()
    mute[0] = -math.inf
    mute = mute.log_softmax(0)
    value = (Q.exp() * ALL[name].integrand(P - Q, mute - Q)).sum()
    assert not value.isnan() and bool(value.isinf()) == (name in INFINITE)


def test_alpha_goes_from_one_kl_to_the_other():
    for a, name in ((1e-6, "forward_kl"), (1 - 1e-6, "reverse_kl")):
        near = (Q.exp() * alpha_divergence(a).integrand(P - Q, THETA - Q)).sum()
        assert_close(near, by_definition(name, P.exp(), THETA.exp()), rtol=1e-5, atol=1e-5)
    assert divergence("alpha", 0.0) is DIVERGENCES["forward_kl"]
    assert divergence("alpha", 1.0) is DIVERGENCES["reverse_kl"]
    assert divergence("js") is DIVERGENCES["js"]
