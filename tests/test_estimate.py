"""The memory estimate by numbers that a pencil gives, and the real sizes of known models."""

from dataclasses import astuple, replace

import builders
import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MambaConfig, RwkvConfig
from transformers.models.gemma3n import Gemma3nTextConfig

from rlalign.doctor.estimate import Size, Work, count, estimate, micro_batch, total
from rlalign.settings.sections import LoraSection, ModelSection
from rlalign.sizes import Shape

# A token leaves 2 * (8 * 8 + 5 * 16) = 288 numbers for the way back, 2 * 4 in the cache.
TINY = Size(
    Shape(2, hidden=8, inner=16, vocabulary=10, key_values=4),
    weights=1000, embedding=80, adapters=50, linear=920, adapted=600,
)  # fmt: skip
WORK = Work(decoded=4, minibatch=2, prompt=3, response=5, budget=16, evaluated=6)
LORA, WHOLE = ModelSection(lora=LoraSection()), ModelSection()

GB = 10**9
LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=False,
)


def sizes(parts):
    return {part.name: part.bytes for part in parts}


def of_tiny(
    model=LORA, size=TINY, work=WORK, dtype=torch.float32, eval_dtype="train", device="cpu",
    engine="decode",
):  # fmt: skip
    return estimate(size, work, model, dtype, device, eval_dtype, engine)


def test_lora_holds_the_weights_once_and_moments_of_the_adapters():
    assert sizes(of_tiny().held) == {"weights": 4000, "LoRA adapters": 200, "AdamW's moments": 400}


def test_a_full_fine_tune_holds_a_frozen_copy_and_moments_of_every_weight():
    held = of_tiny(WHOLE, replace(TINY, adapters=0)).held
    assert sizes(held) == {"weights": 4000, "frozen reference": 4000, "AdamW's moments": 8000}


def test_an_update_keeps_a_micro_batch_and_one_chunk_of_logits():
    # 16 tokens of 288 numbers; 4 x 5 of the 4 x 8 tokens have logits, so 10 of a pass's 16 do.
    parts = sizes(of_tiny().phases["update"])
    assert parts == {"gradients": 200, "activations": 18432, "logits of a chunk": 2000}
    assert of_tiny().worst == "update" and of_tiny().peak == 4600 + 20632


def test_checkpointing_keeps_the_input_of_each_layer_and_all_of_one():
    model = ModelSection(lora=LoraSection(), gradient_checkpointing=True)
    assert sizes(of_tiny(model).phases["update"])["activations"] == 16 * 4 * (2 * 8 + 144)


def test_whole_weights_have_gradients_and_in_bfloat16_a_copy_for_products():
    parts = sizes(of_tiny(WHOLE, dtype=torch.bfloat16).phases["update"])
    assert parts["gradients"] == 4000 and parts["gradient of the head"] == 320
    assert parts["weights for products"] == 2000 and parts["activations"] == 9216


def test_a_layers_cache_is_there_twice_while_it_grows():
    parts = sizes(of_tiny().phases["generate"])
    # 4 rows of 8 tokens, 4 numbers in 2 layers and once more in one; 5 x (4, 10) logits.
    assert parts["key-value cache"] == 4 * 8 * 4 * 3 * 4 and parts["logits of a step"] == 800


def test_decoding_holds_merged_adapters_or_lower_weights_once_more():
    """Of a model of 1000 weights, 920 of them in linear layers, 600 with an adapter."""

    def copy(model, dtype=torch.float32):
        parts = sizes(of_tiny(model, dtype=dtype).phases["generate"])
        return parts.get("weights for decoding")

    assert copy(LORA) == 4 * 600
    assert copy(WHOLE, torch.bfloat16) == 2 * 920
    assert copy(WHOLE) is None and copy(LORA, torch.bfloat16) is None


def test_what_a_gpu_or_static_caches_keep_is_held():
    copies, cache = "weights for decoding", "key-value cache"
    for device, engine, stays in [
        ("cpu", "decode", set()),
        ("cpu", "static", {cache}),
        ("cuda", "decode", {copies}),
        ("cuda", "static", {copies, cache}),
    ]:
        found = of_tiny(device=device, engine=engine)
        assert sizes(found.held).keys() & {copies, cache} == stays
        assert sizes(found.phases["generate"]).keys() & {copies, cache} == {copies, cache} - stays


