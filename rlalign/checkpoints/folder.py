"""Checkpoints: folders of safetensors and JSON that are whole or not there, and never run code.

    checkpoints/step-000040/   <name>.safetensors ...   state.json   manifest.json
    checkpoints/best.json      which one is best, and by which metric
    checkpoints/damaged-step-000040/   one that a resume passed over, kept to be looked at

Only one process writes. A name with a leading dot is work in progress, or waits for its removal.
"""

import itertools
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlalign.files import (
    FileError,
    check_json,
    fsync,
    has_all_files,
    make_folder,
    read_json,
    reason_of,
    seal,
    verify,
    write_atomically,
)
from rlalign.problems import CheckpointError as CheckpointError

logger = logging.getLogger(__name__)

STATE, BEST = "state.json", "best.json"
WRITING, REPLACED, DELETING = ".writing-", ".replaced-", ".deleting-"
DAMAGED = "damaged-"
ENTRY = 256  # bytes, at most, that a file's header or the manifest spends on one tensor or file
STEP_NAME = re.compile(r"step-(\d{6,})")
TENSORS_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]  # on the CPU
    state: dict[str, Any]


@dataclass(frozen=True)
class Best:
    path: Path
    metric: str
    value: float


def save_checkpoint(
    root: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write `root/step-<step>` so that a crash leaves it whole or absent, then rotate.

    `state` comes back equal: strings, null, finite numbers, lists and mappings of them (a tuple
    comes back as a list). `extra` may write more into the folder that it is given. Left in the end
    are the `keep` newest up to `step` and the best one; later steps go, as `rewind` says.
    """
    name = f"step-{step:06d}"
    writing = root / (WRITING + name)
    try:
        check_json(state, "state")
        text = json.dumps(state, allow_nan=False)
        make_folder(root)
        _remove_stale(root, WRITING, DELETING)
        _check_room(root, tensors, text)
        writing.mkdir()
        _write_files(writing, tensors, text, extra)
        seal(writing, {"step": step, "tensors": sorted(tensors)})
        _put_in_place(root, name)
    except BaseException as error:
        shutil.rmtree(writing, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise CheckpointError(
                f"{root / name} could not be written: {reason_of(error)}; those before it are "
                "untouched. Make room or set run.dir to another disk"
            ) from error
        if isinstance(error, FileError):
            raise CheckpointError(f"{root / name} was not written: {error}") from error
        raise
    _remove_stale(root, REPLACED)
    rewind(root, step)
    _rotate(root, keep)
    return root / name


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, after size and sha256 of every file in it were checked."""
    manifest = _verified(path)
    tensors = {}
    for name in manifest["tensors"]:
        file = path / f"{name}.safetensors"
        try:
            tensors[name] = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is no safetensors file: {error}") from error
    try:
        return Checkpoint(path, manifest["step"], tensors, read_json(path / STATE))
    except FileError as error:
        raise CheckpointError(str(error)) from error


def newest_first(root: Path) -> list[Path]:
    """The checkpoints that lie there, sound or not."""
    return [path for _, path in sorted(_steps(root, with_replaced=True), reverse=True)]


def newest_sound(root: Path) -> Path | None:
    """The newest checkpoint that is as it was written; damaged ones are passed over and logged."""
    for path in newest_first(root):
        try:
            _verified(path)
        except CheckpointError as error:
            logger.warning("a damaged checkpoint was passed over: %s", error)
        else:
            return path
    return None


def rewind(root: Path, step: int) -> None:
    """Remove the checkpoints after `step`, and the best mark where it is on one of them.

    For a run that resumes from another checkpoint than its newest: the next automatic resume would
    otherwise jump to the future that was left. Damaged ones are set aside instead. What a kill left
    half written or half removed goes too.
    """
    _remove_stale(root, WRITING, DELETING)
    for _, path in _steps(root):
        shutil.rmtree(path.with_name(REPLACED + path.name), ignore_errors=True)
    for path in sorted(path for number, path in _steps(root) if number > step):
        try:
            _verified(path)
        except CheckpointError:
            set_aside(path)
        else:
            logger.warning("%s was removed, because the run went back to step %d", path, step)
            _unmark(path)
            _delete(path)


def set_aside(path: Path) -> Path:
    """Rename a checkpoint, so that no run goes on from it and its content can be looked at."""
    name = DAMAGED + path.name.removeprefix(REPLACED)
    taken = {each.name for each in path.parent.iterdir()}
    free = next(
        n for i in itertools.count(1) if (n := name if i == 1 else f"{name}-{i}") not in taken
    )
    _unmark(path)
    os.rename(path, path.with_name(free))
    fsync(path.parent)
    logger.warning("%s was set aside as %s; delete it when it is of no use", path, free)
    return path.with_name(free)


def mark_best(root: Path, path: Path, metric: str, value: float) -> None:
    """Record `path` as the best checkpoint, which rotation keeps."""
    in_root = path.parent.resolve() == root.resolve() and STEP_NAME.fullmatch(path.name)
    if not in_root or not math.isfinite(value):
        raise ValueError(f"{path} with {metric}={value} cannot be the best checkpoint of {root}")
    content = {"checkpoint": path.name, "metric": metric, "value": float(value)}
    write_atomically(root / BEST, json.dumps(content, indent=1) + "\n")


def best(root: Path) -> Best | None:
    """The checkpoint that was marked last, if it is still there."""
    file = root / BEST
    if not file.exists():
        return None
    try:
        content = read_json(file)
        name, metric, value = content["checkpoint"], content["metric"], float(content["value"])
        if STEP_NAME.fullmatch(name) and isinstance(metric, str) and (root / name).is_dir():
            return Best(root / name, metric, value)
        logger.warning("%s names %r, which is no checkpoint in %s", file, name, root)
    except (FileError, KeyError, TypeError, ValueError) as error:
        logger.warning("no checkpoint counts as the best, because %s is damaged: %s", file, error)
    return None


def _unmark(path: Path) -> None:
    """Take the best mark from a checkpoint that goes, if it is on it."""
    root = path.parent
    marked = best(root) if (root / BEST).exists() else None
    if marked is not None and marked.path == path:
        (root / BEST).unlink()


def _write_files(
    folder: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: str,
    extra: Callable[[Path], None] | None,
) -> None:
    for name, group in tensors.items():
        if not TENSORS_NAME.fullmatch(name):
            raise CheckpointError(f"{name!r} cannot name a file of tensors")
        save_file(_separate(group), folder / f"{name}.safetensors")
    (folder / STATE).write_text(state, encoding="utf-8")
    if extra is not None:
        extra(folder)


def _separate(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no storage, as safetensors wants them."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in group.items():
        tensor = tensor.detach().contiguous()
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return separate


def _check_room(root: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: str) -> None:
    """Refuse what will not fit before it is begun. One that is replaced lies there until the end,
    so its room does not count; what `extra` writes is not known."""
    every = [tensor for group in tensors.values() for tensor in group.values()]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in every)
    needed += len(state.encode()) + ENTRY * (len(every) + len(tensors) + 2)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise CheckpointError(
            f"a checkpoint of {needed / 2**20:.1f} MB does not fit into {root}, where "
            f"{free / 2**20:.1f} MB are free; make room, lower checkpoint.keep or set run.dir to "
            "another disk"
        )


def _put_in_place(root: Path, name: str) -> None:
    final, replaced = root / name, root / (REPLACED + name)
    if final.exists():
        # A folder cannot be renamed over a full one. Between these two renames `newest_sound`
        # still finds the old one under its other name.
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
    os.rename(root / (WRITING + name), final)
    fsync(root)


def _rotate(root: Path, keep: int) -> None:
    complete = [path for _, path in sorted(_steps(root)) if has_all_files(path)]
    marked = best(root)
    for path in complete[: -max(keep, 1)]:
        if marked is None or path != marked.path:
            _delete(path)


def _delete(path: Path) -> None:
    deleting = path.with_name(DELETING + path.name)  # out of sight at once, then gone
    os.rename(path, deleting)
    shutil.rmtree(deleting, ignore_errors=True)


def _remove_stale(root: Path, *prefixes: str) -> None:
    for path in root.iterdir() if root.is_dir() else ():
        if path.name.startswith(prefixes):
            shutil.rmtree(path, ignore_errors=True)


def _steps(root: Path, with_replaced: bool = False) -> Iterator[tuple[int, Path]]:
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    for name in names:
        match = STEP_NAME.fullmatch(name.removeprefix(REPLACED) if with_replaced else name)
        is_folder = (root / name).is_dir() and not (root / name).is_symlink()
        if match and is_folder and (name == match[0] or match[0] not in names):
            yield int(match[1]), root / name


def _verified(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file is as it was written."""
    try:
        manifest = verify(path)
    except (FileError, OSError) as error:
        raise CheckpointError(str(error)) from error
    step, names = manifest.get("step"), manifest.get("tensors")
    if type(step) is not int or not isinstance(names, list):
        raise CheckpointError(f"the manifest of {path} is not one of a checkpoint")
    named = STEP_NAME.fullmatch(path.name.removeprefix(REPLACED))
    if named and int(named[1]) != step:
        raise CheckpointError(
            f"{path} holds step {step}; it was renamed, so name it step-{step:06d} again"
        )
    if not {STATE, *(f"{name}.safetensors" for name in names)} <= set(manifest["files"]):
        raise CheckpointError(f"the manifest of {path} leaves out files of the checkpoint")
    return manifest
