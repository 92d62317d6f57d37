"""A reward model from preference pairs, through TRL's RewardTrainer: `launch/reward_model.py`."""

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from peft import LoraConfig, TaskType
from pydantic import Field
from safetensors import SafetensorError
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)

from rewards import classifiers
from rewards.classifiers import first_line
from rewards.preference import Preference
from rewards.trl_style import plain_text
from rlalign import trl_bridge
from rlalign.config import ConfigError, load_config
from rlalign.exits import exit_code, run_safely
from rlalign.files import write_atomically
from rlalign.models import has_bfloat16, lacking, load_tokenizer, locate
from rlalign.pairs import Pair, Report, Text, read_pairs, report, split_pairs
from rlalign.ranks import set_threads
from rlalign.redact import redact_text, redacted_yaml
from rlalign.runs import RunFolder, check_run, command_line, open_run
from rlalign.settings.fields import NonNegative, NonNegativeFloat, Positive, PositiveFloat, Section
from rlalign.settings.overrides import dump_yaml
from rlalign.settings.run_section import RunSection
from rlalign.settings.sections import LoraSection, ModelSection
from rlalign.startup import config_stem, quiet_libraries, say

DAMAGED = (SafetensorError, UnpicklingError)
DEFAULT = "experiments/reward_model.yaml"


class RewardModelSection(ModelSection):
    """The model that becomes a reward model: a causal LM, or any that takes a classifier's head."""

    lora: LoraSection | None = Field(
        LoraSection(), description="train adapters and the head; null trains every weight"
    )


class PairsSection(Section):
    """Which of two completions is better: the data."""

    path: str = Field(
        "experiments/data/preferences.jsonl",
        min_length=1,
        description="a JSONL file of {prompt, chosen, rejected}: text, or messages",
    )
    eval_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the prompts whose pairs are held out"
    )
    max_length: Positive = Field(
        1024, description="training pairs with a text of more tokens, prompt included, are left out"
    )


class RewardTrainSection(Section):
    """How long to train, on how much at once."""

    epochs: PositiveFloat = Field(2.0, description="passes over the training pairs")
    batch_size: Positive = Field(16, description="pairs in an optimiser step")
    micro_batch_size: Positive = Field(16, description="pairs that go through the model at once")
    lr: PositiveFloat = Field(3e-4, description="AdamW's peak learning rate; then linear to 0")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps of linear warm-up")
    center: NonNegativeFloat = Field(
        0.01, description="pull of the rewards towards mean 0 (TRL's center_rewards_coefficient)"
    )
    seed: NonNegative = Field(0, description="of the head, the order and the split")
    threads: Literal["auto"] | Positive = Field(
        "auto", description="torch threads; auto: the allowed cores"
    )


class RewardModelRun(Section):
    """What the training of a reward model states."""

    model: RewardModelSection = RewardModelSection()
    pairs: PairsSection = PairsSection()
    train: RewardTrainSection = RewardTrainSection()
    run: RunSection = RunSection()


