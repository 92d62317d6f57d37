"""Lambda by Newton on the dual: against closed forms, and what its errors are worth."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlalign.moments import Samples, fit, newton_step, tilt


def binary(*rates: float) -> Samples:
    """One 0/1 feature, known exactly: each prompt has a 1 of probability `rate` and a 0."""
    features = torch.tensor([[1.0], [0.0]] * len(rates), dtype=torch.float64)
    weights = torch.tensor([x for rate in rates for x in (rate, 1 - rate)], dtype=torch.float64)
    prompt = torch.arange(len(rates)).repeat_interleave(2)
    return Samples(features, weights.log(), prompt)


def drawn(n: int, seed: int, thresholds: tuple[float, ...] = (0.0, 1.0)) -> Samples:
    """Indicators of one normal number exceeding thresholds: features that depend on each other."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    features = (x.unsqueeze(1) > torch.tensor(thresholds)).double()
    return Samples(features, torch.zeros(n).double(), torch.zeros(n, dtype=torch.long))


def logit(x: float) -> float:
    return math.log(x / (1 - x))


def test_one_binary_feature_has_the_logit_difference():
    found = fit(binary(0.0741), [(0.5, 0.5)])
    assert_close(found.lambdas, torch.tensor([-logit(0.0741)], dtype=torch.float64))
    assert found.is_reached
    assert_close(found.means, torch.tensor([0.5], dtype=torch.float64))
    # Z = 1 - b + b exp(lambda), and the weights b and 1 - b stand for two samples.
    expected = math.log((1 - 0.0741 + 0.0741 * math.exp(float(found.lambdas))) / 2)
    assert_close(found.log_z, torch.tensor([expected], dtype=torch.float64))


def test_one_z_for_all_prompts_would_miss_the_wish():
    """Base rates .5 and .01, a wish of .6: each prompt must be normalised by itself."""
    samples = binary(0.5, 0.01)
    right = fit(samples, [(0.6, 0.6)])
    assert float(right.lambdas) == pytest.approx(3.40, abs=0.005)
    pooled = Samples(samples.features, samples.log_weights, torch.zeros_like(samples.prompt))
    wrong = fit(pooled, [(0.6, 0.6)]).lambdas
    assert float(wrong) == pytest.approx(1.48, abs=0.005)
    assert float(tilt(samples, wrong).means) == pytest.approx(0.43, abs=0.005)
    assert float(tilt(samples, right.lambdas).means) == pytest.approx(0.6, abs=1e-9)


def test_an_interval_moves_to_its_nearest_end_or_not_at_all():
    samples = binary(0.3)
    for wish, mean, sign in (((0.5, 0.8), 0.5, 1), ((0.1, 0.2), 0.2, -1), ((0.2, 0.4), 0.3, 0)):
        found = fit(samples, [wish])
        assert float(found.means) == pytest.approx(mean, abs=1e-8)
        assert float(found.lambdas.sign()) == sign and found.is_reached


def test_several_moments_are_met_at_once():
    wishes = [(0.5, 0.5), (0.4, 0.4), (0.2, 0.3)]
    found = fit(drawn(5000, 0, (0.0, 0.5, 1.5)), wishes)
    assert found.is_reached
    assert_close(found.means, torch.tensor([0.5, 0.4, 0.2], dtype=torch.float64))


def test_wishes_that_contradict_each_other_are_not_reached():
    samples = drawn(2000, 0, (0.0, 1.0))  # the second implies the first
    assert not fit(samples, [(0.3, 0.3), (0.7, 0.7)]).is_reached
    assert fit(samples, [(0.7, 0.7), (0.3, 0.3)]).is_reached


def test_what_is_forbidden_counts_for_nothing():
    samples = drawn(4000, 1)
    is_allowed = samples.features[:, 1] == 0
    forbidden = Samples(samples.features, torch.where(is_allowed, 0.0, -math.inf), samples.prompt)
    left = Samples(samples.features[is_allowed], torch.zeros(int(is_allowed.sum())).double(),
                   samples.prompt[is_allowed])  # fmt: skip
    ours = fit(forbidden.columns([0]), [(0.6, 0.6)])
    assert_close(ours.lambdas, fit(left.columns([0]), [(0.6, 0.6)]).lambdas)


def test_a_prompt_without_anything_possible_is_left_out():
    samples = binary(0.3, 0.5)
    weights = samples.log_weights.clone()
    weights[2:] = -math.inf
    found = fit(Samples(samples.features, weights, samples.prompt), [(0.5, 0.5)])
    assert_close(found.lambdas, fit(binary(0.3), [(0.5, 0.5)]).lambdas)
    with pytest.raises(ValueError, match="every sample has weight 0"):
        nothing = torch.full_like(weights, -math.inf)
        fit(Samples(samples.features, nothing, samples.prompt), [(0.5, 0.5)])


def test_the_standard_error_covers_the_exact_lambda():
    """200 fits of 400 samples: the 95% interval holds the exact lambda in at least 90% of them."""
    exact = torch.tensor([logit(0.5) - logit(0.2)], dtype=torch.float64)
    covered = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        ones = (torch.rand(400, 1, generator=generator, dtype=torch.float64) < 0.2).double()
        prompt = torch.arange(2).repeat_interleave(200)
        found = fit(Samples(ones, torch.zeros(400).double(), prompt), [(0.5, 0.5)])
        covered += bool(((found.lambdas - exact).abs() <= 1.96 * found.se).all())
    assert covered >= 180


def test_small_steps_on_fresh_samples_end_at_the_fitted_lambda():
    wishes = [(0.6, 0.6), (0.3, 0.5)]
    exact = fit(drawn(200_000, 99), wishes).lambdas
    lambdas = torch.zeros(2, dtype=torch.float64)
    for seed in range(300):
        lambdas = newton_step(drawn(256, seed), wishes, lambdas, lambdas, 0.05)
    assert_close(lambdas, exact, rtol=0, atol=0.12)


def test_a_step_stops_where_an_interval_holds():
    samples = binary(0.3)
    start = torch.tensor([0.05], dtype=torch.float64)
    end = newton_step(samples, [(0.1, 0.4)], start, start, 1.0)
    assert float(end) == 0.0  # within the interval nothing pushes
    held = newton_step(samples, [(0.1, 0.4)], end, end, 1.0)
    assert float(held) == 0.0


def test_a_batch_that_shows_nothing_moves_a_lambda_a_little():
    """No response has the feature: up, by the rate over the gap, and not to infinity."""
    nothing = Samples(torch.zeros(64, 1).double(), torch.zeros(64).double(), torch.zeros(64).long())
    start = torch.tensor([4.0], dtype=torch.float64)
    moved = newton_step(nothing, [(0.5, 0.5)], start, torch.zeros(1).double(), 0.05)
    assert_close(moved - start, torch.tensor([0.1], dtype=torch.float64))
