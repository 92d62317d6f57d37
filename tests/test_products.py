"""The faster products give the numbers of the stock ones."""

from contextlib import nullcontext

import builders
import oracle
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.testing import assert_close

from rlalign import products
from rlalign.policy import Policy, logprobs_only, tensors
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
    of_peft = []
    monkeypatch.setattr(LoraLinear, "forward", lambda *_: of_peft.append(1) or torch.zeros(3, 5))
    assert bool(model(torch.randn(3, 6)).any()) and not of_peft


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


def tied_llama():
    """A Llama whose head is its embedding."""
    lm = oracle.language_model()
    lm.config.tie_word_embeddings = True
    lm.tie_weights()
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    return lm


def taken_apart(policy, monkeypatch):
    """Decode by the weights that learn: no copy is made."""
    monkeypatch.setattr(FastLoraLinear, "can_merge", lambda self: False)
    monkeypatch.setattr(DecodeWeights, "__call__", lambda *_, **__: nullcontext())


@pytest.mark.parametrize("make_lm", [oracle.language_model, tied_llama])
def test_low_weights_decode_what_autocast_would_and_leave_no_trace(make_lm, monkeypatch):
    lm = make_lm()
    policy = Policy(lm, autocast=torch.bfloat16, reference="none")
    before = {name: (p, p.data_ptr(), p.clone()) for name, p in lm.named_parameters()}
    prompts = builders.prompt_batch(oracle.PROMPTS * 10)
    engine = builders.engine(policy)
    low = engine.generate(prompts, 1, builders.seeded())
    with policy.decoding():
        linear = [m for m in lm.modules() if isinstance(m, nn.Linear)]
        assert len(linear) == 7 * 2 + 1  # of each layer, and the head
        assert {m.weight.dtype for m in linear} == {torch.bfloat16}
        assert lm.model.embed_tokens.weight.dtype == torch.float32
    for name, p in lm.named_parameters():
        assert (p is before[name][0], p.data_ptr(), p.dtype) == (
            True, before[name][1], torch.float32,
        )  # fmt: skip
        assert torch.equal(p, before[name][2])
    taken_apart(policy, monkeypatch)
    plain = engine.generate(prompts, 1, builders.seeded())
    assert low.response_ids.tolist() == plain.response_ids.tolist()
    assert torch.equal(low.logprobs, plain.logprobs)


def test_low_weights_follow_the_masters_and_come_back_after_an_error():
    lm = oracle.language_model()
    low, master = DecodeWeights(), lm.lm_head.weight
    with torch.no_grad():
        master.fill_(3.0)
    with pytest.raises(RuntimeError, match="inside"), low(lm, torch.bfloat16):
        assert bool((lm.lm_head.weight == 3.0).all()) and lm.lm_head.weight is not master
        raise RuntimeError("inside")
    assert lm.lm_head.weight is master


def test_a_model_of_other_layers_decodes_by_its_own_weights():
    lm = builders.gpt2()  # its layers are no nn.Linear; its head is its embedding
    embedding = lm.transformer.wte.weight
    with DecodeWeights()(lm, torch.bfloat16):
        assert lm.transformer.wte.weight is embedding
        assert lm.lm_head.weight.dtype == torch.bfloat16


def test_adapters_are_merged_into_copies_while_decoding(monkeypatch):
    policy = builders.adapted_policy()
    base = {n: (p, p.data_ptr(), p.clone()) for n, p in policy.named_parameters()}
    prompts = builders.prompt_batch(oracle.PROMPTS * 10)
    merged = builders.engine(policy).generate(prompts, 1, builders.seeded())
    layer = policy.lm.base_model.model.model.layers[0].mlp.up_proj
    before = layer.base_layer.weight
    with policy.decoding():
        a, b, scale = layer.adapter()
        assert_close(layer.base_layer.weight, before + scale * b @ a)
        assert layer.is_merged_copy
    assert not layer.is_merged_copy
    for name, p in policy.named_parameters():
        assert p is base[name][0] and p.data_ptr() == base[name][1]
        assert torch.equal(p, base[name][2])
    taken_apart(policy, monkeypatch)
    plain = builders.engine(policy).generate(prompts, 1, builders.seeded())
    assert merged.response_ids.tolist() == plain.response_ids.tolist()
    assert_close(merged.logprobs, plain.logprobs, rtol=1e-4, atol=1e-5)


