"""The one file that imports TRL: what this project borrows from it, in one place to mend."""

from typing import Any

from transformers import PreTrainedTokenizerBase


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
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
