"""Loading a causal LM and its tokenizer: by embedded name, hub id or directory."""

import difflib
import importlib.util
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
)
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from rewards import classifiers, embedded
from rewards.classifiers import first_line
from rlalign import trl_bridge
from rlalign.config import ConfigError
from rlalign.nearby import folder_hint
from rlalign.policy import Policy
from rlalign.products import speed_up_lora
from rlalign.settings.sections import LoraSection, ModelSection

WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")
# Dropout would make the ratio differ from 1 before any update; each family names its own.
DROPOUTS = (
    "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout", "dropout",
)  # fmt: skip


def compute_dtype(model: ModelSection, device: torch.device) -> torch.dtype:
    """What `model.dtype` means on this device: auto is bfloat16 where there is hardware for it."""
    if model.dtype == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return torch.bfloat16 if model.dtype == "bfloat16" else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 run in hardware; emulated ones are slower than float32."""
    return classifiers.pays_bfloat16(str(device))


def locate(model: ModelSection) -> str:
    """The directory or hub id behind `model.name`; raises ConfigError on a hopeless directory."""
    if embedded.is_embedded(model.name):
        return str(embedded.path(model.name))
    path = Path(model.name).expanduser()
    looks_local = model.name.startswith((".", "/", "~")) or path.exists()
    if not looks_local:
        meant = difflib.get_close_matches(model.name, embedded.names(), n=1, cutoff=0.75)
        if meant:
            raise ConfigError(
                f"model.name={model.name!r} is no embedded model; did you mean {meant[0]!r}?"
            )
        return model.name
    if not path.is_dir():
        raise ConfigError(f"model.name={model.name}: there is no such directory{folder_hint(path)}")
    if not (path / "config.json").is_file():
        raise ConfigError(f"model.name={model.name}: the directory has no config.json")
    if not any(any(path.glob(pattern)) for pattern in WEIGHTS):
        raise ConfigError(
            f"model.name={model.name}: the directory has no weights (*.safetensors or *.bin); "
            "save the model with save_pretrained"
        )
    return str(path)


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The model's tokenizer; raises ConfigError where it has no EOS token."""
    source = locate(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"model.name={model.name}: no tokenizer could be loaded ({first_line(error)}); save "
            "one beside the model with tokenizer.save_pretrained"
        ) from error
    return check_tokenizer(tokenizer, model.name)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model.name={name}: its tokenizer has no EOS token, so no response could end"
        )
    return tokenizer


def load_lm(model: ModelSection, device: torch.device) -> nn.Module:
    """The causal LM without adapters, dropout off; raises ConfigError where it cannot be loaded."""
    source, dtype = locate(model), compute_dtype(model, device)
    check_quantization(model, device)
    options: dict[str, Any] = {
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
    }
    try:
        config = AutoConfig.from_pretrained(source, **options)
        for field in DROPOUTS:
            if hasattr(config, field):
                setattr(config, field, 0.0)
        if model.quantization != "none":
            options["quantization_config"] = trl_bridge.quantization_config(
                model.quantization, str(dtype).removeprefix("torch.")
            )
        options["dtype"] = dtype if model.lora is not None else torch.float32
        return complete_lm(source, config=config, attn_implementation=model.attention, **options)
    except (OSError, ValueError, ImportError, SafetensorError, pickle.UnpicklingError) as error:
        if "attn_implementation" in str(error):
            raise ConfigError(
                f"model.attention={model.attention}: {first_line(error)}; sdpa and eager do for "
                "every model"
            ) from error
        raise ConfigError(
            f"model.name={model.name} cannot be loaded: {first_line(error)}"
        ) from error


def complete_lm(source: str, **options: Any) -> nn.Module:
    """The causal LM of a folder or hub id; ValueError where its files lack some of its weights.

    transformers only warns, and draws what is missing at random.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    lm: nn.Module = loaded[0]
    if missing := loaded[1]["missing_keys"]:
        raise ValueError(lacking(missing))
    return lm


def merged_adapter(base: nn.Module, folder: Path) -> Any:
    """The model with a folder's adapter merged into its weights, in place."""
    return adapted_lm(base, folder).merge_and_unload()


def adapted_lm(base: nn.Module, folder: Path) -> Any:
    """The model under a folder's adapter.

    ValueError where the files lack some of the adapter's weights: peft only warns.
    """
    adapted: Any = PeftModel.from_pretrained(base, str(folder))
    saved = load_peft_weights(str(folder), device="cpu")
    if missing := get_peft_model_state_dict(adapted).keys() - saved.keys():
        raise ValueError(lacking(missing))
    return adapted


def lacking(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"its files lack the weights {', '.join(names[:3])}{more}"


def check_quantization(model: ModelSection, device: torch.device) -> None:
    setting = f"model.quantization={model.quantization}"
    if model.quantization == "none":
        return
    if model.lora is None:
        raise ConfigError(f"{setting}: quantised weights cannot learn; add model.lora")
    if device.type != "cuda":
        raise ConfigError(f"{setting} needs a CUDA device; this process runs on {device.type}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"{setting} needs bitsandbytes: pip install bitsandbytes")


def lora_config(lora: LoraSection) -> LoraConfig:
    """peft's settings of the adapters."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha or 2 * lora.r,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=lora.target_modules,
        task_type=TaskType.CAUSAL_LM,
    )


def add_lora(lm: nn.Module, lora: LoraSection) -> nn.Module:
    """The LM, frozen, with fresh adapters, which change nothing until they are trained."""
    try:
        adapted = get_peft_model(lm, lora_config(lora))
    except ValueError as error:
        raise ConfigError(
            f"model.lora.target_modules={lora.target_modules}: {first_line(error)}"
        ) from error
    speed_up_lora(adapted)
    return adapted


def build_policy(
    model: ModelSection, temperature: float, device: torch.device, lm: nn.Module | None = None
) -> Policy:
    """The policy that a model section describes; `lm` stands in for the named model."""
    lm = load_lm(model, device) if lm is None else lm
    silence_dropout(lm)
    # Weights that learn stay in float32: a step of 1e-6 vanishes in bfloat16.
    lm = lm.float() if model.lora is None else add_lora(lm, model.lora)
    if model.gradient_checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        lm.enable_input_require_grads()  # type: ignore[operator]
    dtype = compute_dtype(model, device)
    policy = Policy(
        lm,
        temperature=temperature,
        autocast=None if dtype == torch.float32 else dtype,
        reference="copy" if model.lora is None else "adapter",
    )
    # transformers checkpoints activations in train mode alone; with no dropout the modes agree.
    policy.train(model.gradient_checkpointing)
    policy.place_reference(device)
    return policy.to(device)


def silence_dropout(lm: nn.Module) -> None:
    """Set every dropout of a model to 0, whatever its configuration called it."""
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for field in DROPOUTS:
            if isinstance(vars(module).get(field), float):
                setattr(module, field, 0.0)
