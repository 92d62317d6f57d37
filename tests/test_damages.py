"""Every way in which a checkpoint's files can go wrong: named, passed over, never a traceback."""

import json
import os
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from some_checkpoints import names, save

from rlalign.checkpoints.folder import (
    CheckpointError,
    best,
    load_checkpoint,
    mark_best,
    newest_first,
    newest_sound,
    rewind,
    save_checkpoint,
)
from rlalign.files import MANIFEST, read_manifest, seal

FILE = "policy.safetensors"


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A test that waits for ever, as on a pipe, fails."""

    def late(*_: object) -> None:
        raise AssertionError("it waits for ever")  # no OSError, which would count as damage

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def sealed(folder: Path, **about: object) -> None:
    """Seal a folder anew, as one who knows the format could."""
    kept = read_manifest(folder)
    (folder / MANIFEST).unlink()
    seal(folder, {"step": kept["step"], "tensors": kept["tensors"], **about})


def empty(path: Path) -> None:
    (path / FILE).write_bytes(b"")


def zeroed(path: Path) -> None:
    (path / FILE).write_bytes(bytes((path / FILE).stat().st_size))


def appended(path: Path) -> None:
    with (path / FILE).open("ab") as file:
        file.write(b"\0")


def swapped(path: Path) -> None:
    shutil.copy(path.with_name("step-000010") / FILE, path / FILE)


def all_swapped(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step-000010"), path)


def linked(path: Path) -> None:
    shutil.move(path / FILE, path.parent / "elsewhere")
    (path / FILE).symlink_to(path.parent / "elsewhere")


def pipe(path: Path) -> None:
    (path / FILE).unlink()
    os.mkfifo(path / FILE)


def pipe_for_a_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)


def folder_for_a_file(path: Path) -> None:
    (path / FILE).unlink()
    (path / FILE).mkdir()


def extra(path: Path) -> None:
    (path / "model.bin").write_bytes(b"?")


def no_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def empty_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def key_twice_in_a_manifest(path: Path) -> None:
    text = (path / MANIFEST).read_text(encoding="utf-8")
    (path / MANIFEST).write_text(text.replace('"step": 20', '"step": 10, "step": 20'), "utf-8")


def key_twice_in_a_state(path: Path) -> None:
    text = (path / "state.json").read_text(encoding="utf-8")
    (path / "state.json").write_text(text.replace("{", '{"step": 1, ', 1), encoding="utf-8")
    sealed(path)


def list_for_a_state(path: Path) -> None:
    (path / "state.json").write_text("[]", encoding="utf-8")
    sealed(path)


def deep_state(path: Path) -> None:
    (path / "state.json").write_text('{"a": ' * 10**5 + "1" + "}" * 10**5, encoding="utf-8")
    sealed(path)


def nan_in_a_state(path: Path) -> None:
    (path / "state.json").write_text('{"beta": NaN}', encoding="utf-8")
    sealed(path)


def bytes_for_a_state(path: Path) -> None:
    (path / "state.json").write_bytes(b"\xff\xfe{}")
    sealed(path)


def huge_header(path: Path) -> None:
    (path / FILE).write_bytes(struct.pack("<Q", 2**60) + b"{}")
    sealed(path)


def long_header(path: Path) -> None:
    (path / FILE).write_bytes(struct.pack("<Q", 2**27) + b"{" + b" " * 100)
    sealed(path)


def tensors_past_the_end(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    (path / FILE).write_bytes(struct.pack("<Q", len(header)) + header.encode())
    sealed(path)


def step_of_text(path: Path) -> None:
    sealed(path, step="20")


def step_of_another(path: Path) -> None:
    sealed(path, step=10)


def tensors_not_named(path: Path) -> None:
    sealed(path, tensors=["policy", "gone"])


def tensors_of_numbers(path: Path) -> None:
    sealed(path, tensors=[1, 2])


DAMAGES = [
    *(empty, zeroed, appended, swapped, all_swapped, linked, pipe, pipe_for_a_manifest),
    *(folder_for_a_file, extra, no_manifest, empty_folder, key_twice_in_a_manifest),
    *(key_twice_in_a_state, list_for_a_state, deep_state, nan_in_a_state, bytes_for_a_state),
    *(huge_header, long_header, tensors_past_the_end, step_of_text, step_of_another),
    *(tensors_not_named, tensors_of_numbers),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named_and_kept_out_of_the_way(tmp_path, damage):
    """Not all of it is seen without loading, but what loads is what was written."""
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    mark_best(tmp_path, newest, "eval/score", 1.0)
    damage(newest)
    with pytest.raises(CheckpointError, match="step-000020"):
        load_checkpoint(newest)
    assert newest_first(tmp_path) == [newest, tmp_path / "step-000010"]
    save(tmp_path, 30, keep=1)  # a run that went on from an older one
    load_checkpoint(tmp_path / "step-000030")


@pytest.mark.parametrize("damage", [zeroed, linked, pipe, extra, no_manifest, all_swapped])
def test_going_back_sets_a_damaged_checkpoint_aside(tmp_path, damage, caplog):
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    mark_best(tmp_path, newest, "eval/score", 1.0)
    damage(newest)
    assert newest_sound(tmp_path) == tmp_path / "step-000010"
    rewind(tmp_path, 10)
    left = {"step-000010", "damaged-step-000020"}
    assert names(tmp_path) - {"elsewhere"} == left and best(tmp_path) is None
    assert "was set aside as damaged-step-000020" in caplog.text
    empty_folder(save(tmp_path, 20))
    rewind(tmp_path, 10)
    assert names(tmp_path) - {"elsewhere"} == {*left, "damaged-step-000020-2"}
    for step in (20, 30):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) - {"elsewhere"} == {
        "step-000030", "damaged-step-000020", "damaged-step-000020-2"
    }  # fmt: skip


def test_a_link_in_a_checkpoints_place_is_none(tmp_path):
    other = save(tmp_path / "other", 20)
    root = tmp_path / "checkpoints"
    save(root, 10)
    (root / "step-000020").symlink_to(other)
    assert newest_first(root) == [root / "step-000010"]
    rewind(root, 5)
    assert other.is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    newest = save(tmp_path, 20)
    (newest / FILE).chmod(0)
    with pytest.raises(CheckpointError, match=FILE):
        load_checkpoint(newest)


def test_a_copy_under_another_name_is_a_checkpoint_too(tmp_path):
    path = save(tmp_path, 20)
    shutil.copytree(path, tmp_path / "the-good-one")
    assert load_checkpoint(tmp_path / "the-good-one").step == 20


def test_the_room_that_is_asked_for_is_about_what_is_taken(tmp_path, monkeypatch):
    """State and headers count: a run of few weights has most of its bytes there."""
    state = {"pairs": {f"{i:032x}": [0.1 * i, 1.0] for i in range(20_000)}}
    path = save_checkpoint(tmp_path, 1, {"policy": {}}, state, keep=1)
    taken = sum(file.stat().st_size for file in path.iterdir())
    for free, fits in ((taken + 2000, True), (taken - 2000, False)):
        usage = type("usage", (), {"free": free})
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        if fits:
            save_checkpoint(tmp_path, 2, {"policy": {}}, state, keep=1)
        else:
            with pytest.raises(CheckpointError, match="does not fit into"):
                save_checkpoint(tmp_path, 3, {"policy": {}}, state, keep=1)
