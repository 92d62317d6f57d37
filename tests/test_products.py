"""The faster products give the numbers of the stock ones."""

import builders
import oracle
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.testing import assert_close

from rlalign import products
from rlalign.products import (
    DecodeWeights,
    FastLoraLinear,
    ThinLinear,
    speed_up_lora,
    thin_linear,
    thin_products,
)


def adapted(**settings):
    """An adapted layer of 6 numbers to 5, whose adapters are not zero."""
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Linear(6, 5))
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["0"], **settings)
    model = get_peft_model(inside, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return model


def layer_of(model):
    return model.base_model.model[0]


def read(model, x, dtype=None):
    """Output and gradients, those of the input included."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        out = model(x)
    out.float().pow(2).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return out.detach(), gradients | {"x": x.grad}


@pytest.mark.parametrize("shape", [(3, 6), (2, 4, 6)])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_fast_layer_is_pefts(shape, dtype):
    model, x = adapted(), torch.randn(shape)
    stock, stock_gradients = read(model, x, dtype)
    speed_up_lora(model)
    assert type(layer_of(model)) is FastLoraLinear
    fast, gradients = read(model, x, dtype)
    assert fast.dtype == stock.dtype and gradients.keys() == stock_gradients.keys()
    assert {n: g.dtype for n, g in gradients.items()} == {
        n: g.dtype for n, g in stock_gradients.items()
    }
    # In bfloat16 the two round in another order: to a part in a hundred of the largest number.
    bound = 1e-6 if dtype is None else 2e-2
    for found, wanted in [(fast, stock), *((gradients[n], stock_gradients[n]) for n in gradients)]:
        scale = wanted.float().abs().amax()
        assert_close(found.float() / scale, wanted.float() / scale, rtol=0, atol=bound)


def test_an_input_without_gradient_gets_none_and_the_adapters_theirs():
    model, x = adapted(), torch.randn(3, 6)
    speed_up_lora(model)
    model(x).sum().backward()
    assert layer_of(model).lora_A["default"].weight.grad is not None
    assert layer_of(model).base_layer.weight.grad is None


def test_the_fast_product_is_taken(monkeypatch):
    """Guards the tests above: they would pass if every call went to peft."""
    model = adapted()
    speed_up_lora(model)
    monkeypatch.setattr(LoraLinear, "forward", lambda *_: pytest.fail("peft's own product"))
    model(torch.randn(3, 6))


def test_adapters_off_or_merged_are_left_to_peft():
    model, x = adapted(), torch.randn(3, 6)
    base = layer_of(model).base_layer
    speed_up_lora(model)
    with_adapters = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), base(x))
    model.merge_adapter()
    assert_close(model(x), with_adapters)


@pytest.mark.parametrize(
    "settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}], ids=str
)
def test_other_kinds_of_adapters_stay_correct(settings):
    model, x = adapted(**settings).eval(), torch.randn(3, 6)
    before = model(x)
    speed_up_lora(model)
    assert_close(model(x), before)


def test_a_base_that_learns_is_left_to_peft():
    model = adapted()
    layer_of(model).base_layer.requires_grad_(True)
    speed_up_lora(model)
    assert type(layer_of(model)) is LoraLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 8, 9, 32, 128, 129])
def test_a_thin_product_is_the_linear_one(rows, bias, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 40, bias=bias), torch.randn(rows, 48)
    assert_close(thin_linear(x, layer.weight, layer.bias), layer(x), rtol=1e-5, atol=1e-6)


def test_layers_are_thin_inside_and_themselves_again_after_an_error():
    lm = oracle.language_model()
    layers = [m for m in lm.modules() if type(m) is nn.Linear]
    with pytest.raises(RuntimeError, match="inside"), thin_products(lm):
        assert {type(m) for m in layers} == {ThinLinear}
        raise RuntimeError("inside")
    assert {type(m) for m in layers} == {nn.Linear}


def test_low_weights_decode_what_autocast_would_and_leave_no_trace():
    lm = oracle.language_model()
    policy = builders.Policy(lm, autocast=torch.bfloat16, reference="none")
    before = {name: (p.data_ptr(), p.clone()) for name, p in lm.named_parameters()}
    prompts = builders.prompt_batch(oracle.PROMPTS * 10)
    engine = builders.engine(policy)
    low = engine.generate(prompts, 1, builders.seeded())
    held = {id(w) for w in policy._decode_weights.lowering}
    assert len(held) == 7 * 2 + 1  # of each layer, and the head, which is not tied here
    with policy.decoding():
        assert lm.lm_head.weight.dtype == torch.bfloat16
        assert lm.model.embed_tokens.weight.dtype == torch.float32
        assert id(lm.lm_head.weight) in held
    for name, p in lm.named_parameters():
        assert (p.data_ptr(), p.dtype) == (before[name][0], torch.float32)
        assert torch.equal(p, before[name][1])
    policy._decode_weights.lowering.clear()
    plain = engine.generate(prompts, 1, builders.seeded())
    assert low.response_ids.tolist() == plain.response_ids.tolist()
    assert torch.equal(low.logprobs, plain.logprobs)


def test_low_weights_follow_the_masters_and_come_back_after_an_error():
    lm = builders.gpt2()
    tied = DecodeWeights(lm, torch.bfloat16)
    assert tied.lowering == []  # GPT-2's layers are no nn.Linear, and its head is its embedding
    lm = oracle.language_model()
    low = DecodeWeights(lm, torch.bfloat16)
    with torch.no_grad():
        lm.lm_head.weight.fill_(3.0)
    with pytest.raises(RuntimeError, match="inside"), low():
        assert bool((lm.lm_head.weight == 3.0).all())
        raise RuntimeError("inside")
    assert lm.lm_head.weight.dtype == torch.float32


def test_adapters_are_merged_into_copies_while_decoding():
    policy = builders.adapted_policy()
    base = {n: (p.data_ptr(), p.clone()) for n, p in policy.named_parameters()}
    prompts = builders.prompt_batch(oracle.PROMPTS * 10)
    merged = builders.engine(policy).generate(prompts, 1, builders.seeded())
    layer = policy.lm.base_model.model.model.layers[0].mlp.up_proj
    with policy.decoding():
        a, b, scale = layer.adapter()
        assert_close(layer.base_layer.weight, base_of(layer, base) + scale * b @ a)
        assert layer.is_merged_copy
    assert not layer.is_merged_copy
    for name, p in policy.named_parameters():
        assert p.data_ptr() == base[name][0] and torch.equal(p, base[name][1])
    policy._decode_weights.merging.clear()
    plain = builders.engine(policy).generate(prompts, 1, builders.seeded())
    assert merged.response_ids.tolist() == plain.response_ids.tolist()
    assert_close(merged.logprobs, plain.logprobs, rtol=1e-4, atol=1e-5)


def base_of(layer, kept):
    return next(
        x for n, (_, x) in kept.items() if n.endswith("layers.0.mlp.up_proj.base_layer.weight")
    )


def test_a_bfloat16_base_is_never_merged():
    policy = builders.adapted_policy(torch.bfloat16)
    with policy.decoding():
        assert policy._decode_weights.merging == []


def test_decoding_is_thin_and_draws_the_same(monkeypatch):
    """The oracle's rows stay within THIN, so every decode step takes the other order."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    policy = builders.Policy(oracle.language_model(), reference="none")
    prompts = builders.prompt_batch(oracle.PROMPTS * 10)
    thin = builders.engine(policy).generate(prompts, 1, builders.seeded())
    monkeypatch.setattr(products, "THIN", range(0))
    plain = builders.engine(policy).generate(prompts, 1, builders.seeded())
    assert thin.texts == plain.texts
    assert_close(thin.logprobs, plain.logprobs, rtol=1e-4, atol=1e-5)
