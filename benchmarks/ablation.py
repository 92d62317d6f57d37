"""What each technique is worth: the phase that it touches, with it and without, interleaved.

A technique is one entry of TECHNIQUES. What differs between its two arms is settings (then there
are two trainers) or a patch that is on while the arm is timed (then both share one). Both arms see
the same responses, and the first round of each is not counted.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import ours
from benchmarks.settings import Setting
from benchmarks.worker import Recorder, now
from rlalign import policy as policy_module
from rlalign import trainer as trainer_module
from rlalign.generation import caches
from rlalign.policy import Policy, TokenFn, positions, scatter
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


# -- the patches -----------------------------------------------------------------------------------


@contextmanager
def keep_finished_rows(trainer: Trainer) -> Iterator[None]:
    with mock.patch.object(caches, "COMPACT_BELOW", -1.0):
        yield


def draw_multinomial(trainer: Trainer, setting: Setting) -> Rollout:
    """Responses drawn by torch.multinomial, which is what `generate` of transformers does."""

    def sample(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = logits.float().log_softmax(-1)
        ids = torch.multinomial(logprobs.exp(), 1)  # (B, 1)
        return ids.squeeze(-1), logprobs.gather(-1, ids).squeeze(-1)

    return ours.generate(trainer, setting, sample)


def draw_in_groups(trainer: Trainer, setting: Setting) -> Rollout:
    """`generations` responses a prompt, from one pass over the prompt."""
    session = trainer.session
    prompts = session.prompt_batch(trainer.iteration)
    few = prompts.rows(torch.arange(setting.samples // setting.generations))
    session.engine.sync(session.policy)
    generator = session.generator("generate", trainer.iteration)
    return session.engine.generate(few, setting.generations, generator)


def draw_each(trainer: Trainer, setting: Setting) -> Rollout:
    """The same responses, from a pass over every copy of a prompt."""
    session = trainer.session
    prompts = session.prompt_batch(trainer.iteration)
    index = torch.arange(setting.samples // setting.generations)
    session.engine.sync(session.policy)
    generator = session.generator("generate", trainer.iteration)
    copies = prompts.rows(index.repeat_interleave(setting.generations))
    return session.engine.generate(copies, 1, generator)


@contextmanager
def logits_everywhere(trainer: Trainer) -> Iterator[None]:
    """A policy that makes the logits of prompts and padding, too."""

    def forward(
        self: Policy,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        response_mask: Tensor,
        token_fn: TokenFn = policy_module.all_outputs,
    ) -> dict[str, Tensor]:
        ids = torch.cat([prompt_ids, response_ids], 1)  # (B, P + T)
        mask = torch.cat([prompt_mask, response_mask], 1)
        start = prompt_ids.shape[1] - 1
        with self.autocast():
            base = self._base(self.lm)
            hidden = base.base_model(
                input_ids=ids, attention_mask=mask.long(), position_ids=positions(mask)
            )[0]
            logits = base.get_output_embeddings()(hidden)  # (B, P + T, V)
            logits, hidden = (x[:, start:-1][response_mask] for x in (logits, hidden))
            outputs = token_fn(self, logits, hidden, response_ids[response_mask])
        return {name: scatter(x, response_mask) for name, x in outputs.items()}

    with mock.patch.object(Policy, "forward", forward):
        yield


@contextmanager
def micro_batches_at_random(trainer: Trainer) -> Iterator[None]:
    """Micro-batches of the same number of rows, in any order, padded to the longest."""

    def split(lengths: Tensor, budget: int) -> list[Tensor]:
        rows = max(budget // int(lengths.amax()), 1)
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))
        return list(order.to(lengths.device).split(rows))

    with ExitStack() as stack:
        for module in (policy_module, trainer_module):
            stack.enter_context(mock.patch.object(module, "micro_batches", split))
        yield


@contextmanager
def plain_adamw(trainer: Trainer) -> Iterator[None]:
    """The same optimiser, one parameter and operation at a time."""
    groups = trainer.optimizer.param_groups
    were = [group["fused"] for group in groups]
    for group in groups:
        group.update(fused=False, foreach=False)
    try:
        yield
    finally:
        for group, was in zip(groups, were, strict=True):
            group["fused"] = was


TECHNIQUES: dict[str, Technique] = {
    "compaction": Technique(
        "ended rows leave the decode batch",
        "generation",
        off=Arm(patch=keep_finished_rows),
        setting={"regime": "mixed", "response_length": 64},
    ),
    "inverse_cdf": Technique(
        "inverse CDF in place of torch.multinomial",
        "generation",
        off=Arm(draw=draw_multinomial),
    ),
    "shared_prompt": Technique(
        "one pass over a prompt for its samples",
        "generation",
        on=Arm(draw=draw_in_groups),
        off=Arm(draw=draw_each),
        setting={"prompt_length": 64, "generations": 8, "response_length": 8, "regime": "mixed"},
    ),
    "response_logits": Technique(
        "logits of response tokens alone",
        "learning",
        off=Arm(patch=logits_everywhere),
        setting={"prompt_length": 32},
    ),
    "sorted_micro_batches": Technique(
        "micro-batches of rows of like length",
        "learning",
        # About a quarter of the rows at a time, so that there is an order to choose.
        on=Arm(overrides={"optim.micro_batch_tokens": 512}),
        off=Arm(micro_batches_at_random, {"optim.micro_batch_tokens": 512}),
        setting={"regime": "mixed", "response_length": 64},
    ),
    "fused_adamw": Technique(
        "AdamW in one kernel (full fine-tune)",
        "learning",
        off=Arm(patch=plain_adamw),
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
