"""A logistic regression on features of texts, its strength of regularisation by validation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.classifier_folder import FEATURES
from rlalign.reward_training.examples import Example

# Inverse strengths of the penalty, small ones first.
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
FOLDS = 5
MAX_FEATURES = 100_000  # the most frequent; keeps a folder below some 20 MB
# A run of characters that stands in one text only is noise; a word may be the one that matters.
LEAST_TEXTS = {"words": 1, "characters": 2}

Features = Any  # (N, F), dense or sparse
Indices = NDArray[np.intp]
# Rows to learn from, rows to predict -> their features, made from the first alone.
Featurise = Callable[[Indices, Indices], tuple[Features, Features]]


@dataclass(frozen=True)
class Head:
    coef: NDArray[np.float64]  # (L, F), or (1, F) for the second of two labels
    intercept: NDArray[np.float64]  # (L,) or (1,)
    strength: float  # C, the one with the least log loss
    log_losses: dict[str, float]  # by strength, each example by a model that had not seen it


def fit_vectorizer(texts: Sequence[str], kind: str) -> Any:
    """A fitted TfidfVectorizer of words or characters, as `rewards.trained` will build it."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    options = {"min_df": LEAST_TEXTS[kind], "max_features": MAX_FEATURES}
    return TfidfVectorizer(**FEATURES[kind], **options).fit(texts)


def tfidf_parts(texts: Sequence[str], kind: str) -> Featurise:
    """TF-IDF whose vocabulary comes from the rows to learn from.

    A word that only an unseen text has must not count there either: it would shorten the rest of
    the vector, and the validation would choose too weak a penalty.
    """

    def parts(seen: Indices, unseen: Indices) -> tuple[Features, Features]:
        vectorizer = fit_vectorizer([texts[i] for i in seen], kind)
        return (
            vectorizer.transform([texts[i] for i in seen]),
            vectorizer.transform([texts[i] for i in unseen]),
        )

    return parts


def fit_head(
    featurise: Featurise, rows: Sequence[Example], labels: Sequence[str], balanced: bool, seed: int
) -> Head:
    """The head with the least cross-validated log loss; equal texts are in one fold.

    `balanced` trains and validates as if all labels were equally frequent.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    targets = np.array([labels.index(row.label) for row in rows])  # (N,)
    everything = np.arange(len(rows))

    def fitted(strength: float, features: Features, where: Indices) -> Any:
        weight = "balanced" if balanced else None
        model = LogisticRegression(C=strength, class_weight=weight, max_iter=5000)
        return model.fit(features, targets[where])

    unseen = {strength: np.zeros((len(rows), len(labels))) for strength in STRENGTHS}
    for learnt, kept in _folds(rows, targets, seed):
        known, new = featurise(learnt, kept)
        for strength, probabilities in unseen.items():
            model = fitted(strength, known, learnt)
            # A label may be absent from a fold where equal texts have several labels.
            probabilities[np.ix_(kept, model.classes_)] = model.predict_proba(new)
    weights, columns = label_weights(targets, balanced), range(len(labels))
    losses = {
        strength: float(log_loss(targets, values, sample_weight=weights, labels=columns))
        for strength, values in unseen.items()
    }
    best = min(losses, key=lambda strength: losses[strength])
    features, _ = featurise(everything, everything[:1])
    model = fitted(best, features, everything)
    return Head(
        np.asarray(model.coef_, np.float64),
        np.asarray(model.intercept_, np.float64),
        best,
        {f"{strength:g}": round(loss, 4) for strength, loss in losses.items()},
    )


def _folds(
    rows: Sequence[Example], targets: NDArray[Any], seed: int
) -> Iterator[tuple[Indices, Indices]]:
    from sklearn.model_selection import StratifiedGroupKFold

    numbers = {key: i for i, key in enumerate(dict.fromkeys(row.key for row in rows))}
    groups = np.array([numbers[row.key] for row in rows])
    rarest = min(len(set(groups[targets == label])) for label in set(targets.tolist()))
    folds = StratifiedGroupKFold(max(2, min(FOLDS, rarest)), shuffle=True, random_state=seed)
    yield from folds.split(groups, targets, groups)


def label_weights(targets: NDArray[Any], balanced: bool) -> NDArray[np.float64]:
    """(N,), mean 1: all equal, or such that every label weighs the same."""
    if not balanced:
        return np.ones(len(targets))
    present, frequency = np.unique(targets, return_counts=True)
    share = dict(zip(present.tolist(), frequency.tolist(), strict=True))
    return np.array([len(targets) / (len(present) * share[t]) for t in targets.tolist()])
