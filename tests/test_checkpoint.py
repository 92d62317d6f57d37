import json
import os
import random
from pathlib import Path

import pytest
import torch
from some_checkpoints import STATE, names, save, tensors
from torch.testing import assert_close

from rlalign.checkpoints.folder import (
    CheckpointError,
    best,
    load_checkpoint,
    mark_best,
    newest_sound,
    rewind,
    save_checkpoint,
)
from rlalign.checkpoints.optimizer_state import flatten_optimizer, restore_optimizer
from rlalign.files import MANIFEST


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    group = {
        "t": shared.T,
        "tied": shared,
        "too": shared,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 2),
    }

    def adapter(folder: Path) -> None:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text("{}")

    path = save_checkpoint(tmp_path, 40, {"policy": group}, STATE, keep=1, extra=adapter)
    loaded = load_checkpoint(path)
    assert path.name == "step-000040" and loaded.step == 40
    assert loaded.state == STATE
    assert loaded.state["beta"].hex() == STATE["beta"].hex()
    for key, tensor in group.items():
        assert loaded.tensors["policy"][key].dtype == tensor.dtype
        assert torch.equal(loaded.tensors["policy"][key], tensor)
    assert "adapter/adapter_config.json" in json.loads((path / MANIFEST).read_text())["files"]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"kl": {"coef": float("nan")}}, "state.kl.coef is nan"),
        ({"kl": [1.0, float("inf")]}, r"state.kl\[1\] is inf"),
        ({"kl": {1: 2}}, "state.kl has the key 1"),
        ({"kl": torch.ones(1)}, "state.kl is a Tensor"),
    ],
)
def test_a_state_that_json_would_alter_is_refused_by_its_name(tmp_path, state, where):
    with pytest.raises(CheckpointError, match=where):
        save_checkpoint(tmp_path, 1, tensors(1), state, keep=1)
    assert names(tmp_path) == set()


def test_a_link_in_the_extra_files_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="symbolic link"):
        save_checkpoint(
            tmp_path, 1, {}, {}, keep=1, extra=lambda folder: (folder / "x").symlink_to("/etc")
        )


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert newest_sound(tmp_path / "absent") is None
    assert newest_sound(tmp_path) is None


@pytest.mark.parametrize("seed", range(20))
def test_rotation_keeps_the_newest_and_the_best_and_never_less_than_one(
    tmp_path, seed, monkeypatch
):
    rng = random.Random(seed)
    keep = rng.randint(1, 4)
    saved: list[str] = []
    marked = None
    rename = os.rename

    def checked_rename(source: Path, target: Path) -> None:
        rename(source, target)
        assert newest_sound(tmp_path) is not None or not saved

    monkeypatch.setattr(os, "rename", checked_rename)
    for step in sorted(rng.sample(range(100), 8)):
        path = save(tmp_path, step, keep=keep)
        saved.append(path.name)
        expected = set(saved[-keep:]) | ({marked} if marked else set())
        assert {n for n in names(tmp_path) if n != "best.json"} == expected
        if rng.random() < 0.4:
            mark_best(tmp_path, path, "eval/score", step)
            marked = path.name
            assert best(tmp_path).path == path and best(tmp_path).value == step


def test_going_back_removes_the_later_steps_and_their_best_mark(tmp_path):
    for step in (10, 20, 30):
        path = save(tmp_path, step, keep=3)
    mark_best(tmp_path, path, "eval/score", 1.0)
    rewind(tmp_path, 10)
    assert names(tmp_path) == {"step-000010"} and best(tmp_path) is None
    for step in (20, 30, 15):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == {"step-000015"}


def test_a_damaged_best_mark_counts_as_none(tmp_path, caplog):
    save(tmp_path, 10)
    for content in ("{", "[]", '{"checkpoint": "../x", "metric": "a", "value": 1}', '{"value": 1}'):
        (tmp_path / "best.json").write_text(content)
        assert best(tmp_path) is None
        assert "best.json" in caplog.text
        caplog.clear()


def optimizer(seed: int, steps: int) -> tuple[torch.nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    groups = [
        {"params": model[0].parameters(), "lr": 1e-3 / 3, "weight_decay": 0.1},
        {"params": model[1].parameters(), "lr": torch.tensor(2e-3), "initial_lr": 0.1},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), amsgrad=True)
    for _ in range(steps):
        train(model, adam)
    return model, adam


def train(model: torch.nn.Module, adam: torch.optim.AdamW) -> None:
    adam.zero_grad()
    model(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
    adam.step()


def test_an_optimizer_goes_through_a_checkpoint_bit_by_bit(tmp_path):
    model, adam = optimizer(0, steps=3)
    flat, state = flatten_optimizer(adam)
    path = save_checkpoint(
        tmp_path, 3, {"optim": flat, "policy": model.state_dict()}, state, keep=1
    )
    loaded = load_checkpoint(path)
    other, restored = optimizer(1, steps=1)
    other.load_state_dict(loaded.tensors["policy"])
    restore_optimizer(restored, loaded.tensors["optim"], loaded.state)
    assert_close(restored.state_dict(), adam.state_dict(), rtol=0, atol=0)
    assert restored.param_groups[0]["betas"] == (0.9, 0.95)
    assert restored.param_groups[1]["initial_lr"] == 0.1
    for _ in range(3):
        train(model, adam)
        train(other, restored)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert torch.equal(  # what was loaded is not what the optimiser wrote into
        loaded.tensors["optim"]["0.exp_avg"], load_checkpoint(path).tensors["optim"]["0.exp_avg"]
    )


def test_an_optimizer_over_other_parameters_is_refused():
    _, adam = optimizer(0, steps=1)
    flat, state = flatten_optimizer(adam)
    other = torch.optim.AdamW([torch.zeros(2)])
    with pytest.raises(CheckpointError, match="groups of"):
        restore_optimizer(other, flat, state)
    flat["0.exp_avg"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"exp_avg of parameter 0 has the shape \[7\]"):
        restore_optimizer(adam, flat, state)
