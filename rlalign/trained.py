"""A trained model, whoever trained it, in a session's policy; its reference stays as it is."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rewards import embedded
from rewards.classifiers import first_line
from rlalign.checkpoints.folder import CheckpointError, load_checkpoint
from rlalign.config import ConfigError, read_file
from rlalign.models import complete_lm, lora_config, merged_adapter, silence_dropout
from rlalign.policy import Policy
from rlalign.session import Session, longest_prompt
from rlalign.settings.sections import LoraSection, RunConfig
from rlalign.startup import say

Run = TypeVar("Run", bound=RunConfig)
BROKEN = (
    SafetensorError, UnpicklingError, OSError, KeyError, RuntimeError, ValueError, ImportError
)  # fmt: skip


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run, in place of a model or the run itself."""
    # An embedded model has a manifest, too.
    return (folder / "manifest.json").is_file() and not (folder / "config.json").is_file()


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
        for key, given in (("lora", model.lora), ("quantization", model.quantization)):
            if key in own and not is_same(own[key], given):
                shown = model.model_dump()[key]
                raise ConfigError(
                    f"{source} was trained under model.{key}={own[key]}, and here it is {shown}; "
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


def is_same(own: Any, given: Any) -> bool:
    """Whether two settings make the same adapters, however they are written."""
    if own is None or not isinstance(given, LoraSection):
        return bool(own == given)
    return bool(vars(lora_config(LoraSection(**own))) == vars(lora_config(given)))


def saved_model(file: Path) -> dict[str, Any]:
    """The section `model` of a run's configuration; nothing where it was not kept."""
    if not file.is_file():
        return {}
    own = read_file(file).get("model")
    if not isinstance(own, dict):
        raise ValueError(f"{file} holds no section model")
    return own


class Apart(Policy):
    """A policy whose reference is a model of its own, of whatever architecture."""

    def __init__(self, lm: nn.Module, origin: Policy) -> None:
        super().__init__(
            lm, temperature=origin.temperature, autocast=origin.autocast_dtype, reference="none"
        )
        self._origin: tuple[Policy, ...] = (origin,)  # in a tuple, so that it is no submodule

    @contextmanager
    def reference(self) -> Iterator[Policy]:
        with self._origin[0].reference() as reference:
            yield reference

    def in_float32(self) -> "Apart":
        origin, self._origin = self._origin, ()  # or it would be copied here, too
        try:
            clone = super().in_float32()
        finally:
            self._origin = origin
        assert isinstance(clone, Apart)
        clone._origin = (origin[0].in_float32(),)
        return clone


def load_trained(session: Session, source: str, trust: bool = False) -> None:
    """Make a checkpoint, an adapter or a whole model the session's policy.

    `source` is a folder, an embedded model's name or a hub id. A whole model may be of another
    architecture than the reference, which stays as it is, and its embeddings may have more rows.
    Code that lies in the folder runs only under `trust`, and that of the hub never does.
    Raises CheckpointError where a checkpoint's weights do not fit or nothing can be read,
    ConfigError where the model reads other tokens than the reference or `check_base` refuses it.
    """
    policy, name = session.policy, session.config.model.name
    folder = Path(source).expanduser()
    runs_code = trust and folder.is_dir()
    try:
        check_base(source, session.config)
        if is_checkpoint(folder):
            saved = load_checkpoint(folder).tensors["policy"]
            with torch.no_grad():
                for key, parameter in policy.trainable().items():
                    parameter.copy_(saved[key])
            return
        check_tokens(session.tokenizer, source, runs_code)
        with policy.reference() as reference:
            origin = reference.lm
            lm = whole_model(source, session.config, origin, runs_code)
        check_end(lm, session.tokenizer, source)
        check_length(lm, session, source)
        cut_to_the_same(lm, origin, len(session.tokenizer), source)
        silence_dropout(lm)
        policy.lm = origin  # one copy of the reference is enough
        session.policy = Apart(lm, policy).eval().to(session.ranks.device)
    except BROKEN as error:
        if isinstance(error, ConfigError | CheckpointError):
            raise
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{source} comes with Python code, which is not run; if you trust whoever made it, "
                "add --trust (for a folder; of a hub id make a local copy first)"
            ) from error
        raise CheckpointError(
            f"{source} holds no weights that fit model.name={name}: {first_line(error)}"
        ) from error


