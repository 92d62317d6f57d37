"""KL estimators, where each may stand, and the adaptive coefficient."""

import json

import pytest
import torch
from torch.testing import assert_close

from rlalign.config import ConfigError
from rlalign.kl import KLController, check_kl, kl_tokens, safe_exp
from rlalign.settings.sections import KLSection

ALLOWED = [
    ("k1", "reward"),
    ("k1", "score"),
    ("k2", "loss"),
    ("k1", "ratio_loss"),
    ("k3", "ratio_loss"),
]
REFUSED = {
    ("k2", "reward"): r"E\[k2\] is not the KL, so another distribution would be learnt; use k1",
    ("k3", "reward"): r"its gradient is that of KL\(policy\|ref\) - KL\(ref\|policy\); use k1",
    ("k2", "score"): r"E\[k2\] is not the KL, so another distribution would be learnt; use k1",
    ("k3", "score"): r"its gradient is that of KL\(policy\|ref\) - KL\(ref\|policy\); use k1",
    ("k1", "loss"): "its gradient is zero in expectation; use k2, or put k1 in the reward",
    ("k3", "loss"): r"its gradient is that of the forward KL\(ref\|policy\); use k2",
    ("k2", "ratio_loss"): r"E\[k2\] is not the KL; use k1 or k3",
}


def test_estimators_by_hand():
    logprobs, ref = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    log2 = 0.6931472
    assert_close(kl_tokens(logprobs, ref, "k1"), torch.tensor([log2]))
    assert_close(kl_tokens(logprobs, ref, "k2"), torch.tensor([0.5 * log2**2]))
    assert_close(kl_tokens(logprobs, ref, "k3"), torch.tensor([0.5 - 1.0 + log2]))
    assert_close(kl_tokens(logprobs, ref), kl_tokens(logprobs, ref, "k1"))


@pytest.mark.parametrize("estimator, is_unbiased", [("k1", True), ("k2", False), ("k3", True)])
def test_the_expectation_of_k1_and_k3_is_the_kl(estimator, is_unbiased):
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    exact = (p * (p / q).log()).sum()
    expected = (p * kl_tokens(p.log(), q.log(), estimator)).sum()
    assert torch.isclose(expected, exact) == is_unbiased


def test_exponents_are_clamped():
    assert_close(safe_exp(torch.tensor([1000.0, -1000.0])), torch.tensor([20.0, -20.0]).exp())
    assert bool(kl_tokens(torch.tensor([-500.0]), torch.tensor([0.0]), "k3").isfinite())


@pytest.mark.parametrize("estimator, placement", ALLOWED)
def test_estimators_are_accepted_where_their_gradient_is_right(estimator, placement):
    check_kl(KLSection(estimator=estimator, placement=placement))


@pytest.mark.parametrize("estimator, placement", REFUSED)
def test_estimators_are_refused_elsewhere_with_the_reason(estimator, placement):
    reason = REFUSED[estimator, placement]
    setting = f"kl.estimator={estimator} with kl.placement={placement}: "
    with pytest.raises(ConfigError, match=f"^{setting}{reason}$"):
        check_kl(KLSection(estimator=estimator, placement=placement))


def test_every_combination_is_either_allowed_or_refused():
    assert len(ALLOWED) + len(REFUSED) == 3 * 4


def controller(**settings: float) -> KLController:
    return KLController(KLSection(**({"coef": 0.1, "target": 6.0, "horizon": 1000} | settings)))


def test_the_coefficient_follows_zieglers_rule():
    beta = controller()
    beta.update(kl=6.6, samples=100)  # 10% too far
    assert beta.coef == pytest.approx(0.1 * (1 + 0.1 * 100 / 1000))
    beta = controller()
    beta.update(kl=5.4, samples=100)
    assert beta.coef == pytest.approx(0.1 * (1 - 0.1 * 100 / 1000))


@pytest.mark.parametrize("kl, error", [(600.0, 0.2), (0.0, -0.2)])
def test_the_error_is_clipped_at_a_fifth(kl, error):
    beta = controller()
    beta.update(kl=kl, samples=100)
    assert beta.coef == pytest.approx(0.1 * (1 + error * 100 / 1000))


def test_the_coefficient_stays_positive_when_an_iteration_is_longer_than_the_horizon():
    beta = controller(horizon=10)
    beta.update(kl=0.0, samples=1000)
    assert beta.coef == pytest.approx(0.1 * (1 - 0.2))


def test_without_a_target_the_coefficient_is_fixed():
    beta = controller(target=None)
    beta.update(kl=100.0, samples=1000)
    assert beta.coef == 0.1


def test_the_controller_goes_on_from_its_saved_state():
    ours, theirs = controller(), controller()
    ours.update(kl=9.0, samples=64)
    theirs.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    assert theirs.coef == ours.coef != 0.1
    fixed = controller(target=None, coef=0.5)  # resumed with another, fixed coefficient
    fixed.load_state_dict(ours.state_dict())
    assert fixed.coef == 0.5
    ours.update(kl=7.0, samples=64)
    theirs.update(kl=7.0, samples=64)
    assert theirs.coef == ours.coef
