"""Log-probabilities and entropies of tokens: right, and in float32."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlalign.logprobs import token_entropy, token_logprobs


def test_logprobs_are_the_log_softmax_at_the_target():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(3.0), 0.0]])
    expected = torch.tensor([0.75, 0.75]).log()
    assert_close(token_logprobs(logits, torch.tensor([1, 0])), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_log_softmax(dtype):
    torch.manual_seed(0)
    logits = (3 * torch.randn(20, 50)).to(dtype).requires_grad_()
    targets, weight = torch.randint(50, (20,)), torch.randn(20)
    (token_logprobs(logits, targets) * weight).sum().backward()
    own, logits.grad = logits.grad, None
    (logits.double().log_softmax(-1)[torch.arange(20), targets] * weight).sum().backward()
    assert own.dtype == dtype
    rtol = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert_close(own.double(), logits.grad.double(), rtol=rtol, atol=1e-6)


def test_logprobs_of_bfloat16_logits_are_computed_in_float32():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 1000).bfloat16(), torch.arange(50)
    exact = logits.double().log_softmax(-1)[torch.arange(50), targets]
    own = token_logprobs(logits, targets)
    assert own.dtype == torch.float32
    assert_close(own.double(), exact, rtol=0, atol=1e-5)
    exact_entropy = -(logits.double().softmax(-1) * logits.double().log_softmax(-1)).sum(-1)
    assert token_entropy(logits).dtype == torch.float32
    assert_close(token_entropy(logits).double(), exact_entropy, rtol=0, atol=1e-5)


def test_entropy_of_a_uniform_choice_is_the_log_of_its_size():
    assert_close(token_entropy(torch.zeros(2, 4)), torch.full((2,), math.log(4.0)))


def test_forbidden_tokens_have_no_share_in_the_entropy():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    entropy = token_entropy(logits)
    assert_close(entropy.detach(), torch.tensor([math.log(2.0)]))
    entropy.sum().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
