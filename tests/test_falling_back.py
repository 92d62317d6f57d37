"""What a run does with checkpoints that are damaged or do not fit, alone and as two processes."""

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exact_runs
import hashes
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlalign.audit import Audit
from rlalign.checkpoints import resuming
from rlalign.checkpoints.folder import Checkpoint, CheckpointError, load_checkpoint
from rlalign.checkpoints.resuming import Fault, Found, RunCheckpoints
from rlalign.evaluate import sample_rows
from rlalign.files import MANIFEST, read_manifest, seal
from rlalign.runs import RunFolder
from rlalign.trainer import Trainer

KEEP = {"checkpoint": {"every": 1, "keep": 9}}
CASE = "dpg"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return exact_runs.whole(tmp_path_factory.mktemp("whole"), CASE, **KEEP)


def broken_off(whole: Path, folder: Path) -> Path:
    """A copy of the run as it was after iteration 3; its newest checkpoint."""
    shutil.copytree(whole, folder / "a")
    shutil.rmtree(folder / "a/checkpoints/step-000004")
    return folder / "a/checkpoints/step-000003"


def edited(path: Path, file: str, change: Any) -> None:
    """Change the tensors of a file, or the state, and seal the checkpoint anew."""
    if file == "state.json":
        state = json.loads((path / file).read_text(encoding="utf-8"))
        change(state)
        (path / file).write_text(json.dumps(state), encoding="utf-8")
    else:
        tensors = load_file(path / file)
        change(tensors)
        save_file(tensors, path / file)
    manifest = read_manifest(path)
    (path / MANIFEST).unlink()
    seal(path, {"step": manifest["step"], "tensors": manifest["tensors"]})


def to_double(tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name].double()


def cut(tensors: dict[str, torch.Tensor]) -> None:
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = tensors[name][:1].clone()


