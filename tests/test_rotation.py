"""Whatever is saved, marked, damaged, rewound or killed, in whatever order: what is sound stays."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from forked import ended, fork
from some_checkpoints import names, save
from test_checkpoint_damage import die_at_call, flip, truncate

from rlalign.checkpoints.folder import (
    CheckpointError,
    best,
    load_checkpoint,
    mark_best,
    newest_first,
    newest_sound,
    rewind,
)

DAMAGES = (truncate, flip, Path.unlink)


def is_sound(path: Path) -> bool:
    try:
        return load_checkpoint(path).state["step"] == load_checkpoint(path).step
    except CheckpointError:
        return False


def sound(root: Path) -> list[Path]:
    return [path for path in newest_first(root) if is_sound(path)]


def kept_aside(root: Path) -> set[str]:
    return {path.name for path in root.glob("damaged-*")}


class Sequence:
    """A random sequence of what may happen to a run's checkpoints, checked after each step."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.chance = root, random.Random(seed)
        self.keep, self.step = self.chance.randint(1, 3), 0
        self.damaged: set[str] = set()

    def save(self) -> None:
        self.step += self.chance.randint(0, 2)  # 0: the same one again
        marked = best(self.root) if self.root.exists() else None
        path = save(self.root, self.step, keep=self.keep)
        self.damaged.discard(path.name)
        assert newest_sound(self.root) == path
        hidden = {name for name in names(self.root) if name.startswith(".")}
        assert all(name.startswith(".best.json.") for name in hidden)
        whole = [each for each in sound(self.root) if each.name not in self.damaged]
        assert len(whole) <= self.keep + 1
        if marked is not None and marked.path.name not in self.damaged:
            assert best(self.root) == marked and is_sound(marked.path)

    def mark(self) -> None:
        if found := sound(self.root):
            path = self.chance.choice(found)
            if not path.name.startswith("."):
                mark_best(self.root, path, "eval/score", self.chance.random())

    def damage(self) -> None:
        if len(found := sound(self.root)) > 1:  # one is left, or there is nothing to show
            path = self.chance.choice(found)
            file = self.chance.choice(sorted(path.iterdir()))
            self.chance.choice(DAMAGES)(file)
            self.damaged.add(path.name)

    def rewind(self) -> None:
        """As a resume does: to the newest that is sound, or to one before it."""
        if found := [path for path in sound(self.root) if not path.name.startswith(".")]:
            path = self.chance.choice(found)
            self.step = load_checkpoint(path).step
            rewind(self.root, self.step)
            assert newest_sound(self.root) == path
            assert all(each.name <= path.name for each in newest_first(self.root))

    def kill(self) -> None:
        """In the middle of a save."""
        self.step += self.chance.randint(0, 2)
        number = self.chance.randint(1, 70)

        def work() -> None:
            die_at_call(number)
            save(self.root, self.step, keep=self.keep)

        status = ended(fork(work), time.monotonic() + 60)
        assert status in (0, signal.SIGKILL)
        written = self.root / f"step-{self.step:06d}"
        if written.exists() and is_sound(written):
            self.damaged.discard(written.name)

    def go(self, steps: int) -> None:
        for _ in range(steps):
            had, aside = bool(sound(self.root)), kept_aside(self.root)
            what = self.chance.choice(
                [self.save, self.save, self.mark, self.damage, self.rewind, self.kill]
            )
            what()
            assert sound(self.root) or not had, what.__name__
            assert aside <= kept_aside(self.root)
            for path in self.root.glob("step-*"):
                assert is_sound(path) or path.name in self.damaged, (what.__name__, path)


@pytest.mark.parametrize("seed", range(12))
def test_a_sound_checkpoint_outlives_any_sequence(tmp_path, seed):
    for part in range(4):
        Sequence(tmp_path / str(part), 100 * seed + part).go(12)
        shutil.rmtree(tmp_path / str(part), ignore_errors=True)
