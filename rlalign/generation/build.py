"""Which engine a configuration asks for, and what it needs."""

import importlib.util

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from rlalign.config import ConfigError
from rlalign.generation.decode import DecodeEngine
from rlalign.generation.engine import RolloutEngine
from rlalign.generation.vllm import VLLMEngine
from rlalign.settings.sections import RunConfig, SamplingSection

# Outside these vLLM draws by another temperature than the one that is asked for, or refuses.
TEMPERATURES = (0.01, 2.0)


def build_engine(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
) -> RolloutEngine:
    """The engine that `sampling.engine` names; it starts nothing before its first sync."""
    sampling = config.sampling
    if sampling.engine != "vllm":
        return decode_engine(sampling, tokenizer)
    return VLLMEngine(
        tokenizer,
        accelerator,
        config.vllm,
        max_new_tokens=sampling.max_new_tokens,
        stop=sampling.stop,
        batch_size=sampling.batch_size,
        trust_remote_code=config.model.trust_remote_code,
    )


def decode_engine(sampling: SamplingSection, tokenizer: PreTrainedTokenizerBase) -> DecodeEngine:
    """The engine of this process, whatever `sampling.engine` says."""
    return DecodeEngine(
        tokenizer,
        max_new_tokens=sampling.max_new_tokens,
        stop=sampling.stop,
        batch_size=sampling.batch_size,
        static=sampling.engine == "static",
    )


def check_engine(config: RunConfig, device: torch.device, world: int) -> None:
    """Raise ConfigError where `sampling.engine` cannot run; touches no model."""
    if config.sampling.engine != "vllm":
        return
    setting, otherwise = "sampling.engine=vllm", "or use sampling.engine=decode"
    if config.model.quantization != "none":
        raise ConfigError(
            f"{setting} with model.quantization={config.model.quantization}: adapters cannot be "
            f"merged into quantised weights without loss; set model.quantization=none, {otherwise}"
        )
    low, high = TEMPERATURES
    if not low <= config.sampling.temperature <= high:
        raise ConfigError(
            f"{setting} with sampling.temperature={config.sampling.temperature:g}: vLLM draws only "
            f"between {low:g} and {high:g}; choose one there, {otherwise}"
        )
    if config.vllm.mode == "colocate":
        _check_colocated(config, world, otherwise)
    if device.type != "cuda":
        raise ConfigError(
            f"{setting} needs a CUDA device, and this process runs on {device.type}; use "
            "sampling.engine=decode"
        )
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"{setting} needs vLLM: pip install 'trl[vllm]', {otherwise}")


def _check_colocated(config: RunConfig, world: int, otherwise: str) -> None:
    parts = config.vllm.tensor_parallel_size
    if world % parts:
        fitting = ", ".join(str(n) for n in range(1, world + 1) if world % n == 0)
        raise ConfigError(
            f"vllm.tensor_parallel_size={parts} does not divide the {world} process(es) of this "
            f"run; valid: {fitting}"
        )
    if config.model.revision is not None:
        raise ConfigError(
            f"sampling.engine=vllm with model.revision={config.model.revision}: vLLM would be "
            f"given another revision's files; name a local copy by model.name, {otherwise}"
        )
