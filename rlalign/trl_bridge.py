"""The one file that imports TRL: what this project borrows from it, in one place to mend."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback


def is_conversational(prompt: Any) -> bool:
    """Whether a prompt is a list of messages with roles rather than text."""
    from trl import is_conversational as trl_is_conversational

    return bool(trl_is_conversational({"prompt": prompt}))


def render_chat(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """The messages in the model's chat template, up to where the assistant starts to write."""
    from trl import apply_chat_template

    return str(apply_chat_template({"prompt": messages}, tokenizer)["prompt"])


def quantization_config(bits: str, dtype: str) -> Any:
    """bitsandbytes settings for a base of "4bit" or "8bit" under adapters (QLoRA)."""
    from trl import ModelConfig, get_quantization_config

    return get_quantization_config(
        ModelConfig(
            load_in_4bit=bits == "4bit",
            load_in_8bit=bits == "8bit",
            dtype=dtype,
            bnb_4bit_quant_type="nf4",
            use_bnb_nested_quant=True,
        )
    )


def trainer_classes(method: str) -> tuple[Any, Any]:
    """TRL's configuration and trainer classes of "grpo" or "rloo"."""
    import trl

    if method == "grpo":
        return trl.GRPOConfig, trl.GRPOTrainer
    return trl.RLOOConfig, trl.RLOOTrainer


def remove_printer(trainer: Any) -> None:
    """Keep transformers from printing each log as a dict."""
    trainer.remove_callback(PrinterCallback)


def train_reward_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    adapter: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Any, int]:
    """A sequence classifier trained on preference pairs, and how many of them were short enough.

    `settings` are RewardConfig's; `adapter` is peft's configuration, None for all weights.
    """
    import datasets  # type: ignore[import-untyped]
    from trl import RewardConfig, RewardTrainer

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list([dict(pair) for pair in pairs])
    with tempfile.TemporaryDirectory() as nothing_is_kept, warnings.catch_warnings():
        # TRL asks transformers by an older name.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(output_dir=nothing_is_kept, **settings),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=list(callbacks),
        )
        remove_printer(trainer)
        trainer.train()
    return trainer.model, len(trainer.train_dataset)  # type: ignore[arg-type]
