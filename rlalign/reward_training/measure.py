"""How good a classifier is on texts that it has not seen, and how fast."""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards import classifiers
from rewards.trained import TrainedClassifier
from rlalign.reward_training.examples import Example
from rlalign.reward_training.linear import label_weights

BINS = 10
SPEED_BATCH, SPEED_REPEATS = 64, 5
Floats = NDArray[np.float64]
DEFINITIONS = {
    "accuracy_95": "Wilson's 95% interval of the accuracy, from the number of texts alone",
    "baseline": "accuracy of always answering the label that is most frequent in training",
    "baseline_log_loss": "log loss of always giving the labels' shares in training",
    "macro_f1": "mean of the labels' F1",
    "auc": "area under the ROC curve; of more than two labels the mean of each against the rest",
    "ece": f"expected calibration error of the label that is predicted, {BINS} equal bins",
    "brier": "squared distance to the truth, summed over the labels (two labels: of one), mean",
    "labels.ece": "the same error of the label's own probability, which is what a reward returns",
}


@dataclass(frozen=True)
class Bin:
    """Predictions whose probability is in [low, low + 1/BINS)."""

    low: float
    count: int
    weight: float  # share of the whole
    confidence: float  # mean probability
    share: float  # of those that came true


def evaluate(
    probabilities: Floats, rows: Sequence[Example], labels: Sequence[str], balanced: bool
) -> dict[str, Any]:
    """The numbers of report.json under `held_out` and `labels`, from (N, L) probabilities.

    Under `balanced` log loss, Brier and calibration count every label alike, as the probabilities
    are meant; accuracy, F1 and AUC count texts.
    """
    from sklearn.metrics import (
        brier_score_loss,
        confusion_matrix,
        f1_score,
        log_loss,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    columns = list(range(len(labels)))
    truth = np.array([labels.index(row.label) for row in rows])  # (N,)
    guess = probabilities.argmax(axis=1)
    weights = label_weights(truth, balanced)
    accuracy = float((guess == truth).mean())
    one_hot = truth[:, None] == np.array(columns)  # (N, L)
    aucs = [float(roc_auc_score(one_hot[:, c], probabilities[:, c])) for c in columns]
    top = reliability(probabilities.max(axis=1), guess == truth, weights)
    scored = probabilities if len(labels) > 2 else probabilities[:, 1]
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, guess, labels=columns, zero_division=0.0
    )
    overall = {
        "texts": len(rows),
        "accuracy": accuracy,
        "accuracy_95": [float(end) for end in wilson(np.array(accuracy), np.array(len(rows)))],
        "macro_f1": float(f1_score(truth, guess, labels=columns, average="macro")),
        "auc": statistics.fmean(aucs),
        "ece": calibration_error(top),
        "brier": float(brier_score_loss(truth, scored, labels=columns, sample_weight=weights)),
        "log_loss": float(log_loss(truth, probabilities, labels=columns, sample_weight=weights)),
    }
    each = {
        label: {
            "held_out": int(one_hot[:, c].sum()),
            "precision": float(precision[c]),
            "recall": float(recall[c]),
            "f1": float(f1[c]),
            "auc": aucs[c],
            "ece": calibration_error(reliability(probabilities[:, c], one_hot[:, c], weights)),
        }
        for c, label in enumerate(labels)
    }
    confusion = confusion_matrix(truth, guess, labels=columns).tolist()  # rows: truth
    bins = [vars(one) for one in top]
    return {"held_out": overall, "labels": each, "confusion": confusion, "reliability": bins}


def reliability(probability: Floats, came_true: NDArray[Any], weights: Floats) -> list[Bin]:
    """The bins that hold predictions, from low to high; all arguments are (N,)."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    found = []
    for number in np.unique(place).tolist():
        here = place == number
        weight = weights[here]
        found.append(
            Bin(
                number / BINS,
                int(here.sum()),
                float(weight.sum() / weights.sum()),
                float(np.average(probability[here], weights=weight)),
                float(np.average(came_true[here], weights=weight)),
            )
        )
    return found


def wilson(share: Floats, count: Floats) -> tuple[Floats, Floats]:
    """The 95% interval of shares; sensible for few texts and for shares of 0 and 1."""
    z = 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    # Rounding may put the share itself a hair outside.
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance of probability and share (Naeini et al. 2015; Guo et al. 2017, eq. 3)."""
    return sum(one.weight * abs(one.confidence - one.share) for one in bins)


def _device() -> str:
    """Where models run: a GPU's name, or the CPU with its cores."""
    if classifiers.device() != "cpu":
        return classifiers.device()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    return f"{cores} CPU cores" + (f" (OMP_NUM_THREADS={threads})" if threads else "")


def speed(classifier: TrainedClassifier, texts: Sequence[str]) -> dict[str, Any]:
    """Texts a second of one call with SPEED_BATCH of `texts`, the median of SPEED_REPEATS calls."""
    batch = [texts[i % len(texts)] for i in range(SPEED_BATCH)]
    classifier.probabilities(batch)  # warm-up
    seconds = []
    for _ in range(SPEED_REPEATS):
        start = time.perf_counter()
        classifier.probabilities(batch)
        seconds.append(time.perf_counter() - start)
    words = statistics.fmean(len(text.split()) for text in batch)
    return {
        "texts_per_second": SPEED_BATCH / statistics.median(seconds),
        "batch": SPEED_BATCH,
        "words_per_text": round(words, 1),
        "device": _device(),
    }