def dropped(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[sorted(tensors)[0]]


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["x"] = tensors.pop(sorted(tensors)[0])


FILES = ["policy.safetensors", "optimizer.safetensors", "objective.safetensors"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", [to_double, cut, dropped, renamed])
def test_sealed_tensors_that_do_not_fit_are_passed_over(tmp_path, whole, file, change):
    newest = broken_off(whole, tmp_path)
    if (file, change) == ("optimizer.safetensors", to_double):
        pytest.skip("torch casts the optimiser's moments to their parameters' type")
    edited(newest, file, change)
    trainer = resumed(tmp_path)
    assert trainer.iteration == 2
    assert (newest.parent / "damaged-step-000003").is_dir() and not newest.exists()


def resumed(folder: Path) -> Trainer:
    trainer = exact_runs.trainer_of(folder, CASE, **KEEP)
    config, rewards = trainer.session.config, trainer.session.reward_set.entries
    audit = Audit(config.audit, rewards, config.train.samples)
    RunCheckpoints(trainer, audit, RunFolder(folder / "a")).resume()
    return trainer


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_falls_back_and_ends_as_if_nothing_had_been(tmp_path, world):
    """Two processes: a file that only one of them would miss fails both."""
    unbroken = exact_runs.whole(tmp_path / "whole", CASE, world, **KEEP)
    for name, damage in (
        ("files", lambda path: (path / FILES[0]).write_bytes(b"")),
        ("fit", lambda path: edited(path, FILES[0], cut)),
        ("state", lambda path: edited(path, "state.json", lambda state: state.pop("samples"))),
    ):
        folder = tmp_path / name
        damage(broken_off(unbroken, folder))
        run = exact_runs.whole(folder, CASE, world, **KEEP)
        assert hashes.of_run(run) == hashes.of_run(unbroken)
        assert (run / "checkpoints/damaged-step-000003").is_dir()


def test_what_one_rank_cannot_restore_fails_on_both(tmp_path, monkeypatch):
    exact_runs.killed(tmp_path, CASE, 2, world=2, **KEEP)
    restore = RunCheckpoints._restore_rest

    def broken_on_rank_1(self: RunCheckpoints, checkpoint: Checkpoint) -> Found:
        if os.environ["RANK"] == "1" and checkpoint.step == 2:
            raise CheckpointError("rank 1 could not")
        return restore(self, checkpoint)

    monkeypatch.setattr(RunCheckpoints, "_restore_rest", broken_on_rank_1)
    run = exact_runs.whole(tmp_path, CASE, 2, **KEEP)
    monkeypatch.undo()
    assert (run / "checkpoints/damaged-step-000002").is_dir()
    unbroken = exact_runs.whole(tmp_path / "whole", CASE, 2, **KEEP)
    assert hashes.of_run(run) == hashes.of_run(unbroken)


@pytest.mark.parametrize("world", [1, 2])
def test_where_every_checkpoint_is_damaged_nothing_is_begun_anew(tmp_path, whole, world):
    newest = broken_off(whole, tmp_path)
    for path in newest.parent.glob("step-*"):
        (path / "state.json").write_bytes(b"{}")
    before = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    for message in exact_runs.refusals(tmp_path, CASE, world):
        assert message.startswith(f"3 none of the 3 checkpoints in {newest.parent} is sound")
        assert "nothing was changed" in message and "step-000002/state.json has 2 bytes" in message
        assert message.endswith(f"or under this one once {tmp_path / 'a'} is moved away")
    after = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert after == before


def test_a_path_that_is_damaged_is_refused_though_others_are_sound(tmp_path, whole):
    newest = broken_off(whole, tmp_path)
    (newest / "state.json").write_bytes(b"{}")
    for world in (1, 2):
        said = exact_runs.refusals(tmp_path, CASE, world, run={"resume": str(newest)})
        (line,) = set(said)
        assert line.startswith(f"3 {newest}/state.json has 2 bytes; {size(newest)} were written; ")
    assert newest.is_dir()


def size(path: Path) -> int:
    return read_manifest(path)["files"]["state.json"]["size"]


# -- whatever stands in a sealed state ------------------------------------------------------------

ODD: list[Any] = [None, "x", -1, 10**400, 0.5, True, [], {}, [None], {"x": None}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value something stands; of a list the first place stands for all."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def spoilt(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """States with one thing left out, or another in its place."""
    for *path, last in (place for place in places(state) if place):
        for odd in [..., *ODD]:
            made = copy.deepcopy(state)
            inner: Any = made
            for key in path:
                inner = inner[key]
            if odd is ...:
                del inner[last]
            else:
                inner[last] = odd
            yield f"{[*path, last]} = {odd!r:.20}", made


@pytest.mark.parametrize("case", ["ppo", "divergence", "policy", "reinforce"])
def test_whatever_a_sealed_state_says_a_run_goes_on_or_refuses(tmp_path, case, monkeypatch):
    """And what it goes on with serves for an iteration."""
    exact_runs.whole(tmp_path, case, train={"iterations": 2})
    trainer = exact_runs.trainer_of(tmp_path, case)
    session = trainer.session
    audit = Audit(session.config.audit, session.reward_set.entries, session.config.train.samples)
    run = RunCheckpoints(trainer, audit, RunFolder(tmp_path / "a"))
    sound = load_checkpoint(tmp_path / "a/checkpoints/step-000002")
    refused, taken = 0, 0
    for what, state in spoilt(sound.state):
        made = Checkpoint(sound.path, sound.step, sound.tensors, state)
        monkeypatch.setattr(resuming, "load_checkpoint", lambda _, made=made: made)
        found: Any = None
        try:
            found = run._try(sound.path)
        except CheckpointError as error:
            found = Fault(str(error), False)
        if isinstance(found, Fault):
            refused += 1
            assert str(sound.path) in found.message, what
            continue
        taken += 1
        if taken % 8 == 0:
            scored = trainer.score(trainer.generate())
            trainer.step(scored)
            audit.look(sample_rows(session.reward_set, scored, trainer.objective.last_kl), 3)
    assert refused > 500 and taken > 100
