"""A training state as tensors and JSON, and the finished model in Hugging Face's format."""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from rlalign.checkpoint import Checkpoint, CheckpointError, flatten_optimizer, restore_optimizer
from rlalign.session import Session
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


@torch.no_grad()
def restore_training(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Continue from a checkpoint; raises CheckpointError where it does not fit this run."""
    state, saved = checkpoint.state, checkpoint.tensors["policy"]
    world = trainer.session.ranks.size
    if state["world_size"] != world:
        raise CheckpointError(
            f"{checkpoint.path} was written by {state['world_size']} processes and this run has "
            f"{world}: the samples would be drawn differently; start as many processes as before"
        )
    method = trainer.objective.title
    if state.get("method", method) != method:
        raise CheckpointError(
            f"{checkpoint.path} was written by {state['method']} and this run is {method}: their "
            "optimisers and states differ; resume with the same method, or start from the saved "
            "model by model.name"
        )
    parameters = trainer.session.policy.trainable()
    if parameters.keys() != saved.keys():
        odd = sorted(parameters.keys() ^ saved.keys())[0]
        raise CheckpointError(
            f"{checkpoint.path} holds another model's parameters ({odd} is in only one of the "
            "two); resume with the model.* settings that it was made with"
        )
    for name, parameter in parameters.items():
        if parameter.shape != saved[name].shape:
            raise CheckpointError(
                f"{checkpoint.path}: {name} has shape {tuple(saved[name].shape)}, the model's is "
                f"{tuple(parameter.shape)}; resume with the model.* settings that it was made with"
            )
        parameter.copy_(saved[name])
    restore_optimizer(trainer.optimizer, checkpoint.tensors["optimizer"], state["optimizer"])
    optim = trainer.session.config.optim
    for group in trainer.optimizer.param_groups:  # the run's settings, if they were changed
        group.update(betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)
    try:
        own = checkpoint.tensors.get("objective", {})
        trainer.objective.load_state_dict(state["objective"], own)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    saved_target = state.get("target")  # none: it is older than targets, and has no moments
    if saved_target is not None and saved_target["hash"] == trainer.target.hash:
        trainer.target = trainer.target.restored(saved_target)
    elif saved_target is not None and not trainer.target.is_fitted:
        logger.warning("the target is another than the checkpoint's: its moments are fitted anew")
    trainer.iteration = int(state["iteration"])
    trainer.samples = int(state["samples"])
    trainer.optimizer_steps = int(state["optimizer_steps"])
    trainer.skipped_in_a_row = int(state["skipped_in_a_row"])
    trainer.budget = int(state.get("micro_batch_tokens", trainer.budget))


def save_model(session: Session, folder: Path, value_head: bool = True) -> None:
    """The policy as plain transformers and peft load it: an adapter, or the whole model.

    The generation settings beside it sample the distribution that was trained: its temperature and
    length, no top-k, no top-p. The value head, where there is one, lies in
    `value_head.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lm, sampling = session.policy.lm, session.config.sampling
    base: Any = lm.get_base_model() if isinstance(lm, PeftModel) else lm
    generation = GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=session.tokenizer.eos_token_id,
        pad_token_id=session.prompts.pad_id,
    )
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
