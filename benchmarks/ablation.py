"""What each technique is worth: the phase that it touches, with it and without, interleaved.

A technique is one entry of TECHNIQUES. What differs between its two arms is settings (then there
are two trainers) or a patch that is on while the arm is timed (then both share one). Both arms see
the same responses, and the first round of each is not counted.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from benchmarks import ours, patches
from benchmarks.settings import Setting
from benchmarks.worker import Recorder, now
from rlalign.trainer import Trainer
from rlalign.types import Rollout

Patch = Callable[[Trainer], AbstractContextManager[Any]]
Draw = Callable[[Trainer, Setting], Rollout]


def as_it_is(trainer: Trainer) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    patch: Patch = as_it_is
    overrides: Mapping[str, Any] = field(default_factory=dict)
    draw: Draw = ours.generate


@dataclass(frozen=True)
class Technique:
    """`phase` is generation or learning; `setting` is what the technique needs to show itself."""

    what: str
    phase: str
    off: Arm
    on: Arm = Arm()
    setting: Mapping[str, Any] = field(default_factory=dict)
    needs_bfloat16: bool = False


def run(setting: Setting) -> None:
    assert setting.technique is not None
    technique, record = TECHNIQUES[setting.technique], Recorder(setting)
    arms = {"on": technique.on, "off": technique.off}
    trainers = open_trainers(setting, arms)
    for i in range(setting.iterations):
        names = list(arms) if i % 2 == 0 else list(arms)[::-1]  # neither is always the first
        for name in names:
            spent = timed(trainers[name], arms[name], technique.phase, setting, i)
            record.send({"iteration": i + 1, "arm": name, "seconds": spent})


def open_trainers(setting: Setting, arms: Mapping[str, Arm]) -> dict[str, Trainer]:
    shared = ours.build(setting, arms["on"].overrides)
    if arms["on"].overrides == arms["off"].overrides:
        return dict.fromkeys(arms, shared)
    return {"on": shared, "off": ours.build(setting, arms["off"].overrides)}


def timed(trainer: Trainer, arm: Arm, phase: str, setting: Setting, i: int) -> float:
    """Seconds of the phase in round `i`; learning starts from responses that are not timed."""
    trainer.iteration = i
    if phase == "generation":
        with arm.patch(trainer):
            start = now()
            arm.draw(trainer, setting)
            return now() - start
    rollout = ours.generate(trainer, setting)
    with arm.patch(trainer):
        start = now()
        trainer.step(rollout)  # rewards, reference, old values, update
        return now() - start


TECHNIQUES: dict[str, Technique] = {
    "compaction": Technique(
        "ended rows leave the decode batch",
        "generation",
        off=Arm(patch=patches.keep_finished_rows),
        setting={"regime": "mixed", "response_length": 64},
    ),
    "inverse_cdf": Technique(
        "inverse CDF in place of torch.multinomial",
        "generation",
        off=Arm(draw=patches.draw_multinomial),
    ),
    "shared_prompt": Technique(
        "one pass over a prompt for its samples",
        "generation",
        on=Arm(draw=patches.draw_in_groups),
        off=Arm(draw=patches.draw_each),
        setting={"prompt_length": 64, "generations": 8, "response_length": 8, "regime": "mixed"},
    ),
    "thin_products": Technique(
        "W @ x.T where few rows meet a CPU",
        "generation",
        off=Arm(patch=patches.wide_products),
    ),
    "merged_copies": Technique(
        "adapters merged into copies while decoding",
        "generation",
        off=Arm(patch=patches.adapters_apart),
    ),
    "static_caches": Technique(
        "caches written in place",
        "generation",
        on=Arm(overrides={"sampling.engine": "static"}),
        off=Arm(overrides={"sampling.engine": "decode"}),
    ),
    "packing": Technique(
        "passes without padding",
        "learning",
        off=Arm(patch=patches.padded_passes),
        setting={"regime": "mixed", "response_length": 64},
    ),
    "chunked_logits": Technique(
        "logits in chunks, their gradient kept",
        "learning",
        off=Arm(patch=patches.whole_logits),
    ),
    "lora_product": Technique(
        "LoRA by two additions in place",
        "learning",
        off=Arm(patch=patches.pefts_product),
    ),
    "noted_values": Technique(
        "old log-probabilities and values noted while decoding",
        "learning",
        off=Arm(patch=patches.old_pass),
    ),
    "response_logits": Technique(
        "logits of response tokens alone",
        "learning",
        off=Arm(patch=patches.logits_everywhere),
        setting={"prompt_length": 32},
    ),
    "sorted_micro_batches": Technique(
        "micro-batches of rows of like length",
        "learning",
        # About a quarter of the rows at a time, so that there is an order to choose.
        on=Arm(overrides={"optim.micro_batch_tokens": 512}),
        off=Arm(patches.micro_batches_at_random, {"optim.micro_batch_tokens": 512}),
        setting={"regime": "mixed", "response_length": 64},
    ),
    "fused_adamw": Technique(
        "AdamW in one kernel (full fine-tune)",
        "learning",
        off=Arm(patch=patches.plain_adamw),
        setting={"lora": None, "samples": 8, "response_length": 16},
    ),
    "bfloat16": Technique(
        "products in bfloat16",
        "learning",
        on=Arm(overrides={"model.dtype": "bfloat16"}),
        off=Arm(overrides={"model.dtype": "float32"}),
        needs_bfloat16=True,
    ),
}
