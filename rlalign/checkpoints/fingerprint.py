"""What a run's numbers rest on beside its settings, as hashes: a resume under others says so."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from rewards import registry
from rlalign.policy import Policy
from rlalign.prompts import PromptSet
from rlalign.session import Session

SAMPLED = 4096  # values of a tensor, evenly spaced: another training moves them all


def fingerprint(session: Session) -> dict[str, Any]:
    """The base model, the prompts, the reward files, and what computes, as JSON values."""
    frozen = frozen_weights(session.policy)
    files = session.config.reward_files
    return {
        "base": hash_of_weights(frozen),
        "base_dtype": str(next(iter(frozen.values())).dtype).removeprefix("torch."),
        "prompts": hash_of_prompts(session.prompts, session.eval_prompts),
        "reward_files": {str(path): registry.sha256_of(path) for path in files},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device_name(session.ranks.device),
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is another than it was, in words; what an older checkpoint does not say is left out."""
    found = []
    known = {key for key in now if key in saved and saved[key] != now[key]}
    if "base_dtype" in known:
        found.append(f"the base model is in {now['base_dtype']} in place of {saved['base_dtype']}")
    elif "base" in known:
        found.append("the base model has other weights")
    if "prompts" in known:
        found.append("the prompts are others, so their order is another one too")
    if "reward_files" in known:
        held = set(saved["reward_files"].values())
        changed = [file for file, digest in now["reward_files"].items() if digest not in held]
        found += [f"{file} is not the file that it was" for file in changed]
    for key in ("torch", "threads", "device"):
        if key in known:
            found.append(f"{key}: {now[key]} in place of {saved[key]}")
    return found


def frozen_weights(policy: Policy) -> dict[str, torch.Tensor]:
    """The weights that stay: under adapters the base, else those of the frozen copy."""
    if policy.uses_adapter:
        return {name: p for name, p in policy.lm.named_parameters() if not p.requires_grad}
    with policy.reference() as reference:
        return dict(reference.lm.named_parameters())


@torch.no_grad()
def hash_of_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 of names, shapes and evenly spaced values: of 100 tensors in some milliseconds."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach()
        values = tensor.flatten()[:: max(tensor.numel() // SAMPLED, 1)].contiguous()
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(values.view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


def hash_of_prompts(*sets: PromptSet) -> str:
    """sha256 of every prompt's tokens and columns, in their order."""
    digest = hashlib.sha256()
    for prompts in sets:
        digest.update(f"{len(prompts)} prompts".encode())
        for i, ids in enumerate(prompts.ids):
            row = {name: column[i] for name, column in sorted(prompts.columns.items())}
            digest.update(json.dumps([list(ids), row], default=str).encode())
    return digest.hexdigest()


def device_name(device: torch.device) -> str:
    """What computes: a GPU's name, or a CPU's vector instructions, by which sums differ."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})"
