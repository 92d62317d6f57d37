"""The files of a classifier from `rlalign rewards train`: what is in them, checked piece by piece.

A folder holds classifier.json (see `About`) and, by method, weights.safetensors, vocabulary.json or
encoder/. Nothing in it is code or a pickle.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from rewards import classifiers
from rewards.classifiers import Floats, needs
from rewards.contract import RewardConfigError
from rewards.sequences import SequenceClassifier

ABOUT, WEIGHTS, VOCABULARY, ENCODER = (
    "classifier.json", "weights.safetensors", "vocabulary.json", "encoder",
)  # fmt: skip
FORMAT = 1
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

Files = Mapping[str, bytes]
Logits = Callable[[Sequence[str]], Floats]


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


class DamagedError(Exception):
    """A file is missing, altered or of the wrong form; the message names it."""


def read_about(text: bytes) -> About:
    try:
        stored = json.loads(text)
        written = stored.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{ABOUT} is no JSON object ({error})") from error
    if written != FORMAT or isinstance(written, bool):
        raise DamagedError(
            f"{ABOUT} has format={written!r}; this version of rlalign reads {FORMAT}"
        )
    try:
        about = About.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        rule = "is not known" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise DamagedError(f"{ABOUT}: {where}: {rule}") from error
    needed = {"tfidf": "features", "embedding": "embedder", "encoder": "max_length"}
    for method, name in needed.items():
        if (getattr(about, name) is not None) != (method == about.method):
            wrong = "is missing" if method == about.method else f"belongs to method {method!r}"
            raise DamagedError(f"{ABOUT}: {name} {wrong}")
    if len(set(about.labels)) < len(about.labels):
        raise DamagedError(f"{ABOUT}: labels={about.labels!r} are not all different")
    return about


def read_files(folder: Path, about: About) -> Files:
    """Name -> content of the files that belong to the classifier, their hashes checked."""
    return {name: _read(folder, name, digest) for name, digest in _expected(folder, about).items()}


def _expected(folder: Path, about: About) -> Mapping[str, str]:
    """Name -> sha256 of the files to read, once they are known to be the ones of the method."""
    wanted = {"tfidf": {WEIGHTS, VOCABULARY}, "embedding": {WEIGHTS}}.get(about.method)
    if wanted is None:  # transformers opens what it finds there, so nothing else may be there
        found = (folder / ENCODER).rglob("*")
        wanted = {file.relative_to(folder).as_posix() for file in found if not file.is_dir()}
    if missing := sorted(about.files.keys() - wanted):
        raise DamagedError(f"{missing[0]} is missing, or has no place under {about.method!r}")
    if extra := sorted(wanted - about.files.keys()):
        raise DamagedError(f"{extra[0]} is not listed in {ABOUT}")
    return about.files


def _read(folder: Path, name: str, digest: str) -> bytes:
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{name} is missing") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DamagedError(f"{name} is not what was written: its sha256 differs")
    return content


def backend(folder: Path, about: About, files: Files) -> Logits:
    """What scores texts by the method; raises DamagedError where a file is of the wrong form."""
    return {"tfidf": _tfidf, "embedding": _embedding, "encoder": _encoder}[about.method](
        folder, about, files
    )


def _tfidf(folder: Path, about: About, files: Files) -> Logits:
    try:
        vocabulary = json.loads(files[VOCABULARY])
    except ValueError as error:
        raise DamagedError(f"{VOCABULARY} is no JSON ({error})") from error
    is_list = isinstance(vocabulary, list) and all(isinstance(term, str) for term in vocabulary)
    if not is_list or not vocabulary or len(set(vocabulary)) < len(vocabulary):
        raise DamagedError(f"{VOCABULARY} is no list of different strings")
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
        raise DamagedError(f"its sentence encoder, {error}") from error
    width = embedder.encode(["width"]).shape[1]
    tensors = _tensors(files[WEIGHTS], about, width, ())
    head = _head(tensors)
    return lambda texts: _columns(head.decision_function(embedder.encode(texts)))


def _encoder(folder: Path, about: About, files: Files) -> Logits:
    if f"{ENCODER}/model.safetensors" not in files:
        raise DamagedError(f"{ENCODER}/model.safetensors is missing")
    try:
        model = SequenceClassifier(
            str(folder / ENCODER), trust_remote_code=False, device=classifiers.device()
        )
    except Exception as error:  # transformers and safetensors raise many kinds
        raise DamagedError(f"{ENCODER} cannot be loaded ({error})") from error
    if model.labels != about.labels:
        raise DamagedError(f"{ENCODER}/config.json has the labels {', '.join(model.labels)}")
    return lambda texts: model.logits(texts, about.max_length)


def _tensors(
    content: bytes, about: About, width: int, more: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """coef (L or 1, F), intercept (L or 1,) and F values of each of `more`; checked."""
    try:
        tensors: dict[str, np.ndarray] = needs("safetensors.numpy", "classifiers").load(content)
    except Exception as error:  # SafetensorError is no ValueError
        raise DamagedError(f"{WEIGHTS} cannot be read ({error})") from error
    rows = 1 if len(about.labels) == 2 else len(about.labels)  # of two labels, the second one's
    shapes = {"coef": (rows, width), "intercept": (rows,)} | {name: (width,) for name in more}
    if tensors.keys() != shapes.keys():
        raise DamagedError(f"{WEIGHTS} holds {sorted(tensors)}; it should hold {sorted(shapes)}")
    for name, shape in shapes.items():
        value = tensors[name]
        if value.shape != shape or value.dtype != np.float64:
            raise DamagedError(
                f"{WEIGHTS}: {name} is {value.dtype} of shape {value.shape}; it should be "
                f"float64 of shape {shape}"
            )
        if not np.isfinite(value).all():
            raise DamagedError(f"{WEIGHTS}: {name} holds NaN or infinity")
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
