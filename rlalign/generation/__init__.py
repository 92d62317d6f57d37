"""Engines that sample responses: one file each."""

from rlalign.generation.decode import DecodeEngine
from rlalign.generation.engine import RolloutEngine
from rlalign.generation.sampling import Sampler, sample_inverse_cdf

__all__ = ["DecodeEngine", "RolloutEngine", "Sampler", "sample_inverse_cdf"]
