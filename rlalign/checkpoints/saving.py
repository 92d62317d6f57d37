"""A training state as tensors and JSON, and the finished model in Hugging Face's format."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rewards.classifiers import first_line
from rlalign.checkpoints.folder import Checkpoint, CheckpointError
from rlalign.checkpoints.optimizer_state import flatten_optimizer, restore_optimizer
from rlalign.files import fsync, make_folder, writing_to
from rlalign.session import Session
from rlalign.settings.sections import SamplingSection
from rlalign.trainer import Trainer

logger = logging.getLogger(__name__)


def training_state(trainer: Trainer) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """All that the next iteration depends on: tensors by file, and a JSON state.

    There is no generator's state and no place in the data in it: both are functions of the seed,
    the rank and the iteration.
    """
    policy = {name: p.detach() for name, p in trainer.session.policy.trainable().items()}
    optimizer, scalars = flatten_optimizer(trainer.optimizer)
    state = {
        "iteration": trainer.iteration,
        "samples": trainer.samples,
        "optimizer_steps": trainer.optimizer_steps,
        "skipped_in_a_row": trainer.skipped_in_a_row,
        "micro_batch_tokens": trainer.budget,
        "world_size": trainer.session.ranks.size,
        "objective": trainer.objective.state_dict(),
        "optimizer": scalars,
        "target": trainer.target.state_dict(),
        "method": trainer.objective.title,
    }
    tensors = {"policy": policy, "optimizer": optimizer}
    if own := trainer.objective.tensors():
        tensors["objective"] = own
    return tensors, state


class MismatchError(CheckpointError):
    """A sound checkpoint of a run that was started otherwise; an older one would not fit either."""


@torch.no_grad()
def restore_training(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Continue from a checkpoint.

    Raises MismatchError where this run was started otherwise than the checkpoint's, CheckpointError
    where the checkpoint holds something else than such a run writes.
    """
    with reading(checkpoint.path):
        state, tensors = checkpoint.state, checkpoint.tensors
        check_start(trainer, checkpoint)
        parameters = trainer.session.policy.trainable()
        check_tensors(checkpoint.path, parameters, tensors["policy"])
        for name, parameter in parameters.items():
            parameter.copy_(tensors["policy"][name])
        optimizer = trainer.optimizer
        restore_optimizer(optimizer, tensors["optimizer"], state["optimizer"])
        optim = trainer.session.config.optim
        for group in optimizer.param_groups:  # the run's settings, if they were changed
            group.update(betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)
        own = tensors.get("objective", {})
        if own:  # another policy's weights, as those that draw
            check_tensors(checkpoint.path, parameters, own)
        trainer.objective.load_state_dict(state["objective"], own)
        _restore_target(trainer, state.get("target"))
        trainer.iteration = as_count(state["iteration"])
        if trainer.iteration != checkpoint.step:
            raise ValueError(f"its state is of iteration {trainer.iteration}")
        trainer.samples = as_count(state["samples"])
        trainer.optimizer_steps = as_count(state["optimizer_steps"])
        trainer.skipped_in_a_row = as_count(state["skipped_in_a_row"])
        # Less than the settings say, where memory ran out.
        trainer.budget = as_count(state.get("micro_batch_tokens", trainer.budget))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, a state that is not as a run writes it is a CheckpointError that names `path`."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        kind = type(error).__name__
        raise CheckpointError(
            f"{path} does not hold what a run writes ({kind}: {first_line(error)})"
        ) from error


def check_start(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of another number of processes, unless that is allowed, or method."""
    state, config = checkpoint.state, trainer.session.config
    world, was = trainer.session.ranks.size, as_count(state["world_size"])
    if was != world and not config.run.allow_elastic:
        raise MismatchError(
            f"{checkpoint.path} was written by {was} processes and this run has {world}: the "
            f"samples would be drawn differently; start {was} processes as before, or give "
            "--run.allow_elastic to go on without being the same run"
        )
    method = trainer.objective.title
    if state.get("method", method) != method:
        raise MismatchError(
            f"{checkpoint.path} was written by {state['method']} and this run is {method}: their "
            "optimisers and states differ; resume with the same method, or start from the saved "
            "model by model.name"
        )


def check_tensors(
    path: Path, parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]
) -> None:
    """Refuse tensors that are not the parameters', by name, shape and type."""
    if parameters.keys() != saved.keys():
        odd = sorted(parameters.keys() ^ saved.keys())[0]
        raise CheckpointError(
            f"{path} holds another model's parameters ({odd} is in only one of the two); resume "
            "with the model.* settings that it was made with"
        )
    for name, parameter in parameters.items():
        ours, theirs = ((tuple(x.shape), x.dtype) for x in (parameter, saved[name]))
        if ours != theirs:
            raise CheckpointError(
                f"{path}: {name} has shape {theirs[0]} in {theirs[1]}, the model's is {ours[0]} in "
                f"{ours[1]}; resume with the model.* settings that it was made with"
            )


def _restore_target(trainer: Trainer, saved: Mapping[str, Any] | None) -> None:
    """Keep the fitted lambdas where the wishes are the same; a reward file may have changed."""
    if saved is None:  # it is older than targets, and has no moments
        return
    if saved["hash"] == trainer.target.hash or saved.get("wishes") == trainer.target.wishes:
        trainer.target = trainer.target.restored(saved)
        if saved["hash"] != trainer.target.hash and trainer.target.moments:
            logger.warning(
                "the reward files are not what they were, and the lambdas that were fitted to them "
                "are kept; where a value changed, begin a new run"
            )
    elif not trainer.target.is_fitted:
        logger.warning("the target is another than the checkpoint's: its moments are fitted anew")


def as_count(value: Any) -> int:
    """A number of things, as JSON holds it."""
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is no number of iterations, samples, steps or processes")
    return value


def save_model(session: Session, folder: Path, value_head: bool = True) -> None:
    """The policy as plain transformers and peft load it: an adapter, or the whole model.

    The generation settings beside it sample the distribution that was trained: its temperature and
    length, no top-k, no top-p. The value head, where there is one, lies in
    `value_head.safetensors`. Every file is whole or not there; DiskError where one does not fit.
    """
    writing = folder.with_name(f".writing-{folder.name}")
    with writing_to(folder):
        make_folder(folder)
        shutil.rmtree(writing, ignore_errors=True)
        try:
            _write_model(session, writing, value_head)
            for file in sorted(writing.iterdir()):
                fsync(file)
                os.replace(file, folder / file.name)
            fsync(folder)
        finally:
            shutil.rmtree(writing, ignore_errors=True)


def generation_settings(
    sampling: SamplingSection, tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """By which `generate` samples what was trained: temperature and length, no top-k, no top-p."""
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if pad is None else pad,
    )


def _write_model(session: Session, folder: Path, value_head: bool) -> None:
    lm = session.policy.lm
    base: Any = lm.get_base_model() if isinstance(lm, PeftModel) else lm
    generation = generation_settings(session.config.sampling, session.tokenizer)
    inherited, base.generation_config = base.generation_config, generation
    try:
        lm.save_pretrained(str(folder))  # type: ignore[operator]
    finally:
        base.generation_config = inherited
    generation.save_pretrained(str(folder))
    session.tokenizer.save_pretrained(str(folder))
    if not value_head:
        return
    head = {name: p.detach().cpu() for name, p in session.policy.value_head.state_dict().items()}
    save_file(head, folder / "value_head.safetensors")
