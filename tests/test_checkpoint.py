import hashlib
import json
import logging
import os
import pickle
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from rlalign.checkpoint import (
    CheckpointError,
    best,
    flatten_optimizer,
    load_checkpoint,
    mark_best,
    newest_sound,
    restore_optimizer,
    rewind,
    save_checkpoint,
)
from rlalign.files import MANIFEST, read_manifest, seal

STATE = {"cursor": [1, 2], "rng": 2**80 + 1, "beta": 0.1 + 0.2, "name": "ü", "none": None}


def tensors(value: float, size: int = 8) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "policy": {"a": torch.full((size,), value), "b": torch.ones(2, dtype=torch.bfloat16)},
        "rng": {"rank0": torch.arange(5, dtype=torch.uint8)},
    }


def save(root: Path, step: int, keep: int = 2, size: int = 8) -> Path:
    return save_checkpoint(root, step, tensors(step, size), {**STATE, "step": step}, keep=keep)


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


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


def in_child(work: Callable[[], None]) -> int:
    """The exit status of `work` done in a forked process, which nothing tidies up after."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir")


def die_at_call(number: int) -> None:
    """Kill this process at its n-th file-system call from now on, fsync included."""
    calls = 0

    def count(event: str) -> None:
        nonlocal calls
        if event in FILE_EVENTS:
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(lambda event, args: count(event))
    fsync = os.fsync
    os.fsync = lambda descriptor: (count("open"), fsync(descriptor))[1]


@pytest.mark.parametrize("second", [20, 10])  # a later step, and the same step written again
def test_a_kill_at_any_file_system_call_leaves_a_sound_checkpoint(tmp_path, second):
    killed, first_step = 0, 10
    for number in range(1, 400):
        root = tmp_path / str(number)
        first = save(root, first_step, keep=1)
        if second == first_step:
            mark_best(root, first, "eval/score", 1.0)

        def work(root: Path = root, number: int = number) -> None:
            die_at_call(number)
            mark_best(root, save(root, second, keep=1), "eval/score", 2.0)

        status = in_child(work)
        found = newest_sound(root)
        assert found is not None, f"nothing sound after a kill at call {number}"
        assert load_checkpoint(found).state["step"] in (first_step, second)
        for path in root.glob("step-*"):
            load_checkpoint(path)  # nothing under its own name is half there
        save(root, 30, keep=1)
        assert {n for n in names(root) if n.startswith(".")} - {".best.json.tmp"} == set()
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        killed += 1
    assert status == 0 and killed > 25


@pytest.mark.parametrize("limit", [0, 100, 3000, 6000])
def test_a_kill_in_the_middle_of_a_write_leaves_a_sound_checkpoint(tmp_path, limit):
    save(tmp_path, 10)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        save(tmp_path, 20, size=2000)

    assert os.WTERMSIG(in_child(work)) == signal.SIGXFSZ
    assert newest_sound(tmp_path) == tmp_path / "step-000010"
    assert names(tmp_path) == {"step-000010", ".writing-step-000020"}
    save(tmp_path, 20)
    assert names(tmp_path) == {"step-000010", "step-000020"}


@pytest.mark.parametrize("limit", [0, 100, 3000, 6000])
def test_a_full_disk_is_an_error_that_leaves_the_old_one_and_no_rubbish(tmp_path, limit):
    save(tmp_path, 10)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(CheckpointError, match=r"could not be written.*set run.dir"):
            save(tmp_path, 20, size=2000)

    assert in_child(work) == 0
    assert names(tmp_path) == {"step-000010"}
    load_checkpoint(tmp_path / "step-000010")


def test_a_checkpoint_larger_than_the_disk_is_refused_before_writing(tmp_path):
    huge = {"policy": {"a": torch.empty(1, device="meta").expand(2**50)}}
    with pytest.raises(CheckpointError, match="does not fit"):
        save_checkpoint(tmp_path, 1, huge, {}, keep=1)
    assert names(tmp_path) == set()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", ["policy.safetensors", "rng.safetensors", "state.json", MANIFEST])
def test_damage_to_any_file_is_named_and_passed_over(tmp_path, caplog, name, damage):
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    damage(newest / name)
    with pytest.raises(CheckpointError, match=f"step-000020/{name}"):
        load_checkpoint(newest)
    with caplog.at_level(logging.WARNING):
        assert newest_sound(tmp_path) == tmp_path / "step-000010"
    assert "step-000020" in caplog.text


def test_a_flipped_bit_anywhere_in_a_manifest_changes_nothing_that_is_read(tmp_path):
    path = save(tmp_path, 10)
    content = (path / MANIFEST).read_bytes()
    refused = 0
    for index in range(len(content)):
        flipped = bytearray(content)
        flipped[index] ^= 4
        (path / MANIFEST).write_bytes(flipped)
        try:
            assert load_checkpoint(path).step == 10
        except CheckpointError as error:
            assert MANIFEST in str(error)
            refused += 1
    assert refused > 0.7 * len(content)  # the rest is white space


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert newest_sound(tmp_path / "absent") is None
    assert newest_sound(tmp_path) is None


class Canary:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["policy.safetensors", "rng.safetensors", "state.json", MANIFEST])
def test_a_pickle_under_any_name_runs_nothing(tmp_path, name, sealed):
    path = save(tmp_path, 10)
    trace = tmp_path / "trace"
    (path / name).write_bytes(pickle.dumps(Canary(trace)))
    if sealed and name != MANIFEST:
        seal(path, {"step": 10, "tensors": ["policy", "rng"]})
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(path)
    newest_sound(tmp_path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Canary(trace)))
    assert trace.exists()  # the canary does sing


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path):
    path = save(tmp_path, 10)
    (tmp_path / "out.safetensors").write_bytes((path / "rng.safetensors").read_bytes())
    files = read_manifest(path)["files"]
    files["../out.safetensors"] = files["rng.safetensors"]
    manifest = {"format": 1, "step": 10, "tensors": ["../out"], "files": files}
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / MANIFEST).write_text(json.dumps({**manifest, "sha256": digest}))
    with pytest.raises(CheckpointError, match="not a manifest of format"):
        load_checkpoint(path)


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
