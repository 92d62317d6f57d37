"""The memory that a process of a run comes to hold at most, from shapes: no weight is loaded.

`peak` was compared with measured processes on a CPU (docs/doctor.md). For a GPU there is the
formula alone: it has not been compared with a device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from transformers import AutoModelForCausalLM

from rlalign.models import add_lora
from rlalign.settings.sections import ModelSection
from rlalign.sizes import Shape, logits_at_once

FLOAT32 = 4  # bytes
# float32 tensors of a chunk of logits at once: the logits, and what log-probability, entropy and
# their gradient make of them. Of a decoding step: the logits and their cumulative probabilities;
# in float32 also what the entropy takes.
COPIES_OF_CHUNK, COPIES_OF_STEP, COPIES_WITH_ENTROPY = 5, 3, 5
CACHE, COPIES = "key-value cache", "weights for decoding"
CUDA_CONTEXT = 500 * 2**20  # kernels and handles, by order of magnitude


@dataclass(frozen=True)
class Size:
    """How many numbers a language model and its adapters are."""

    shape: Shape
    weights: int  # a tied one counts once
    embedding: int  # those of the output embedding
    adapters: int  # 0 where every weight learns
    linear: int  # those of linear layers, one that is tied to an embedding included
    adapted: int  # those of linear layers with an adapter

    @classmethod
    def of(cls, config: Any, model: ModelSection) -> "Size":
        """The size of what `model` makes of a transformers configuration, built without memory."""
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
            head = lm.get_output_embeddings()
            weights, adapters, adapted = count(lm), 0, 0
            linear = sum(m.weight.numel() for m in lm.modules() if type(m) is nn.Linear)
            if model.lora is not None:
                lm = add_lora(lm, model.lora)
                adapters = count(lm) - weights
                bases = [m.base_layer for m in lm.modules() if isinstance(m, Linear)]
                adapted = sum(m.weight.numel() for m in bases if type(m) is nn.Linear)
        return cls(Shape.of(config), weights, count(head), adapters, linear, adapted)


@dataclass(frozen=True)
class Work:
    """What goes through the model in one process."""

    decoded: int  # responses written at once
    minibatch: int  # responses of an optimiser step
    prompt: int  # tokens
    response: int  # tokens, at most
    budget: int  # tokens of a micro-batch
    evaluated: int  # responses written at once in an evaluation; 0 where there is none

    @property
    def width(self) -> int:
        return self.prompt + self.response


@dataclass(frozen=True)
class Part:
    name: str
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class Estimate:
    """The parts that are held throughout, and those of each phase."""

    held: Sequence[Part]
    phases: dict[str, Sequence[Part]]

    @property
    def worst(self) -> str:
        """The phase at which the peak falls."""
        return max(self.phases, key=lambda phase: total(self.phases[phase]))

    @property
    def peak(self) -> int:
        """Bytes."""
        return total(self.held) + total(self.phases[self.worst])


def estimate(
    size: Size,
    work: Work,
    model: ModelSection,
    dtype: torch.dtype,
    device: str,
    eval_dtype: str,
    engine: str = "decode",
) -> Estimate:
    """The model's share of a process: the caller adds the interpreter, the rewards and vLLM.

    `dtype` is the compute precision, `device` cpu or cuda, `eval_dtype` and `engine` the settings.
    """
    learns_whole = model.lora is None
    trained = size.weights if learns_whole else size.adapters
    itemsize = dtype.itemsize
    # Weights that learn are float32 whatever the precision of the products.
    width = FLOAT32 if learns_whole else QUANTISED.get(model.quantization, itemsize)
    held = [Part("weights", round(size.weights * width), f"{width:g} bytes each")]
    if learns_whole:
        held.append(Part("frozen reference", FLOAT32 * size.weights, "a copy; LoRA needs none"))
    else:
        held.append(Part("LoRA adapters", FLOAT32 * size.adapters, "float32"))
    held.append(Part("AdamW's moments", 2 * FLOAT32 * trained, "two float32 a trained weight"))
    if device == "cuda":
        held.append(Part("CUDA context", CUDA_CONTEXT))
    chunk = _chunk(size, work, device)
    generate = _decoding(size, work.decoded, work, itemsize, learns_whole)
    if engine == "vllm":
        pushed = 0 if learns_whole else round(size.adapted * width)
        generate = [Part("copies for a push", pushed, "adapters merged, for vLLM")]
    stays = {CACHE} if engine == "static" else set()
    stays |= {COPIES} if device == "cuda" else set()
    held += [part for part in generate if part.name in stays]
    return Estimate(
        held,
        {
            "generate": [part for part in generate if part.name not in stays],
            "score, prepare": [_forward(size.shape, work, itemsize), chunk],
            "update": _update(
                size, work, model, itemsize, _chunk(size, work, device, learns_whole), learns_whole
            ),
            "evaluate": _evaluation(size, work, itemsize, chunk, learns_whole, eval_dtype),
        },
    )


QUANTISED = {"4bit": 0.55, "8bit": 1.0}  # bytes a weight, scales included


def _update(
    size: Size, work: Work, model: ModelSection, itemsize: int, chunk: Part, learns_whole: bool
) -> list[Part]:
    tokens = micro_batch(work)
    per_token = size.shape.activations(itemsize, model.gradient_checkpointing)
    parts = [
        Part("gradients", FLOAT32 * (size.weights if learns_whole else size.adapters), "float32"),
        Part("activations", tokens * per_token, f"{tokens} tokens of a micro-batch"),
        chunk,
    ]
    if learns_whole:
        # Input and output embedding are often one weight, whose two gradients meet at the end.
        parts.append(Part("gradient of the head", FLOAT32 * size.embedding))
        if itemsize < FLOAT32:
            parts.append(Part("weights for products", itemsize * size.weights, "autocast's copy"))
    return parts


def _evaluation(
    size: Size, work: Work, itemsize: int, chunk: Part, learns_whole: bool, eval_dtype: str
) -> list[Part]:
    if not work.evaluated:
        return []
    copied = (2 if learns_whole else 1) * size.weights + size.adapters
    parts = []
    if eval_dtype == "float32":
        itemsize = FLOAT32
        parts.append(Part("float32 copies", FLOAT32 * copied, "policy and reference; eval.dtype"))
    decoding = _decoding(size, work.evaluated, work, itemsize, learns_whole)
    passing = [_forward(size.shape, work, itemsize), chunk]
    return parts + max(decoding, passing, key=total)


def _decoding(size: Size, rows: int, work: Work, itemsize: int, learns_whole: bool) -> list[Part]:
    """Cache, logits, and weights for decoding; a layer's cache grows by a copy, so one is twice."""
    shape = size.shape
    cache = rows * work.width * shape.key_values * (shape.layers + 1) * itemsize
    copies = COPIES_WITH_ENTROPY if itemsize == FLOAT32 else COPIES_OF_STEP
    logits = copies * FLOAT32 * rows * shape.vocabulary
    parts = [
        Part(CACHE, cache, f"{rows} responses of {work.width} tokens"),
        Part("logits of a step", logits, f"{rows} x {shape.vocabulary}, float32"),
    ]
    if learns_whole and itemsize < FLOAT32:
        parts.append(Part(COPIES, itemsize * size.linear, "lower precision"))
    elif not learns_whole and itemsize == FLOAT32:
        parts.append(Part(COPIES, FLOAT32 * size.adapted, "adapters merged"))
    return parts


