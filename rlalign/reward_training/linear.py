"""A logistic regression on features of texts, its strength of regularisation by validation."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlalign.reward_training.examples import Example

# Inverse strengths of the penalty, small ones first.
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
FOLDS = 5
MAX_FEATURES = 100_000  # the most frequent; keeps a folder below some 20 MB
# A run of characters that stands in one text only is noise; a word may be the one that matters.
LEAST_TEXTS = {"words": 1, "characters": 2}

Features = Any  # (N, F), dense or sparse


@dataclass(frozen=True)
class Head:
    coef: NDArray[np.float64]  # (L, F), or (1, F) for the second of two labels
    intercept: NDArray[np.float64]  # (L,) or (1,)
    strength: float  # C, the one with the least log loss
    log_losses: dict[str, float]  # by strength, each example by a model that had not seen it


def fit_vectorizer(texts: Sequence[str], kind: str) -> Any:
    """A fitted TfidfVectorizer of words or characters, as `rewards.trained` will build it."""
    from rewards.trained import FEATURES

    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ModuleNotFoundError:
        from rewards.classifiers import needs

        needs("sklearn", "classifiers")
        raise
    options = {"min_df": LEAST_TEXTS[kind], "max_features": MAX_FEATURES}
    return TfidfVectorizer(**FEATURES[kind], **options).fit(texts)


def fit_head(
    features: Features, rows: Sequence[Example], labels: Sequence[str], balanced: bool, seed: int
) -> Head:
    """The head with the least cross-validated log loss; equal texts are in one fold.

    `balanced` trains and validates as if all labels were equally frequent.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    targets = np.array([labels.index(row.label) for row in rows])  # (N,)
    keys = {key: i for i, key in enumerate(dict.fromkeys(row.key for row in rows))}
    groups = [keys[row.key] for row in rows]
    weights = label_weights(targets, balanced)
    least = min(len({groups[i] for i in np.flatnonzero(targets == c)}) for c in set(targets))
    folds = StratifiedGroupKFold(max(2, min(FOLDS, least)), shuffle=True, random_state=seed)
    places = list(folds.split(features, targets, groups))

    def model(strength: float) -> Any:
        weight = "balanced" if balanced else None
        return LogisticRegression(C=strength, class_weight=weight, max_iter=5000)

    losses = {}
    for strength in STRENGTHS:
        with warnings.catch_warnings():
            # A label may be absent from a fold where equal texts have several labels.
            warnings.filterwarnings("ignore", message="Number of classes in training fold")
            unseen = cross_val_predict(
                model(strength), features, targets, cv=places, method="predict_proba"
            )
        losses[strength] = log_loss(
            targets, unseen, sample_weight=weights, labels=range(len(labels))
        )
    best = min(losses, key=lambda strength: losses[strength])
    fitted = model(best).fit(features, targets)
    return Head(
        np.asarray(fitted.coef_, np.float64),
        np.asarray(fitted.intercept_, np.float64),
        best,
        {f"{strength:g}": round(float(loss), 4) for strength, loss in losses.items()},
    )


def label_weights(targets: NDArray[Any], balanced: bool) -> NDArray[np.float64]:
    """(N,), mean 1: all equal, or such that every label weighs the same."""
    if not balanced:
        return np.ones(len(targets))
    present, frequency = np.unique(targets, return_counts=True)
    share = dict(zip(present.tolist(), frequency.tolist(), strict=True))
    return np.array([len(targets) / (len(present) * share[t]) for t in targets.tolist()])
