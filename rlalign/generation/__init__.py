"""Engines that sample responses: one file each."""

from rlalign.generation.build import build_engine, check_engine, decode_engine
from rlalign.generation.decode import DecodeEngine
from rlalign.generation.engine import RolloutEngine
from rlalign.generation.sampling import Sampler, sample_inverse_cdf
from rlalign.generation.vllm import VLLMEngine

__all__ = [
    "DecodeEngine",
    "RolloutEngine",
    "Sampler",
    "VLLMEngine",
    "build_engine",
    "check_engine",
    "decode_engine",
    "sample_inverse_cdf",
]