def _forward(shape: Shape, work: Work, itemsize: int) -> Part:
    """One layer's vectors: without a gradient none is kept."""
    tokens = min(work.budget, work.decoded * work.width)
    vectors = 8 * shape.hidden + 5 * shape.inner
    return Part("activations", tokens * vectors * itemsize, f"one layer, {tokens} tokens")


def _chunk(size: Size, work: Work, device: str, head_learns: bool = False) -> Part:
    vocabulary = size.shape.vocabulary
    most = max(logits_at_once(device, head_learns) // vocabulary, 1)
    # Only positions before a response's token have logits.
    predicted = max(min(work.budget, work.decoded * work.width) * work.response // work.width, 1)
    rows = min(most, predicted)
    note = f"{rows} x {vocabulary}, with gradients"
    return Part("logits of a chunk", COPIES_OF_CHUNK * FLOAT32 * rows * vocabulary, note)


def micro_batch(work: Work) -> int:
    """Tokens of the largest micro-batch of an update; a longer response stands alone."""
    fitting = max(work.budget // work.width, 1)
    return min(fitting, work.minibatch) * work.width


def count(module: nn.Module) -> int:
    """Numbers in a module's parameters; a shared one counts once."""
    return sum(p.numel() for p in module.parameters())


def total(parts: Sequence[Part]) -> int:
    return sum(part.bytes for part in parts)
