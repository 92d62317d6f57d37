"""Classifiers that `rlalign rewards train` has saved: opened, checked, asked about a label."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from rewards import classifiers
from rewards.classifier_folder import (
    ABOUT,
    About,
    DamagedError,
    Logits,
    backend,
    read_about,
    read_files,
)
from rewards.classifiers import Floats
from rewards.contract import RewardConfigError
from rewards.schema import nearest

# Folders that come with the package, for examples and tests: by name in place of a path.
EXAMPLES = {
    name: Path(__file__).parent / "example_classifiers" / name
    for name in ("example-topics", "example-styles")
}
# Scored when a classifier is saved, and again when it is opened: a library or a sentence encoder
# that has changed since shows.
PROBES = (
    "The old captain counted the boats in the harbour twice.",
    "wow, you've GOT to see this!! so good :)",
    "In 2019 the committee approved a budget of 3.5 million euros.",
)
PROBE_TOLERANCE = 1e-3  # of a probability; other hardware moves an encoder's by about 1e-5

ClassifierPath = Annotated[
    str,
    Field(min_length=1, description="the folder that `rlalign rewards train` has written"),
]
ClassifierLabel = Annotated[
    str | int | bool, Field(description="the label that is wanted, as in the training data")
]
LogOdds = Annotated[
    bool, Field(description="log(p / (1 - p)), unbounded, in place of the probability p")
]


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier of one label a text among L, ready to score."""

    path: str  # as it was named
    about: About
    logits: Logits  # texts -> (B, L), before the softmax

    @property
    def labels(self) -> list[str]:
        return self.about.labels

    def column(self, label: str | int | bool) -> int:
        """The index of a label; RewardConfigError names those that there are."""
        name = label_name(label)
        if name in self.labels:
            return self.labels.index(name)
        hint = nearest(name, self.labels, "labels")
        hint = f"; {hint}" if hint.startswith("did you mean") else ""
        known = ", ".join(self.labels)
        raise RewardConfigError(
            f"label={label!r} is no label of {self.path!r}, which has: {known}{hint}"
        )

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """(B, L), each row adding up to 1."""
        return classifiers.softmax(self.logits(texts))

    def log_odds(self, texts: Sequence[str], column: int) -> Floats:
        """(B,): log(p / (1 - p)) of one label, finite where p rounds to 0 or 1."""
        logits = self.logits(texts)
        others = np.delete(logits, column, axis=1)
        odds: Floats = logits[:, column] - np.logaddexp.reduce(others, axis=1)
        return odds


@dataclass(frozen=True)
class LabelScorer:
    """One label of a classifier in a folder, as a reward."""

    path: str
    label: str | int | bool
    log_odds: bool

    def load(self) -> None:
        _ = self._opened

    def __call__(self, texts: Sequence[str]) -> list[float]:
        classifier, column = self._opened
        if not texts:
            return []
        if self.log_odds:
            return [float(value) for value in classifier.log_odds(texts, column)]
        return [float(value) for value in classifier.probabilities(texts)[:, column]]

    @cached_property
    def _opened(self) -> tuple[TrainedClassifier, int]:
        """Kept, so that a folder which is trained anew does not change a run."""
        classifier = open_classifier(self.path)
        return classifier, classifier.column(self.label)


def label_name(label: str | int | bool) -> str:
    """A label as text: true, false and numbers as JSON writes them."""
    return label if isinstance(label, str) else json.dumps(label)


def open_classifier(path: str) -> TrainedClassifier:
    """As `read_classifier`, but once a process, device and content of classifier.json."""
    return _guarded(path, _kept)


def read_classifier(path: str) -> TrainedClassifier:
    """The classifier in a folder, or of `EXAMPLES`.

    Raises RewardConfigError, starting with `path=`, where the folder is not there, was written by
    another version, is damaged or was altered, or gives other values than when it was saved.
    """
    return _guarded(path, _open)


def _guarded(
    path: str, read: Callable[[str, Path, bytes, str], TrainedClassifier]
) -> TrainedClassifier:
    folder = EXAMPLES.get(path) or Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise RewardConfigError(
            f"path={path!r}: there is no such folder in {Path.cwd()}; train a classifier with "
            f"`rlalign rewards train --data … --out {path}`"
        )
    try:
        text = (folder / ABOUT).read_bytes()
    except FileNotFoundError as error:
        is_model = (folder / "config.json").is_file()
        hint = "a transformers classifier is named by `model` of style.classifier"
        raise RewardConfigError(
            f"path={path!r} has no {ABOUT}, so `rlalign rewards train` did not write it"
            + (f"; {hint}" if is_model else "")
        ) from error
    try:
        return read(path, folder, text, classifiers.device())
    except (DamagedError, OSError) as error:
        raise RewardConfigError(
            f"path={path!r}: {error}; copy the folder anew, or train it again with "
            "`rlalign rewards train`"
        ) from error


def _open(path: str, folder: Path, text: bytes, device: str) -> TrainedClassifier:
    about = read_about(text)
    classifier = TrainedClassifier(path, about, backend(folder, about, read_files(folder, about)))
    _check_probes(classifier)
    return classifier


_kept = cache(_open)


def _check_probes(classifier: TrainedClassifier) -> None:
    for probe in classifier.about.probes:
        now = classifier.probabilities([probe.text])[0]
        if len(probe.probabilities) != len(now):
            raise DamagedError(f"{ABOUT}: a probe has {len(probe.probabilities)} probabilities")
        if np.abs(now - probe.probabilities).max() > PROBE_TOLERANCE:
            versions = classifier.about.training.get("versions")
            raise DamagedError(
                f"it gives {np.round(now, 4).tolist()} for {probe.text!r} and gave "
                f"{np.round(probe.probabilities, 4).tolist()} when it was saved: "
                f"{_about_cause(classifier.about)} ({versions})"
            )


def _about_cause(about: About) -> str:
    if about.method == "embedding":
        return f"the sentence encoder {about.embedder!r} or a library is another one"
    return "a library is another one than it was saved with"
