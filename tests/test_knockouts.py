"""The proof of exact resume has teeth: each part of the state, left as it was, makes it fail."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exact_runs
import hashes
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlalign.checkpoints import resuming
from rlalign.checkpoints.folder import Checkpoint
from rlalign.files import MANIFEST, read_manifest, seal
from rlalign.trainer import Trainer

KEEP = {"checkpoint": {"every": 1, "keep": 9}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By case: a whole run with every checkpoint, and its hashes."""
    root, known = tmp_path_factory.mktemp("whole"), {}

    def find(case: str) -> tuple[Path, dict[str, str]]:
        if case not in known:
            run = exact_runs.whole(root / case, case, **KEEP)
            known[case] = run, hashes.of_run(run)
        return known[case]

    return find


def resumed(folder: Path, case: str, whole: Path, forget: Callable[[Path, Path], None]) -> Path:
    """A run that goes on after iteration 3 once `forget` was given that state and the first."""
    shutil.copytree(whole, folder / "a")
    checkpoints = folder / "a/checkpoints"
    shutil.rmtree(checkpoints / "step-000004")
    newest, first = checkpoints / "step-000003", checkpoints / "step-000001"
    forget(newest, first)
    about = {key: read_manifest(newest)[key] for key in ("step", "tensors")}
    (newest / MANIFEST).unlink()
    seal(newest, about)
    return exact_runs.whole(folder, case, **KEEP)


def state_as_at_first(*path: str) -> Callable[[Path, Path], None]:
    def forget(newest: Path, first: Path) -> None:
        now, then = (json.loads((each / "state.json").read_text()) for each in (newest, first))
        inner: Any = now
        for key in path[:-1]:
            inner, then = inner[key], then[key]
        assert inner[path[-1]] != then[path[-1]]
        inner[path[-1]] = then[path[-1]]
        (newest / "state.json").write_text(json.dumps(now))

    return forget


def tensors_as_at_first(file: str, part: str) -> Callable[[Path, Path], None]:
    def forget(newest: Path, first: Path) -> None:
        now, then = (load_file(each / f"{file}.safetensors") for each in (newest, first))
        parts = {name: then[name] for name in now if part in name}
        assert any(not torch.equal(tensor, now[name]) for name, tensor in parts.items())
        save_file(now | parts, newest / f"{file}.safetensors")

    return forget


PARTS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "value head": ("ppo", tensors_as_at_first("policy", "value_head")),
    "weights": ("reinforce", tensors_as_at_first("policy", "lm.")),
    "adapters": ("ppo-lora", tensors_as_at_first("policy", "lora_B")),
    "first moments": ("ppo", tensors_as_at_first("optimizer", ".exp_avg")),
    "second moments": ("dpg", tensors_as_at_first("optimizer", ".exp_avg_sq")),
    "Adam's steps": ("reinforce", tensors_as_at_first("optimizer", ".step")),
    "samples": ("reinforce", state_as_at_first("samples")),
    "optimizer steps": ("dpg", state_as_at_first("optimizer_steps")),
    "KL coefficient": ("reinforce", state_as_at_first("objective", "controller", "coef")),
    "running scale": ("ppo", state_as_at_first("objective", "scale")),
    "critic's warm-up": ("warmup", state_as_at_first("objective", "iteration")),
    "lambda, policy": ("policy", state_as_at_first("target", "lambdas")),
    "lambda, importance": ("importance", state_as_at_first("target", "lambdas")),
    "log Z of DPG": ("dpg", state_as_at_first("objective", "partition")),
    "log Z of PPO": ("divergence", state_as_at_first("objective", "pseudo")),
    "proposal": ("dpg", tensors_as_at_first("objective", "")),
    "reward's state": ("wild", state_as_at_first("rewards")),
    "audit": ("ppo", state_as_at_first("audit")),
}


def test_with_nothing_forgotten_the_proof_holds(tmp_path, runs):
    whole, hashed = runs("ppo")
    assert hashes.of_run(resumed(tmp_path, "ppo", whole, lambda *_: None)) == hashed


def test_the_proof_notices_an_iteration_that_is_not_counted(tmp_path, runs, monkeypatch):
    """It says which prompts are due, which random numbers, and how far the schedule is."""
    restore = resuming.restore_training

    def forgetful(trainer: Trainer, checkpoint: Checkpoint) -> None:
        restore(trainer, checkpoint)
        trainer.iteration -= 1

    whole, hashed = runs("ppo")
    monkeypatch.setattr(resuming, "restore_training", forgetful)
    assert hashes.of_run(resumed(tmp_path, "ppo", whole, lambda *_: None)) != hashed


@pytest.mark.parametrize("part", PARTS)
def test_the_proof_notices_a_part_that_is_forgotten(tmp_path, runs, part):
    case, forget = PARTS[part]
    whole, hashed = runs(case)
    found = hashes.of_run(resumed(tmp_path, case, whole, forget))
    assert found.keys() == hashed.keys()
    assert found != hashed
