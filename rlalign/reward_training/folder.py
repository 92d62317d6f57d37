"""The folder of a classifier: written beside its place, hashed, opened once, then moved there."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards import classifier_folder, trained
from rewards.classifier_folder import About, Probe
from rewards.trained import TrainedClassifier
from rlalign.problems import ConfigError
from rlalign.reward_training.linear import Head


@contextmanager
def writing(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `out` that takes its place at the end, if all goes well.

    Only an empty folder, or a classifier with `overwrite`, is replaced.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / classifier_folder.ABOUT).is_file():
            raise ConfigError(
                f"--out {out} is there and is no classifier of `rlalign rewards train`; name "
                "another folder"
            )
        if not overwrite:
            raise ConfigError(
                f"--out {out} holds a classifier already; name another folder, or replace it with "
                "--overwrite"
            )
    work = None
    try:
        parent = out.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
        folder = work / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            out.rename(work / "old")
        folder.rename(out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error}") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def save_weights(folder: Path, head: Head, **more: NDArray[np.float64]) -> None:
    """weights.safetensors: the head, and F values of each of `more`."""
    from safetensors.numpy import save_file

    tensors = {"coef": head.coef, "intercept": head.intercept, **more}
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, folder / classifier_folder.WEIGHTS)


def write_json(path: Path, content: object, indent: int | None = 1) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def seal(folder: Path, about: About) -> TrainedClassifier:
    """Write classifier.json, and open the folder as a reward would."""
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    for name in files:  # safetensors writes for its owner alone, and classifiers are shared
        (folder / name).chmod(folder.stat().st_mode & 0o666)
    about = about.model_copy(update={"files": files})
    _write_about(folder, about)
    classifier = trained.read_classifier(str(folder))
    probes = [
        Probe(text=text, probabilities=values)
        for text, values in zip(
            trained.PROBES, classifier.probabilities(trained.PROBES).tolist(), strict=True
        )
    ]
    _write_about(folder, about.model_copy(update={"probes": probes}))
    return trained.read_classifier(str(folder))


def _write_about(folder: Path, about: About) -> None:
    told: dict[str, Any] = about.model_dump(exclude_none=True)
    write_json(folder / classifier_folder.ABOUT, told)
