"""Ours without one of its techniques, for as long as an ablation's arm is timed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest import mock

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from benchmarks import ours
from benchmarks.settings import Setting
from rlalign import policy as policy_module
from rlalign import products
from rlalign import trainer as trainer_module
from rlalign.generation import caches
from rlalign.policy import Policy, TokenFn, positions, scatter
from rlalign.trainer import Trainer
from rlalign.types import Rollout, ScoredRollout


@contextmanager
def keep_finished_rows(trainer: Trainer) -> Iterator[None]:
    with mock.patch.object(caches, "COMPACT_BELOW", -1.0):
        yield


@contextmanager
def old_pass(trainer: Trainer) -> Iterator[None]:
    """Old log-probabilities and values by a pass over the responses."""

    def dropping(self: Trainer, scored: ScoredRollout) -> ScoredRollout:
        return replace(scored, rollout=replace(scored.rollout, recorded=None))

    with mock.patch.object(Trainer, "_unless_stale", dropping):
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


@contextmanager
def padded_passes(trainer: Trainer) -> Iterator[None]:
    with mock.patch.object(trainer.session.policy, "packs", False):
        yield


@contextmanager
def whole_logits(trainer: Trainer) -> Iterator[None]:
    """The logits of a micro-batch made, and kept for the way back, at once."""
    with mock.patch.object(policy_module, "logits_at_once", lambda *_: 2**40):
        yield


@contextmanager
def pefts_product(trainer: Trainer) -> Iterator[None]:
    layers = [m for m in trainer.session.policy.modules() if type(m) is products.FastLoraLinear]
    for layer in layers:
        layer.__class__ = LoraLinear
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = products.FastLoraLinear


@contextmanager
def wide_products(trainer: Trainer) -> Iterator[None]:
    with mock.patch.object(products, "THIN", range(0)):
        yield


@contextmanager
def adapters_apart(trainer: Trainer) -> Iterator[None]:
    with mock.patch.object(products.FastLoraLinear, "can_merge", lambda self: False):
        yield