class Progress(TrainerCallback):
    """A line on stderr for each of the trainer's reports."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            say(
                f"step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.3f}, "
                f"accuracy {float(logs.get('accuracy', math.nan)):.3f} on training pairs"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit code of `rlalign.exits`."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def job() -> None:
        config = load_config(RewardModelRun, arguments, default=DEFAULT)
        folder, chat, found = train(config, stem=config_stem(arguments, DEFAULT))
        print(summary(found))
        print(f"\nAs a reward:\n\n{entry_lines(folder.model, chat, found)}")

    quiet_libraries()
    return run_safely(job)


def train(config: RewardModelRun, stem: str = "reward_model") -> tuple[RunFolder, bool, Report]:
    """Train, save and measure a reward model.

    The run's folder, whether the pairs are conversations, and how it does on those held out.
    ConfigError before a model is loaded wherever that is possible.
    """
    _check(config)
    check_run(config.run)
    pairs = read_pairs(config.pairs.path)
    training, held_out = split_pairs(pairs, config.pairs.eval_fraction, config.train.seed)
    tokenizer = reward_tokenizer(config.model, chat=pairs[0].is_chat)
    folder = open_run(config.run, stem)
    write_atomically(folder.config_yaml, redacted_yaml(config))
    folder.start(argv=command_line(), world_size=1, seeds={"train": config.train.seed})
    try:
        set_threads(config.train.threads)
        say(f"{len(training)} pairs to train on, {len(held_out)} held out; folder {folder.path}")
        _fit(config, tokenizer, training, folder)
        found = measure(folder.model, held_out, tokenizer)
    except BaseException as error:
        folder.finish("failed", exit_code(error), first_line(error))
        raise
    write_atomically(folder.path / "report.json", json.dumps(found.as_dict(), indent=1) + "\n")
    about = card(config, pairs[0].is_chat, folder, found)
    write_atomically(folder.model / "README.md", redact_text(about))
    folder.finish("done", 0)
    return folder, pairs[0].is_chat, found


def _check(config: RewardModelRun) -> None:
    if config.run.resume != "never":
        raise ConfigError(
            f"run.resume={config.run.resume!r}: the training of a reward model is not resumed; "
            "remove it, and give another run.name"
        )
    if config.model.quantization != "none":
        raise ConfigError(
            f"model.quantization={config.model.quantization}: reward models are trained on whole "
            "weights; remove it"
        )
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    if batch % min(micro, batch):
        raise ConfigError(
            f"train.batch_size={batch} is no multiple of train.micro_batch_size={micro}"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "a reward model is trained in one process, and this is one of several; start it with "
            "--num_processes 1"
        )


def reward_tokenizer(model: ModelSection, chat: bool) -> PreTrainedTokenizerBase:
    """The model's tokenizer, ready to be saved beside a reward model.

    Its pad token differs from EOS where that is possible: the value is read at the last token that
    is no padding, which is to be the EOS. Without conversations in the pairs it loses its chat
    template, so that `model.preference` reads text the way it was trained on.
    """
    tokenizer = load_tokenizer(model)
    if chat and tokenizer.chat_template is None:
        raise ConfigError(
            f"pairs.path holds messages, but model.name={model.name} has no chat template; write "
            "prompt, chosen and rejected as text"
        )
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        others = (tokenizer.unk_token, tokenizer.eos_token)
        tokenizer.pad_token = next(token for token in others if token is not None)
    if not chat:
        tokenizer.chat_template = None
    tokenizer.padding_side = "right"
    return tokenizer


def _fit(
    config: RewardModelRun, tokenizer: Any, training: Sequence[Pair], folder: RunFolder
) -> None:
    section, train = config.model, config.train
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_bfloat16 = section.dtype == "bfloat16" or (section.dtype == "auto" and has_bfloat16(device))
    set_seed(train.seed)
    model = _classifier(section)
    micro = min(train.micro_batch_size, train.batch_size)
    settings = {
        "num_train_epochs": train.epochs,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": train.batch_size // micro,
        "learning_rate": train.lr,
        "warmup_steps": train.warmup,
        "center_rewards_coefficient": train.center or None,
        "max_length": config.pairs.max_length,
        "gradient_checkpointing": section.gradient_checkpointing,
        "bf16": use_bfloat16,
        "use_cpu": device.type == "cpu",
        "seed": train.seed,
        "logging_steps": 5,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type != "cpu",
    }
    adapter = None if section.lora is None else _adapter(section.lora)
    trained, used = trl_bridge.train_reward_model(
        model, tokenizer, [pair.row() for pair in training], settings, adapter, [Progress()]
    )
    if used < len(training):
        say(f"{len(training) - used} pairs were longer than pairs.max_length and left out")
    trained.save_pretrained(str(folder.model))
    tokenizer.save_pretrained(str(folder.model))


def _classifier(section: ModelSection) -> Any:
    """The model with one output in place of its language model's head."""
    try:
        network, found = AutoModelForSequenceClassification.from_pretrained(
            locate(section),
            output_loading_info=True,
            num_labels=1,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            attn_implementation=section.attention,
            dtype=torch.float32,
        )
        # A head is new, and so is a pooler before it; the rest would be drawn at random.
        body = f"{network.base_model_prefix}."
        if missing := [
            name
            for name in found["missing_keys"]
            if name.startswith(body) and ".pooler." not in name
        ]:
            raise ValueError(lacking(missing))
        return network
    except (OSError, ValueError, ImportError, RuntimeError, *DAMAGED) as error:
        raise ConfigError(
            f"model.name={section.name} cannot be loaded as a reward model: {first_line(error)}"
        ) from error


def _adapter(lora: LoraSection) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha or 2 * lora.r,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=lora.target_modules,
        task_type=TaskType.SEQ_CLS,
    )


def measure(model: Path, held_out: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> Report:
    """How the saved model does, read as a run will read it: by `model.preference`."""
    chat = held_out[0].is_chat
    classifiers.set_device("cuda" if torch.cuda.is_available() else "cpu")
    reward = Preference(model=str(model.resolve()), format=form(chat), eos=not chat)
    reward.load()

    def length(text: Text) -> int:
        return len(tokenizer(plain_text(text), add_special_tokens=False)["input_ids"])

    return report(held_out, reward, length)


def form(chat: bool) -> Literal["chat", "plain"]:
    return "chat" if chat else "plain"


def summary(found: Report) -> str:
    """The report in words."""
    return "\n".join(
        [
            f"held-out pairs            {found.pairs}",
            f"accuracy                  {found.accuracy:.3f} ± {found.accuracy_se:.3f}",
            f"margin                    {found.margin:.3f} ± {found.margin_se:.3f} "
            f"(rewards: mean {found.mean:.3f}, standard deviation {found.std:.3f})",
            f"'longer is better'        {found.longer_wins:.3f} accuracy",
            f"model prefers the longer  {found.prefers_longer:.3f} of pairs",
            f"reward and length         correlation {found.length_correlation:+.3f}",
        ]
    )


def entry_lines(model: Path, chat: bool, found: Report) -> str:
    """What to paste into a configuration: one standard deviation of the reward counts as 1."""
    entry: dict[str, Any] = {"kind": "model.preference", "model": str(model), "format": form(chat)}
    if not chat:
        entry["eos"] = True
    if found.std > 0:
        entry["scale"] = float(f"{1 / found.std:.3g}")
    return dump_yaml({"rewards": {"taste": {**entry, "weight": 1.0}}}).strip()


def card(config: RewardModelRun, chat: bool, folder: RunFolder, found: Report) -> str:
    """The README of the model's folder."""
    return (
        f"# A reward model\n\n{config.model.name}, trained on the preference pairs of "
        f"{config.pairs.path} by rlalign through TRL's RewardTrainer; every setting is in "
        f"../config.yaml. On pairs of held-out prompts:\n\n```\n{summary(found)}\n```\n\n"
        "It knows texts like those of its pairs; what an optimised policy writes is not like them. "
        f"As a reward:\n\n```yaml\n{entry_lines(folder.model, chat, found)}\n```\n"
    )


if __name__ == "__main__":
    sys.exit(main())