def gap(policy, rollout):
    """How far a rollout's log-probabilities are from those of a pass over its tokens."""
    with torch.no_grad():
        again = policy(*tensors(rollout), logprobs_only)["logprobs"]
    return float((again - rollout.logprobs).abs().amax())


def test_an_adapter_on_a_tied_head_leaves_the_embedding_alone():
    policy = builders.adapted_policy(lm=tied_llama(), std=0.5, target_modules=["q_proj", "lm_head"])
    prompts = builders.prompt_batch(oracle.PROMPTS * 10)
    assert gap(policy, builders.engine(policy).generate(prompts, 1, builders.seeded())) < 1e-4


@pytest.mark.parametrize("reference_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("whole", [True, False])
def test_policy_and_reference_decode_by_their_own_weights(whole, dtype, reference_first):
    if whole:
        autocast = None if dtype == torch.float32 else dtype
        policy = Policy(oracle.language_model(), autocast=autocast, reference="copy")
        with torch.no_grad():
            policy.lm.lm_head.weight.mul_(-1.0)
    else:
        policy = builders.adapted_policy(dtype)
    prompts = builders.prompt_batch(oracle.PROMPTS * 10)
    # Rows of a bfloat16 product round by its shape; other weights are off by whole nats.
    bound = 1e-4 if dtype == torch.float32 else 0.1
    for is_reference in (reference_first, not reference_first):
        with policy.reference() if is_reference else nullcontext(policy) as reading:
            assert reading.reads_reference == is_reference
            rollout = builders.engine(reading).generate(prompts, 1, builders.seeded())
            assert gap(reading, rollout) < bound
        with nullcontext(policy) if is_reference else policy.reference() as other:
            assert gap(other, rollout) > 3 * bound


def test_decoding_inside_decoding_merges_once():
    policy = builders.adapted_policy()
    layer = policy.lm.base_model.model.model.layers[0].mlp.up_proj
    with policy.decoding():
        once = layer.base_layer.weight
        with policy.decoding():
            assert layer.base_layer.weight is once and layer.is_merged_copy
        assert layer.is_merged_copy
    assert not layer.is_merged_copy


def test_a_bfloat16_base_is_never_merged():
    policy = builders.adapted_policy(torch.bfloat16)
    layer = policy.lm.base_model.model.model.layers[0].mlp.up_proj
    base = layer.base_layer.weight
    with policy.decoding():
        assert layer.base_layer.weight is base and not layer.is_merged_copy


def test_copies_are_no_part_of_a_copied_policy():
    policy = builders.adapted_policy()
    layer = policy.lm.base_model.model.model.layers[0].mlp.up_proj.base_layer
    policy._decode_weights._kept[layer, torch.float32] = layer.weight
    clone = policy.in_float32()
    assert clone._decode_weights is not policy._decode_weights and not clone._decode_weights._kept


@pytest.mark.parametrize("kind", ["adapted", "thin"])
def test_no_rows_are_no_rows(kind):
    layer = adapted() if kind == "adapted" else ThinLinear(6, 5)
    if kind == "adapted":
        speed_up_lora(layer)
    x = torch.zeros(0, 2, 6, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert out.shape == (0, 2, 5) and x.grad.shape == x.shape


def test_decoding_is_thin_and_draws_the_same(monkeypatch):
    """The oracle's rows stay within THIN, so every decode step takes the other order."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    policy = Policy(oracle.language_model(), reference="none")
    prompts = builders.prompt_batch(oracle.PROMPTS * 10)
    thin = builders.engine(policy).generate(prompts, 1, builders.seeded())
    monkeypatch.setattr(products, "THIN", range(0))
    plain = builders.engine(policy).generate(prompts, 1, builders.seeded())
    assert thin.texts == plain.texts
    assert_close(thin.logprobs, plain.logprobs, rtol=1e-4, atol=1e-5)
