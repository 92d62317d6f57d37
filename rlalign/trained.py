"""A trained model, whoever trained it, in a session's policy; its reference stays as it is."""

import copy
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from rewards import embedded
from rlalign.checkpoint import CheckpointError, load_checkpoint
from rlalign.config import ConfigError
from rlalign.models import first_line
from rlalign.sections import RunConfig
from rlalign.session import Session
from rlalign.startup import say

Run = TypeVar("Run", bound=RunConfig)
BROKEN = (
    SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError, ImportError,
    yaml.YAMLError,
)  # fmt: skip


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run, in place of a model or the run itself."""
    return (folder / "manifest.json").is_file()


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def settings_for(source: str, config: Run) -> Run:
    """The configuration for a session that `load_trained` can put the model into."""
    if is_checkpoint(Path(source)):
        return config  # it holds what the configuration says
    # An adapter is merged into the weights, so one of any kind will do.
    model = {**config.model.model_dump(), "lora": None, "quantization": "none"}
    return type(config).model_validate({**config.model_dump(), "model": model})


def check_base(source: str, config: RunConfig) -> None:
    """Say so where what was trained names another base than the reference.

    A warning, because one model has many names. ConfigError where a checkpoint's weights were
    trained under other adapters than the configuration's: they may fit, and mean something else.
    """
    folder, model = Path(source).expanduser(), config.model
    base = model.name
    if is_checkpoint(folder):
        own = saved_model(folder.absolute().parents[1] / "config.yaml")
        base = str(own.get("name", base))
        for key in ("lora", "quantization"):
            given = model.model_dump()[key]
            if key in own and own[key] != given:
                raise ConfigError(
                    f"{source} was trained under model.{key}={own[key]}, and here it is {given}; "
                    "give the same, or leave --config out"
                )
    elif is_adapter(folder):
        text = (folder / "adapter_config.json").read_text(encoding="utf-8")
        base = json.loads(text).get("base_model_name_or_path") or base
    where = embedded.path(model.name) if embedded.is_embedded(model.name) else Path(model.name)
    if Path(base).name not in (where.name, Path(model.name).name):
        say(
            f"warning: {source} was trained from {base}, and is measured on model.name="
            f"{model.name}; that is right only where the two are the same weights"
        )


def saved_model(file: Path) -> dict[str, Any]:
    """The section `model` of a run's configuration; nothing where it was not kept."""
    if not file.is_file():
        return {}
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
    return found


@torch.no_grad()
def load_trained(session: Session, source: str) -> None:
    """Put a checkpoint, an adapter or a whole model into the session's policy, in float32.

    `source` is a folder, an embedded model's name or a hub id. Raises CheckpointError where the
    weights do not fit, ConfigError where the model reads other tokens than the reference or
    `check_base` refuses it.
    """
    policy, name = session.policy, session.config.model.name
    folder = Path(source).expanduser()
    try:
        check_base(source, session.config)
        if is_checkpoint(folder):
            saved = load_checkpoint(folder).tensors["policy"]
            for key, parameter in policy.trainable().items():
                parameter.copy_(saved[key])
            return
        check_tokens(session.tokenizer, source)
        fill(policy.lm, whole_model(source, policy.lm).state_dict(), source, name)
        if (head := folder / "value_head.safetensors").is_file():
            policy.value_head.load_state_dict(load_file(head))
    except BROKEN as error:
        if isinstance(error, ConfigError | CheckpointError):
            raise
        raise CheckpointError(
            f"{source} holds no weights that fit model.name={name}: {first_line(error)}"
        ) from error


def whole_model(source: str, reference: nn.Module) -> nn.Module:
    """The model that a folder, name or hub id stands for; an adapter is merged into a copy of the
    reference."""
    folder = Path(source).expanduser()
    if is_adapter(folder):
        adapted: Any = PeftModel.from_pretrained(copy.deepcopy(reference), folder)
        merged: nn.Module = adapted.merge_and_unload()
        return merged
    where = str(embedded.path(source)) if embedded.is_embedded(source) else source
    model: nn.Module = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    return model


def fill(lm: nn.Module, weights: dict[str, Any], source: str, name: str) -> None:
    """Copy weights; CheckpointError names the first that is missing or of another shape."""
    own = lm.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        if key not in own or key not in weights:
            raise CheckpointError(
                f"{source} and model.name={name} are different models ({key} is in only one of "
                "the two); name the model that it was trained from by --model.name"
            )
        if own[key].shape != weights[key].shape:
            raise CheckpointError(
                f"{source}: {key} has shape {tuple(weights[key].shape)}, that of model.name={name} "
                f"is {tuple(own[key].shape)}; name the model that it was trained from by "
                "--model.name"
            )
    lm.load_state_dict(weights)


def check_tokens(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse a model whose own tokenizer, where it has one, reads text otherwise."""
    folder = Path(source).expanduser()
    files = ("tokenizer.json", "tokenizer_config.json")
    if folder.is_dir() and not any((folder / name).is_file() for name in files):
        return
    where = str(embedded.path(source)) if embedded.is_embedded(source) else source
    own = AutoTokenizer.from_pretrained(where)
    text = "The Queen said: “Off with her head!”, 3.14 naïve\n\ttimes."
    if own.get_vocab() != tokenizer.get_vocab() or own(text).input_ids != tokenizer(text).input_ids:
        raise ConfigError(
            f"{source} has another tokenizer than model.name={tokenizer.name_or_path}: likelihoods "
            "of different tokens cannot be compared; name the model that it was trained from by "
            "--model.name"
        )