def test_vllm_decodes_elsewhere_and_is_given_merged_copies():
    assert sizes(of_tiny(engine="vllm").phases["generate"]) == {"copies for a push": 2400}
    assert sizes(of_tiny(WHOLE, engine="vllm").phases["generate"]) == {"copies for a push": 0}


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MambaConfig(hidden_size=8, num_hidden_layers=2, vocab_size=10), (2, 8, 16, 10, 0)),
        (RwkvConfig(hidden_size=8, num_hidden_layers=2, vocab_size=10), (2, 8, 32, 10, 0)),
        (Gemma3nTextConfig(hidden_size=8, num_hidden_layers=2, vocab_size=10, head_dim=4,
                           intermediate_size=[16, 24], num_key_value_heads=2,
                           layer_types=["full_attention"] * 2), (2, 8, 24, 10, 16)),
        (GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=10), (2, 8, 32, 10, 16)),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, tuple) else "",
)  # fmt: skip
def test_shapes_of_models_without_attention_or_with_uneven_layers(config, shape):
    assert astuple(Shape.of(config)) == shape


def test_an_evaluation_in_float32_copies_policy_and_reference():
    lora, whole = (of_tiny(model, eval_dtype="float32") for model in (LORA, WHOLE))
    assert sizes(lora.phases["evaluate"])["float32 copies"] == 4 * 1050
    assert sizes(whole.phases["evaluate"])["float32 copies"] == 4 * 2050
    assert "float32 copies" not in sizes(of_tiny().phases["evaluate"])
    assert of_tiny(work=replace(WORK, evaluated=0)).phases["evaluate"] == []


@pytest.mark.parametrize(("budget", "tokens"), [(16, 16), (15, 8), (1, 8), (10**6, 16)])
def test_a_micro_batch_is_whole_rows_at_least_one_at_most_the_minibatch(budget, tokens):
    assert micro_batch(replace(WORK, budget=budget)) == tokens


def test_sizes_are_those_of_the_built_model_and_its_adapters():
    lm = builders.gpt2()
    size = Size.of(lm.config, ModelSection(lora=LoraSection(r=4, target_modules=["c_fc"])))
    # gpt2's c_fc is (16, 64) in 2 layers: A (4, 16), B (64, 4).
    assert (size.weights, size.adapters) == (count(lm), 2 * 4 * (16 + 64))
    assert size.embedding == builders.VOCABULARY * 16
    assert (size.linear, size.adapted) == (size.embedding, 0)  # c_fc is no nn.Linear


def test_a_llama_of_8b_is_what_everyone_knows_of_it():
    size = Size.of(LLAMA_8B, LORA)
    assert size.weights == 8_030_261_248
    # r 16 on 4096 x 4096 twice, 4096 x 1024 twice, 4096 x 14336 three times, in 32 layers.
    assert size.adapters == 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    work = Work(64, 16, prompt=200, response=312, budget=2048, evaluated=0)
    lora = sizes(estimate(size, work, LORA, torch.bfloat16, "cuda", "train").held)
    assert lora["weights"] / GB == pytest.approx(16.06, abs=0.01)
    assert lora["AdamW's moments"] / GB == pytest.approx(0.34, abs=0.01)
    whole = estimate(replace(size, adapters=0), work, WHOLE, torch.bfloat16, "cuda", "train")
    # 20 bytes a weight: itself, the reference, two moments, and its gradient in the update.
    parts = sizes(whole.held)
    held = total(whole.held) - parts["CUDA context"] - parts["weights for decoding"]
    assert (held + sizes(whole.phases["update"])["gradients"]) / 8_030_261_248 == 20
    # The copy for decoding is of all but the input embedding.
    assert parts["weights for decoding"] == 2 * (8_030_261_248 - 128_256 * 4096 - 65 * 4096)
    # A token's cache: 2 x 8 heads x 128 x 32 layers x 2 bytes = 131 kB; a layer of 32 twice.
    cache = sizes(whole.phases["generate"])["key-value cache"]
    assert cache == 64 * 512 * 131_072 * 33 // 32
