"""A packed pass is the padded one without the padding, and a model that cannot is found out."""

from functools import partial

import builders
import oracle
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    MistralConfig,
    MistralForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
)

from rlalign import packing
from rlalign.packing import Layout
from rlalign.policy import Policy, tensors

CPU = torch.device("cpu")


def mistral(window: int = 4):
    """Attention over the last few tokens, which sequences here are longer than."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=6,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=oracle.EOS,
        pad_token_id=oracle.EOS,
    )
    return MistralForCausalLM(config).eval()


llama = partial(oracle.language_model, attention="sdpa")
MODELS = {"llama": llama, "gpt2": builders.gpt2, "sliding window": mistral}


def uneven():
    responses = ["b c e d a b", "d", "", "a a a a"]
    return builders.rollout(responses, prompts=["a", "c b d", "b", "a a"])


def read(policy, rollout):
    """Outputs and gradients of one pass."""
    policy.zero_grad()
    out = policy(*tensors(rollout))
    sum(x.pow(2).sum() for x in out.values()).backward()
    gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return {n: x.detach() for n, x in out.items()}, gradients


def assert_same(found, wanted):
    assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        scale = gradient.abs().amax()  # beside it a sum that cancels out is nothing but rounding
        assert_close(found[1][name] / scale, gradient / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_packing_changes_neither_outputs_nor_gradients(name):
    policy = Policy(MODELS[name](), temperature=0.7, reference="none")
    assert policy.packs
    packed = read(policy, uneven())
    policy.packs = False
    assert_same(packed, read(policy, uneven()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packing_under_adapters_and_activation_checkpoints(checkpointing):
    policy = builders.adapted_policy(lm=llama(), std=1.0, gradient_checkpointing=checkpointing)
    assert policy.packs
    packed = read(policy, uneven())
    policy.packs = False
    assert_same(packed, read(policy, uneven()))


def test_no_padding_reaches_the_layers():
    policy = Policy(llama(), reference="none")
    seen = []
    policy.lm.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    rollout = uneven()
    policy(*tensors(rollout))
    assert seen == [(1, int(rollout.lengths.sum()), 32)]


def test_a_model_that_mixes_tokens_is_read_padded():
    """Running means stand for recurrent layers: a packed row would carry one text into the next."""
    lm = llama()
    steps = torch.arange(1, 100).view(-1, 1)
    lm.model.layers[0].mlp.register_forward_hook(
        lambda _, __, out: out.cumsum(1) / steps[: out.shape[1]]
    )
    policy = Policy(lm, reference="none")
    assert not policy.packs
    assert lm.config._attn_implementation == "sdpa"


def test_a_window_that_only_a_mask_would_hold_is_found_out():
    """Phimoe does not tell attention of its window, and no text of the trial is longer than it."""
    torch.manual_seed(0)
    config = PhimoeConfig(
        vocab_size=6, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=2, sliding_window=32,
        bos_token_id=None, eos_token_id=oracle.EOS, pad_token_id=oracle.EOS,
    )  # fmt: skip
    assert not Policy(PhimoeForCausalLM(config).eval(), reference="none").packs
    config.sliding_window = None
    assert Policy(PhimoeForCausalLM(config).eval(), reference="none").packs


@pytest.mark.parametrize("error", [TypeError, AttributeError, AssertionError, IndexError])
def test_a_model_that_fails_on_a_packed_row_is_read_padded(error):
    lm = llama()

    def fails(module, args, settings):
        if settings.get("packed") is not None:
            raise error("unknown")

    lm.model.layers[0].register_forward_pre_hook(fails, with_kwargs=True)
    assert not Policy(lm, reference="none").packs


@pytest.mark.parametrize("make_lm", [oracle.language_model, builders.gemma2])
def test_eager_attention_is_left_as_it_is(make_lm):
    lm = make_lm()
    assert not Policy(lm, reference="none").packs
    assert lm.config._attn_implementation == "eager"


def test_a_layout_moves_sequences_apart_and_back():
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.bool)
    layout = Layout.of(mask)
    assert (layout.sequences, layout.longest) == (3, 3)
    assert layout.places.tolist() == [0, 1, 3, 4, 5, 6]
    row = torch.arange(1.0, 7).view(1, 1, 6, 1)  # one head, one number a token
    apart = layout.apart(row)
    assert apart[:, 0, :, 0].tolist() == [[1, 2, 0], [3, 4, 5], [6, 0, 0]]
    together = layout.together(apart.transpose(1, 2))
    assert together.flatten().tolist() == [1, 2, 3, 4, 5, 6]


def test_a_second_policy_packs_the_same_model():
    lm = llama()
    assert Policy(lm, reference="none").packs
    assert Policy(lm, reference="none").packs


def test_the_attention_leaves_no_trace_in_a_saved_model(tmp_path):
    policy = Policy(llama(), reference="none")
    assert policy.lm.config._attn_implementation == packing.NAME
    policy.lm.save_pretrained(tmp_path)
    assert packing.NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert AutoConfig.from_pretrained(tmp_path)._attn_implementation != packing.NAME
