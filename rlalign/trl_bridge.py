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


def vllm_generation(
    lm: Any,
    accelerator: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    engine: Mapping[str, Any],
    temperature: float,
    max_new_tokens: int,
    eos_id: int,
    stop: Sequence[str] = (),
) -> Any:
    """TRL's handle on vLLM: starts it, or joins the server; draws by temperature and nothing else.

    `engine` are arguments of VLLMGeneration about vLLM itself. TRL leaves vLLM's own
    generation_config="auto", which reads the model's generation_config.json. Its temperature,
    top_p, top_k, min_p, repetition_penalty and max_new_tokens are only what a request that states
    none would get, and all are stated here. Its eos_token_id is not: vLLM adds those ids to the
    stop tokens of every request but one with ignore_eos. So EOS is a stop token of the request.

    No `seed`: vLLM gives it to every prompt of a request alike, so all n samples of a prompt, which
    TRL sends as n prompts, would be the same response.
    """
    from trl.generation.vllm_generation import VLLMGeneration

    return VLLMGeneration(
        lm,
        accelerator,
        tokenizer,
        **engine,
        temperature=temperature,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        max_completion_length=max_new_tokens,
        logprobs=0,  # of the sampled token alone
        generation_kwargs={
            "ignore_eos": True,
            "stop_token_ids": [eos_id],
            "stop": list(stop),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,  # a stop string may name one
        },
    )


def vllm_logprobs_mode(generation: Any) -> str:
    """Which log-probabilities the main process's vLLM returns; only the processed see temperature.

    TRL starts a colocated vLLM with processed_logprobs; a server has what it was started with.
    """
    if generation.mode == "colocate" or not generation.accelerator.is_main_process:
        return "processed_logprobs"
    return str(_server_info(generation.vllm_client)["model_config"]["logprobs_mode"])


def _server_info(client: Any) -> Any:
    """How a vLLM server was started, by its own word: TRL's client asks for it from 1.16 on."""
    if hasattr(client, "get_server_info"):
        return client.get_server_info()
    address = f"{client.base_url}/server_info"
    reply = client.session.get(address, params={"config_format": "json"}, timeout=60)
    if reply.status_code == 404:
        raise RuntimeError(
            f"{address} is not there: start the server with VLLM_SERVER_DEV_MODE=1 (docs/vllm.md)"
        )
    reply.raise_for_status()
    return reply.json()["vllm_config"]


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
