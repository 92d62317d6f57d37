import hashlib
import json
import logging
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import fork
from some_checkpoints import names, save

from rlalign.checkpoints.folder import (
    CheckpointError,
    load_checkpoint,
    mark_best,
    newest_sound,
    save_checkpoint,
)
from rlalign.files import MANIFEST, read_manifest, seal


def in_child(work: Callable[[], None]) -> int:
    """The exit status of `work` done in a forked process, which nothing tidies up after."""
    return os.waitpid(fork(work), 0)[1]


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
        hidden = [name for name in names(root) if name.startswith(".")]
        assert all(name.startswith(".best.json.") for name in hidden)
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
