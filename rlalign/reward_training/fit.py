"""One function from examples to a classifier's files, whatever the method."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rewards import classifier_folder, classifiers
from rewards.classifier_folder import About
from rewards.contract import RewardConfigError
from rlalign.problems import ConfigError
from rlalign.reward_training import encoder, linear
from rlalign.reward_training.examples import Examples, Split
from rlalign.reward_training.folder import save_weights, write_json
from rlalign.reward_training.settings import (
    BATCH_SIZE,
    LR,
    MAX_LENGTH,
    MODEL,
    Features,
    Settings,
    locate,
)

LIBRARIES = {
    "tfidf": ("scikit-learn",),
    "embedding": ("scikit-learn", "sentence-transformers", "transformers", "torch"),
    "encoder": ("transformers", "torch"),
}


def fit(settings: Settings, examples: Examples, parts: Split, folder: Path) -> About:
    """Train by the method, write its files into `folder`; what classifier.json will say of them."""
    labels = examples.labels
    features: Features | None = None
    embedder: str | None = None
    max_length: int | None = None
    texts = [row.text for row in parts.train]
    if settings.method == "tfidf":
        features = settings.features or ("words" if settings.kind == "topic" else "characters")
        vectorizer = linear.fit_vectorizer(texts, features)
        featurise = linear.tfidf_parts(texts, features)
        head = linear.fit_head(featurise, parts.train, labels, settings.balanced, settings.seed)
        save_weights(folder, head, idf=vectorizer.idf_)
        terms = vectorizer.get_feature_names_out().tolist()
        write_json(folder / classifier_folder.VOCABULARY, terms, indent=None)
        chosen = {"features": len(terms), **_selection(head)}
    elif settings.method == "embedding":
        embedder = locate(settings.model or MODEL)
        vectors = _encode(embedder, texts)
        head = linear.fit_head(
            lambda seen, unseen: (vectors[seen], vectors[unseen]),
            *(parts.train, labels, settings.balanced, settings.seed),
        )
        save_weights(folder, head)
        chosen = {"features": vectors.shape[1], **_selection(head)}
    else:
        how = encoder.FineTuning(
            base=locate(settings.model or MODEL),
            epochs=settings.epochs,
            lr=LR if settings.lr is None else settings.lr,
            batch_size=settings.batch_size or BATCH_SIZE,
            max_length=settings.max_length or MAX_LENGTH,
            balanced=settings.balanced,
            seed=settings.seed,
        )
        chosen = encoder.fine_tune(how, parts.train, labels, folder / classifier_folder.ENCODER)
        max_length = chosen["max_length"]
    return About(
        format=classifier_folder.FORMAT,
        kind=settings.kind,
        method=settings.method,
        labels=labels,
        features=features,
        embedder=embedder,
        max_length=max_length,
        training=_training(settings, examples, parts, chosen),
        files={},
    )


def _encode(embedder: str, texts: Sequence[str]) -> classifiers.Floats:
    try:
        return classifiers.embedder(embedder).encode(texts)
    except RewardConfigError as error:  # it starts with the setting, model=
        raise ConfigError(f"--{error}") from error


def _selection(head: linear.Head) -> dict[str, Any]:
    return {"C": head.strength, "log_loss_by_C": head.log_losses}


def _training(
    settings: Settings, examples: Examples, parts: Split, chosen: dict[str, Any]
) -> dict[str, Any]:
    """For the reader of classifier.json and report.json: what it was made of, and with what."""
    return {
        "data": {
            "file": examples.file,
            "sha256": examples.sha256,
            "text": settings.text,
            "label": settings.label,
            "rows": len(examples.rows),
            "repeated": parts.repeated,
            "conflicting": parts.conflicting,
            "train": len(parts.train),
            "held_out": len(parts.held_out),
        },
        "held_out": settings.held_out,
        "seed": settings.seed,
        "balanced": settings.balanced,
        **chosen,
        "versions": {name: version(name) for name in ("rlalign", *LIBRARIES[settings.method])},
    }