def whole_model(source: str, config: RunConfig, reference: nn.Module, runs_code: bool) -> Any:
    """The model that a folder, name or hub id stands for; an adapter is merged into a copy of the
    reference."""
    folder = Path(source).expanduser()
    if is_adapter(folder):
        return merged_adapter(copy.deepcopy(reference), folder)
    return complete_lm(
        where_of(source), dtype=torch.float32, trust_remote_code=runs_code,
        attn_implementation=config.model.attention,
    )  # fmt: skip


def where_of(source: str) -> str:
    """What transformers loads for a folder, an embedded model's name or a hub id."""
    return str(embedded.path(source)) if embedded.is_embedded(source) else source


def check_end(lm: Any, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse a model that ends its responses by another token than the reference's."""
    ends = lm.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends or []
    if ends and tokenizer.eos_token_id not in ends:
        raise ConfigError(
            f"{source} ends a response with token {ends[0]} and the reference with "
            f"{tokenizer.eos_token_id}: what it writes would never end here; set eos_token_id in "
            "its generation_config.json if both mean the same"
        )


def check_length(lm: Any, session: Session, source: str) -> None:
    """Refuse a model whose context is shorter than the prompts and responses."""
    most = longest_prompt(session.config, lm.config)
    longest = max(map(len, session.eval_prompts.ids))
    if most is not None and longest > most:
        raise ConfigError(
            f"{source} reads prompts of at most {most} tokens beside sampling.max_new_tokens="
            f"{session.config.sampling.max_new_tokens}, and the longest has {longest}; set "
            f"prompts.max_length={max(most, 1)}, or lower sampling.max_new_tokens"
        )


def cut_to_the_same(lm: Any, reference: Any, tokens: int, source: str) -> None:
    """Cut both models' embeddings to the rows that both have, where those hold every token.

    Rows beyond the tokenizer's are padding, or tokens added for training: a response that holds
    one has no likelihood under the other model.
    """
    rows = [each.get_output_embeddings().weight.shape[0] for each in (lm, reference)]
    if rows[0] == rows[1]:
        return
    if min(rows) < tokens:
        which = source if rows[0] < tokens else "the reference"
        raise ConfigError(
            f"{which} has {min(rows)} rows of embeddings for the reference's {tokens} tokens; name "
            "the model that it was trained from by --model.name"
        )
    say(
        f"warning: {source} has {rows[0]} rows of embeddings and the reference {rows[1]}: both are "
        f"cut to {min(rows)}, as if no token beyond were ever drawn"
    )
    for each in (lm, reference):
        each.resize_token_embeddings(min(rows))


def check_tokens(tokenizer: PreTrainedTokenizerBase, source: str, runs_code: bool) -> None:
    """Refuse a model whose own tokenizer, where it has one, reads text otherwise.

    It may have more tokens, as where one for padding was added.
    """
    folder = Path(source).expanduser()
    files = ("tokenizer.json", "tokenizer_config.json")
    if folder.is_dir() and not any((folder / name).is_file() for name in files):
        return
    own = AutoTokenizer.from_pretrained(where_of(source), trust_remote_code=runs_code)
    text = "The Queen said: “Off with her head!”, 3.14 naïve\n\ttimes."
    has_all = tokenizer.get_vocab().items() <= own.get_vocab().items()
    if not has_all or own(text).input_ids != tokenizer(text).input_ids:
        raise ConfigError(
            f"{source} has another tokenizer than model.name={tokenizer.name_or_path}: likelihoods "
            "of different tokens cannot be compared; name the model that it was trained from by "
            "--model.name"
        )
