"""Loading a model: what is refused, and what a loaded one is like."""

import builders
import oracle
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import GPTNeoConfig, GPTNeoForCausalLM

import rlalign.models as models
from rlalign.config import ConfigError
from rlalign.models import (
    build_policy,
    check_quantization,
    check_tokenizer,
    compute_dtype,
    load_lm,
    load_tokenizer,
    locate,
)
from rlalign.policy import tensors
from rlalign.settings.sections import LoraSection, ModelSection

CPU = torch.device("cpu")


@pytest.fixture
def saved(tmp_path) -> str:
    """A directory with a GPT-2 that has dropout in its configuration, and a tokenizer."""
    builders.gpt2(dropout=0.5).save_pretrained(tmp_path)
    oracle.tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


def test_directories_that_cannot_be_a_model_are_refused(tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(ConfigError, match=f"^model.name={tmp_path}/x: {message}"):
            locate(ModelSection(name=f"{tmp_path}/x"))

    refused("there is no such directory$")
    (tmp_path / "x").mkdir()
    refused("the directory has no config.json$")
    (tmp_path / "x" / "config.json").write_text("{}")
    refused(r"the directory has no weights \(\*.safetensors or \*.bin\); save the model with")
    (tmp_path / "x" / "model.safetensors").write_text("")
    assert locate(ModelSection(name=f"{tmp_path}/x")) == f"{tmp_path}/x"


def test_other_names_are_hub_ids():
    assert locate(ModelSection(name="org/model-1.5")) == "org/model-1.5"


def test_a_broken_configuration_or_tokenizer_is_a_configuration_error(saved, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(ConfigError, match="no tokenizer could be loaded"):
        load_tokenizer(ModelSection(name=saved))
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_lm(ModelSection(name=saved), CPU)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_lm(ModelSection(name=saved), CPU)


def test_cut_off_weights_are_a_configuration_error(saved, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=rf"^model\.name={saved} cannot be loaded: "):
        load_lm(ModelSection(name=saved), CPU)


@pytest.mark.parametrize("keeps", ["", "transformer.h.0"], ids=["none", "one layer"])
def test_weights_that_are_not_in_the_files_are_not_drawn_at_random(saved, tmp_path, keeps):
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if keeps and name.startswith(keeps)}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"cannot be loaded: its files lack the weights lm_head"):
        load_lm(ModelSection(name=saved), CPU)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"its files lack the weights .* and [0-9]+ more$"):
        load_lm(ModelSection(name=saved), CPU)


def test_an_unknown_attention_names_its_setting(saved):
    with pytest.raises(ConfigError, match=r"^model\.attention=fast: .*; sdpa and eager do"):
        load_lm(ModelSection(name=saved, attention="fast"), CPU)


def test_a_tokenizer_without_eos_is_refused(saved):
    tokenizer = oracle.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="its tokenizer has no EOS token, so no response could"):
        check_tokenizer(tokenizer, "x")
    assert load_tokenizer(ModelSection(name=saved)).eos_token_id == oracle.EOS


@pytest.mark.parametrize(
    "lora, device, message",
    [
        (None, "cuda", "quantised weights cannot learn; add model.lora"),
        (LoraSection(), "cpu", "needs a CUDA device; this process runs on cpu"),
        (LoraSection(), "cuda", "needs bitsandbytes: pip install bitsandbytes"),
    ],
)
def test_quantisation_says_what_it_lacks(lora, device, message, monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    section = ModelSection(quantization="4bit", lora=lora)
    with pytest.raises(ConfigError, match=rf"^model\.quantization=4bit:? {message}"):
        check_quantization(section, torch.device(device))


def test_a_model_is_not_loaded_quantised_on_a_cpu(saved):
    section = ModelSection(name=saved, quantization="8bit", lora=LoraSection())
    with pytest.raises(ConfigError, match=r"^model\.quantization=8bit needs a CUDA device"):
        load_lm(section, CPU)


@pytest.mark.parametrize("lora", [None, LoraSection(r=2)])
@torch.no_grad()
def test_a_loaded_models_dropout_is_off_in_train_mode_too(saved, lora):
    policy = build_policy(ModelSection(name=saved, dtype="float32", lora=lora), 1.0, CPU)
    sample = tensors(builders.rollout(["b c", "d"], prompts=["a", "c b d"]))
    evaluating, training = policy.eval()(*sample), policy.train()(*sample)
    assert_close(training, evaluating, rtol=0, atol=0)


def test_dropout_is_off_whatever_the_configuration_calls_it(tmp_path):
    config = GPTNeoConfig(
        vocab_size=6, hidden_size=16, num_layers=1, num_heads=2, attention_types=[[["global"], 1]],
        max_position_embeddings=32, resid_dropout=0.5, embed_dropout=0.5, attention_dropout=0.5,
    )  # fmt: skip
    GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    section = ModelSection(name=str(tmp_path), dtype="float32", attention="eager")
    policy = build_policy(section, 1.0, CPU)
    dropouts = [m for m in policy.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) > 2 and {m.p for m in dropouts} == {0.0}


def test_only_what_learns_is_in_float32(saved):
    full = load_lm(ModelSection(name=saved, dtype="bfloat16"), CPU)
    assert {p.dtype for p in full.parameters()} == {torch.float32}
    base = load_lm(ModelSection(name=saved, dtype="bfloat16", lora=LoraSection()), CPU)
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}


def test_the_asked_precision_is_the_one_computed_in(saved, monkeypatch):
    for dtype, expected in (("float32", None), ("bfloat16", torch.bfloat16)):
        policy = build_policy(ModelSection(name=saved, dtype=dtype), 1.0, CPU)
        assert policy.autocast_dtype == expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert compute_dtype(ModelSection(), CPU) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert compute_dtype(ModelSection(), CPU) == torch.float32


@torch.no_grad()
def test_fresh_adapters_change_nothing():
    sample = tensors(builders.rollout(["b c", "d"], prompts=["a", "c b d"]))
    section = ModelSection(dtype="float32", lora=LoraSection(r=2))
    policy = build_policy(section, 1.0, CPU, oracle.language_model())
    plain = build_policy(ModelSection(dtype="float32"), 1.0, CPU, oracle.language_model())
    assert_close(policy(*sample)["logprobs"], plain(*sample)["logprobs"], rtol=0, atol=1e-6)
    names = [name for name in policy.trainable() if "value_head" not in name]
    assert names and all("lora_" in name for name in names)


def test_adapters_on_modules_that_are_not_there_are_refused():
    section = ModelSection(lora=LoraSection(target_modules=["no_such"]))
    with pytest.raises(ConfigError, match=r"^model\.lora\.target_modules=\['no_such'\]: "):
        build_policy(section, 1.0, CPU, oracle.language_model())
