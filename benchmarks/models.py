"""The models that are measured: embedded ones, and random Llamas of stated sizes."""

from typing import Any

from rewards import embedded

TOKENIZER = "smollm2-135m"  # of the random ones, too

# hidden size, layers, heads, key-value heads, size between: the last two are SmolLM2's own shapes.
SHAPES = {
    "llama-10m": (160, 6, 4, 2, 432),
    "llama-35m": (384, 8, 6, 2, 1024),
    "llama-135m": (576, 30, 9, 3, 1536),
    "llama-360m": (960, 32, 15, 5, 2560),
}


def source(name: str) -> str:
    """The directory of an embedded model, or of the tokenizer that stands in for a random one's."""
    return str(embedded.path(TOKENIZER if name in SHAPES else name))


def config_of(name: str) -> Any:
    """The transformers configuration of a model by name."""
    from transformers import AutoConfig, LlamaConfig

    if name not in SHAPES:
        return AutoConfig.from_pretrained(source(name))
    hidden, layers, heads, kv_heads, between = SHAPES[name]
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=between,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def load(name: str, dtype: Any) -> Any:
    """The model: pretrained, or random with the same weights every time."""
    import torch
    from transformers import AutoModelForCausalLM

    if name not in SHAPES:
        return AutoModelForCausalLM.from_pretrained(source(name), dtype=dtype)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(name)).to(dtype)
