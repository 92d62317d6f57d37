"""From labelled examples to a classifier in a folder, with what it is worth on held-out texts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards import classifiers
from rewards.classifier_folder import About
from rlalign.reward_training import measure, picture
from rlalign.reward_training.examples import Split, counts, read_examples, split
from rlalign.reward_training.fit import fit
from rlalign.reward_training.folder import seal, write_json, writing
from rlalign.reward_training.settings import Settings, check

REPORT, PICTURE = "report.json", "report.png"
UNEVEN = 3  # the most frequent label over the rarest, from which the user is told


@dataclass(frozen=True)
class Trained:
    """A classifier that was written to `folder`, and its report.json."""

    folder: Path
    report: dict[str, Any]
    notes: Sequence[str]  # what its user should know


def train_classifier(settings: Settings) -> Trained:
    """Train on a part of the examples, save, open what was saved, and measure that on the rest.

    The folder appears whole or not at all. Raises ConfigError or RewardConfigError.
    """
    check(settings)
    classifiers.needs("sklearn", "classifiers")
    examples = read_examples(settings.data, settings.text, settings.label)
    parts = split(examples, settings.held_out, settings.seed)
    with writing(settings.out, settings.overwrite) as folder:
        about = fit(settings, examples, parts, folder)
        classifier = seal(folder, about)
        truth = [row.label for row in parts.held_out]
        texts = [row.text for row in parts.held_out]
        probabilities = classifier.probabilities(texts)
        report = describe(settings, about, parts)
        measured = measure.evaluate(probabilities, parts.held_out, about.labels, settings.balanced)
        for label, numbers in measured["labels"].items():
            report["labels"][label] |= numbers
        report |= {key: value for key, value in measured.items() if key != "labels"}
        report["held_out"] |= baseline(settings, parts)
        report["speed"] = measure.speed(classifier, texts)
        report = rounded(report) | {"definitions": measure.DEFINITIONS}
        picture.draw(report, truth, probabilities, folder / PICTURE)
        write_json(folder / REPORT, report)
    return Trained(settings.out, report, list(notes(settings, parts, report)))


def describe(settings: Settings, about: About, parts: Split) -> dict[str, Any]:
    """The part of report.json that is known before anything is measured."""
    learnt, held_out = counts(parts.train), counts(parts.held_out)
    return {
        "kind": about.kind,
        "method": about.method,
        "saved": "the classifier that was measured: trained without the held-out texts",
        "labels": {
            label: {"train": learnt[label], "held_out": held_out[label]} for label in about.labels
        },
        "training": about.training,
    }


def baseline(settings: Settings, parts: Split) -> dict[str, float]:
    """What answering without reading gets on the held-out texts: accuracy and log loss.

    The answer is the label that is most frequent in training, its probability the labels' shares
    there; under `balanced` all shares, and weights, are equal.
    """
    learnt, held_out = counts(parts.train), counts(parts.held_out)
    common = max(sorted(learnt), key=lambda label: learnt[label])
    shares = {label: n / len(parts.train) for label, n in learnt.items()}
    loss = -sum(n * math.log(shares[label]) for label, n in held_out.items()) / len(parts.held_out)
    return {
        "baseline": held_out[common] / len(parts.held_out),
        "baseline_log_loss": math.log(len(learnt)) if settings.balanced else loss,
    }


def notes(settings: Settings, parts: Split, report: dict[str, Any]) -> Iterator[str]:
    """What a careful colleague would say about the result."""
    texts, numbers = len(parts.held_out), report["held_out"]
    low, high = numbers["accuracy_95"]
    if texts < 100:
        yield (
            f"only {texts} texts were held out: the accuracy may be anything from {low:.2f} to "
            f"{high:.2f}"
        )
    if low <= numbers["baseline"] or numbers["log_loss"] >= numbers["baseline_log_loss"]:
        yield (
            f"it is hardly better than answering without reading (accuracy "
            f"{numbers['baseline']:.3f}, log loss {numbers['baseline_log_loss']:.3f}): as a reward "
            "it would teach noise; add examples or try another --method"
        )
    learnt = counts(parts.train)
    if not settings.balanced and max(learnt.values()) >= UNEVEN * min(learnt.values()):
        told = ", ".join(f"{label} {n}" for label, n in sorted(learnt.items()))
        yield (
            f"the labels are uneven ({told}), and the probabilities carry these shares; "
            "--balanced trains as if all labels were equally frequent"
        )
    if parts.conflicting:
        yield f"{parts.conflicting} texts stand in the data with several labels"


def rounded(value: Any) -> Any:
    """Floats to four digits after the point, at every depth."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
