"""Masked sums, means and whitening: real tokens only, over all ranks, safe at the edges."""

import pytest
import torch
from builders import on_two_ranks
from torch.testing import assert_close

from rlalign.masking import last_index, masked_mean, masked_moments, masked_sum, masked_whiten

X = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_sum_and_mean_do_not_see_what_the_mask_leaves_out():
    x = torch.where(MASK, X, float("nan"))
    assert_close(masked_sum(x, MASK), torch.tensor(9.0))
    assert_close(masked_mean(x, MASK), torch.tensor(3.0))


def test_mean_over_nothing_is_zero():
    assert masked_mean(X, torch.zeros_like(MASK)) == 0.0
    assert masked_moments(X, torch.zeros_like(MASK)) == (0.0, 0.0)


def test_no_gradient_flows_from_outside_the_mask():
    x = X.clone().requires_grad_()
    masked_sum(x**2, MASK).backward()
    assert_close(x.grad, torch.where(MASK, 2 * X, 0.0))


def test_whitening_uses_the_biased_variance():
    x, mask = torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([[True, True, False]])
    assert_close(masked_whiten(x, mask)[0], torch.tensor([[-1.0, 1.0, 0.0]]))  # unbiased: +-0.71


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e6])
def test_equal_values_whiten_to_zero(value):
    x = torch.full((3, 7), value)
    assert_close(masked_whiten(x, torch.ones(3, 7, dtype=torch.bool))[0], torch.zeros(3, 7))


def test_a_single_token_whitens_to_zero():
    assert_close(masked_whiten(torch.tensor([[5.0]]), torch.tensor([[True]]))[0], torch.zeros(1, 1))


def test_a_small_spread_around_a_large_mean_is_kept():
    x = 1000.0 + torch.tensor([[0.0, 0.1, 0.2, 0.3]])
    _, variance = masked_moments(x, torch.ones(1, 4, dtype=torch.bool))
    assert_close(variance, torch.tensor(0.0125), rtol=1e-2, atol=0.0)
    whitened = masked_whiten(x, torch.ones(1, 4, dtype=torch.bool))[0]
    assert_close(whitened.std(correction=0), torch.tensor(1.0), rtol=1e-3, atol=0.0)


def test_whitening_is_over_all_ranks():
    torch.manual_seed(0)
    x, mask = torch.randn(6, 5) * 3 + 1, torch.rand(6, 5) < 0.6
    parts = [slice(0, 2), slice(2, 6)]  # ranks with different numbers of tokens

    def whiten(rank, sum_over_ranks):
        return masked_whiten(x[parts[rank]], mask[parts[rank]], sum_over_ranks)[0]

    assert_close(torch.cat(on_two_ranks(whiten)), masked_whiten(x, mask)[0])


def test_last_index_is_the_last_kept_token():
    mask = torch.tensor([[True, True, False], [True, False, True], [False, False, False]])
    assert last_index(mask).tolist() == [1, 2, 0]
