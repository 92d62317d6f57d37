"""Classifiers that `rlalign rewards train` has saved: opened, checked, asked about a label.

A folder holds classifier.json (see `About`) and, by method, weights.safetensors, vocabulary.json or
encoder/. Nothing in it is code or a pickle.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from rewards import classifiers
from rewards.classifiers import Floats, needs
from rewards.contract import RewardConfigError
from rewards.schema import nearest

ABOUT, WEIGHTS, VOCABULARY, ENCODER = (
    "classifier.json", "weights.safetensors", "vocabulary.json", "encoder",
)  # fmt: skip
FORMAT = 1
# Folders that come with the package, for examples and tests: by name in place of a path.
EXAMPLES = {
    name: Path(__file__).parent / "example_classifiers" / name
    for name in ("example-topics", "example-styles")
}
# What a TF-IDF classifier counts. The options stand here and not in the folder, so a folder that
# was tampered with cannot bring a regular expression of its own.
FEATURES: dict[str, dict[str, Any]] = {
    # Words and pairs of them, without case; one with an inner apostrophe stays whole.
    "words": {
        "token_pattern": r"(?u)\b\w+(?:['’]\w+)?\b",  # noqa: RUF001
        "ngram_range": (1, 2),
        "sublinear_tf": True,
    },
    # One to four characters within a word and its edges: endings, capitals and punctuation count.
    "characters": {
        "analyzer": "char_wb",
        "ngram_range": (1, 4),
        "lowercase": False,
        "sublinear_tf": True,
    },
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


class Probe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    text: str
    probabilities: list[FiniteFloat]


class About(BaseModel):
    """classifier.json: what the other files mean, and their hashes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: int
    kind: Literal["topic", "style"]
    method: Literal["tfidf", "embedding", "encoder"]
    labels: list[str] = Field(min_length=2)  # in the order of the columns
    features: Literal["words", "characters"] | None = None  # tfidf
    embedder: str | None = None  # embedding: embedded name, hub id or path
    max_length: int | None = Field(None, ge=1)  # encoder: tokens that are read
    training: dict[str, Any]  # for the reader: settings, versions, hash of the data
    probes: list[Probe] = []
    files: dict[str, str]  # name within the folder -> sha256


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier of one label a text among L, ready to score."""

    path: str  # as it was named
    about: About
    logits: Callable[[Sequence[str]], Floats]  # texts -> (B, L), before the softmax

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
            f"path={path!r}: there is no such folder{'' if folder.exists() else f' ({folder})'}; "
            f"train a classifier with `rlalign rewards train --data … --out {path}`"
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
    except (_DamagedError, OSError) as error:
        raise RewardConfigError(
            f"path={path!r}: {error}; copy the folder anew, or train it again with "
            "`rlalign rewards train`"
        ) from error


class _DamagedError(Exception):
    """A file is missing, altered or of the wrong form; the message names it."""


def _open(path: str, folder: Path, text: bytes, device: str) -> TrainedClassifier:
    about = _read_about(text)
    files = {name: _read(folder, name, digest) for name, digest in _expected(folder, about).items()}
    build = {"tfidf": _tfidf, "embedding": _embedding, "encoder": _encoder}[about.method]
    classifier = TrainedClassifier(path, about, build(folder, about, files))
    _check_probes(classifier)
    return classifier


_kept = cache(_open)


def _read_about(text: bytes) -> About:
    try:
        stored = json.loads(text)
        written = stored.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise _DamagedError(f"{ABOUT} is no JSON object ({error})") from error
    if written != FORMAT or isinstance(written, bool):
        raise _DamagedError(
            f"{ABOUT} has format={written!r}; this version of rlalign reads {FORMAT}"
        )
    try:
        about = About.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        rule = "is not known" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise _DamagedError(f"{ABOUT}: {where}: {rule}") from error
    needed = {"tfidf": "features", "embedding": "embedder", "encoder": "max_length"}
    for method, name in needed.items():
        if (getattr(about, name) is not None) != (method == about.method):
            wrong = "is missing" if method == about.method else f"belongs to method {method!r}"
            raise _DamagedError(f"{ABOUT}: {name} {wrong}")
    if len(set(about.labels)) < len(about.labels):
        raise _DamagedError(f"{ABOUT}: labels={about.labels!r} are not all different")
    return about


def _expected(folder: Path, about: About) -> Mapping[str, str]:
    """Name -> sha256 of the files to read, once they are known to be the ones of the method."""
    wanted = {"tfidf": {WEIGHTS, VOCABULARY}, "embedding": {WEIGHTS}}.get(about.method)
    if wanted is None:  # transformers opens what it finds there, so nothing else may be there
        found = (folder / ENCODER).rglob("*")
        wanted = {file.relative_to(folder).as_posix() for file in found if not file.is_dir()}
    if missing := sorted(about.files.keys() - wanted):
        raise _DamagedError(f"{missing[0]} is missing, or has no place under {about.method!r}")
    if extra := sorted(wanted - about.files.keys()):
        raise _DamagedError(f"{extra[0]} is not listed in {ABOUT}")
    return about.files


def _read(folder: Path, name: str, digest: str) -> bytes:
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise _DamagedError(f"{name} is missing") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise _DamagedError(f"{name} is not what was written: its sha256 differs")
    return content


Files = Mapping[str, bytes]
Logits = Callable[[Sequence[str]], Floats]


def _tfidf(folder: Path, about: About, files: Files) -> Logits:
    try:
        vocabulary = json.loads(files[VOCABULARY])
    except ValueError as error:
        raise _DamagedError(f"{VOCABULARY} is no JSON ({error})") from error
    is_list = isinstance(vocabulary, list) and all(isinstance(term, str) for term in vocabulary)
    if not is_list or not vocabulary or len(set(vocabulary)) < len(vocabulary):
        raise _DamagedError(f"{VOCABULARY} is no list of different strings")
    tensors = _tensors(files[WEIGHTS], about, len(vocabulary), ("idf",))
    library = needs("sklearn.feature_extraction.text", "classifiers")
    vectorizer = library.TfidfVectorizer(vocabulary=vocabulary, **FEATURES[about.features or ""])
    vectorizer.idf_ = tensors["idf"]
    head = _head(tensors)
    return lambda texts: _columns(head.decision_function(vectorizer.transform(texts)))


def _embedding(folder: Path, about: About, files: Files) -> Logits:
    name = about.embedder or ""
    try:
        embedder = classifiers.embedder(name)
    except RewardConfigError as error:
        raise _DamagedError(f"its sentence encoder, {error}") from error
    width = embedder.encode(["width"]).shape[1]
    tensors = _tensors(files[WEIGHTS], about, width, ())
    head = _head(tensors)
    return lambda texts: _columns(head.decision_function(embedder.encode(texts)))


def _encoder(folder: Path, about: About, files: Files) -> Logits:
    if f"{ENCODER}/model.safetensors" not in files:
        raise _DamagedError(f"{ENCODER}/model.safetensors is missing")
    try:
        model = classifiers.SequenceClassifier(
            str(folder / ENCODER), trust_remote_code=False, device=classifiers.device()
        )
    except Exception as error:  # transformers and safetensors raise many kinds
        raise _DamagedError(f"{ENCODER} cannot be loaded ({error})") from error
    if model.labels != about.labels:
        raise _DamagedError(f"{ENCODER}/config.json has the labels {', '.join(model.labels)}")
    return lambda texts: model.logits(texts, about.max_length)


def _tensors(
    content: bytes, about: About, width: int, more: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """coef (L or 1, F), intercept (L or 1,) and F values of each of `more`; checked."""
    try:
        tensors: dict[str, np.ndarray] = needs("safetensors.numpy", "classifiers").load(content)
    except Exception as error:  # SafetensorError is no ValueError
        raise _DamagedError(f"{WEIGHTS} cannot be read ({error})") from error
    rows = 1 if len(about.labels) == 2 else len(about.labels)  # of two labels, the second one's
    shapes = {"coef": (rows, width), "intercept": (rows,)} | {name: (width,) for name in more}
    if tensors.keys() != shapes.keys():
        raise _DamagedError(f"{WEIGHTS} holds {sorted(tensors)}; it should hold {sorted(shapes)}")
    for name, shape in shapes.items():
        value = tensors[name]
        if value.shape != shape or value.dtype != np.float64:
            raise _DamagedError(
                f"{WEIGHTS}: {name} is {value.dtype} of shape {value.shape}; it should be "
                f"float64 of shape {shape}"
            )
        if not np.isfinite(value).all():
            raise _DamagedError(f"{WEIGHTS}: {name} holds NaN or infinity")
    return tensors


def _head(tensors: Mapping[str, np.ndarray]) -> Any:
    head = needs("sklearn.linear_model", "classifiers").LogisticRegression()
    head.coef_, head.intercept_ = tensors["coef"], tensors["intercept"]
    head.n_features_in_ = tensors["coef"].shape[1]
    head.classes_ = np.arange(max(2, len(tensors["coef"])))
    return head


def _columns(decision: Floats) -> Floats:
    """(B, L) from scikit-learn's decision, which is (B,) for the second of two labels."""
    return decision if decision.ndim == 2 else np.stack([np.zeros_like(decision), decision], axis=1)


def _check_probes(classifier: TrainedClassifier) -> None:
    for probe in classifier.about.probes:
        now = classifier.probabilities([probe.text])[0]
        if len(probe.probabilities) != len(now):
            raise _DamagedError(f"{ABOUT}: a probe has {len(probe.probabilities)} probabilities")
        if np.abs(now - probe.probabilities).max() > PROBE_TOLERANCE:
            versions = classifier.about.training.get("versions")
            raise _DamagedError(
                f"it gives {np.round(now, 4).tolist()} for {probe.text!r} and gave "
                f"{np.round(probe.probabilities, 4).tolist()} when it was saved: "
                f"{_about_cause(classifier.about)} ({versions})"
            )


def _about_cause(about: About) -> str:
    if about.method == "embedding":
        return f"the sentence encoder {about.embedder!r} or a library is another one"
    return "a library is another one than it was saved with"
