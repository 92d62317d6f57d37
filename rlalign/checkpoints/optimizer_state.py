"""AdamW's state as tensors and JSON, and back, bit by bit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlalign.checkpoints.folder import CheckpointError

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's tensors by `<parameter's index>.<key>`, and the rest of it as JSON values."""
    content = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {"groups": [], "state": {}}
    for index, values in content["state"].items():
        rest["state"][str(index)] = _without_tensors(values, str(index), tensors)
    for index, group in enumerate(content["param_groups"]):
        rest["groups"].append(_without_tensors(group, f"group{index}", tensors))
    return tensors, rest


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Undo `flatten_optimizer`, bit by bit, on an optimiser over the same parameters."""
    groups = [dict(group) for group in state["groups"]]
    values: dict[int, dict[str, Any]] = {int(i): dict(rest) for i, rest in state["state"].items()}
    for name, tensor in tensors.items():
        owner, key = name.split(".", 1)
        target = groups[int(owner[5:])] if owner.startswith("group") else values[int(owner)]
        target[key] = tensor.clone()  # the optimiser will write into it
    _check_fit(optimizer, groups, values)
    for group, current in zip(groups, optimizer.param_groups, strict=True):
        for key, value in group.items():
            if isinstance(current.get(key), tuple):
                group[key] = tuple(value)  # betas, which JSON made a list
    optimizer.load_state_dict({"state": values, "param_groups": groups})


def _check_fit(
    optimizer: torch.optim.Optimizer,
    groups: list[dict[str, Any]],
    values: Mapping[int, Mapping[str, Any]],
) -> None:
    current = optimizer.state_dict()["param_groups"]
    ours, theirs = ([len(group["params"]) for group in each] for each in (current, groups))
    if theirs != ours:
        raise CheckpointError(f"the optimiser has groups of {ours} parameters, the file {theirs}")
    for group, own in zip(groups, current, strict=True):
        odd = sorted(group.keys() ^ own.keys())
        odd += [key for key in group.keys() & own.keys() if not _is_like(group[key], own[key])]
        if odd or group["params"] != own["params"]:
            raise CheckpointError(f"the optimiser's groups have other settings: {odd or 'params'}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entry in values.items():
        if not MOMENTS <= entry.keys() <= MOMENTS | {"max_exp_avg_sq"}:
            raise CheckpointError(f"the optimiser's state of parameter {index} is not AdamW's")
        for key, value in entry.items():
            shape = torch.Size() if key == "step" else parameters[index].shape
            if not isinstance(value, Tensor) or value.shape != shape:
                found = list(value.shape) if isinstance(value, Tensor) else value
                raise CheckpointError(
                    f"the optimiser's {key} of parameter {index} has the shape {found}, the "
                    f"parameter {list(shape)}"
                )


def _is_like(theirs: Any, ours: Any) -> bool:
    """Whether a group's setting may stand in another's place: a number for a number."""
    if isinstance(ours, (bool, str, type(None))):
        return type(theirs) is type(ours) and bool(theirs == ours)
    if isinstance(ours, (int, float)):
        return type(theirs) in (int, float)
    if isinstance(ours, Tensor):
        return isinstance(theirs, Tensor) and theirs.shape == ours.shape
    return isinstance(theirs, (list, tuple)) and all(type(x) in (int, float) for x in theirs)


def _without_tensors(
    values: Mapping[str, Any], owner: str, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """`values` without its tensors, which go into `tensors` as `<owner>.<key>`."""
    tensors.update({f"{owner}.{k}": v for k, v in values.items() if isinstance(v, Tensor)})
    return {key: value for key, value in values.items() if not isinstance(value, Tensor)}
