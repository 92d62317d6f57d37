"""Rewards on what a completion is about."""

from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rewards import classifiers
from rewards.classifiers import Embedder, Floats
from rewards.contract import RewardConfigError
from rewards.registry import reward
from rewards.schema import nearest
from rewards.sequences import SequenceClassifier, sequence_classifier
from rewards.trained import ClassifierLabel, ClassifierPath, LabelScorer, LogOdds

EmbeddingModel = Annotated[
    str, Field(min_length=1, description="a sentence-transformers model: embedded, hub id or path")
]
IncludePrompt = Annotated[bool, Field(description="judge the prompt and the completion together")]


def _texts(prompts: list[str], completions: list[str], include_prompt: bool) -> list[str]:
    if not include_prompt:
        return completions
    return [
        _join(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _join(prompt: str, completion: str) -> str:
    apart = prompt[-1:].isspace() or completion[:1].isspace() or not completion[:1].isalnum()
    return prompt + completion if apart else f"{prompt} {completion}"


@reward("topic.similarity", bounds=(-1, 1), example={"topic": "outer space"})
class Similarity:
    """Cosine between the sentence embeddings of the completion and of the nearest of the topics.

    In practice from -0.1 to 0.8; above 0.25 a text is mostly on the topic with the default model.
    0 for a blank text. Source: Reimers and Gurevych 2019 (arXiv 1908.10084).
    """

    def __init__(
        self,
        *,
        topic: Annotated[
            list[str], Field(min_length=1, description="a topic in words, or several of which one")
        ],
        model: EmbeddingModel = "all-minilm-l6-v2",
        include_prompt: IncludePrompt = False,
    ) -> None:
        if not all(name.strip() for name in topic):
            raise RewardConfigError(f"topic={topic!r} holds an empty topic; name it")
        self.topics, self.model, self.include_prompt = topic, model, include_prompt

    def load(self) -> None:
        _ = self._topic_vectors

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        texts = _texts(prompts, completions, self.include_prompt)
        cosines = self._embedder.encode(texts) @ self._topic_vectors.T  # (B, topics)
        # Rounding can put a cosine just outside its range.
        best = cosines.max(axis=1).clip(-1.0, 1.0)
        return [float(c) if text.strip() else 0.0 for c, text in zip(best, texts, strict=True)]

    @property
    def _embedder(self) -> Embedder:
        return classifiers.embedder(self.model)

    @cached_property
    def _topic_vectors(self) -> Floats:
        return self._embedder.encode(self.topics)  # (topics, D)


@reward(
    "topic.classifier",
    bounds=(0, 1),
    example={"label": "sports", "labels": ["sports", "politics", "science"]},
)
class Classifier:
    """Probability, from 0 to 1, that the completion belongs to `label`.

    `zero-shot` needs no training: softmax over `labels` of the cosine between the embeddings of
    the text and of the label in `template`, divided by `temperature`; uniform for a blank text.
    `sequence` is the label's probability under a Hugging Face sequence classifier in `model`.
    """

    def __init__(
        self,
        *,
        label: Annotated[str, Field(min_length=1, description="the label that is wanted")],
        labels: Annotated[
            list[str] | None, Field(description="zero-shot: every label, `label` among them")
        ] = None,
        backend: Annotated[
            Literal["zero-shot", "sequence"],
            Field(description="by embeddings of the labels, or by a trained classifier"),
        ] = "zero-shot",
        model: Annotated[
            str,
            Field(
                min_length=1,
                description="zero-shot: a sentence-transformers model; sequence: a sequence "
                "classifier; embedded, hub id or path",
            ),
        ] = "all-minilm-l6-v2",
        temperature: Annotated[
            float, Field(gt=0, description="zero-shot: the smaller, the surer")
        ] = 0.05,
        template: Annotated[
            str, Field(description="zero-shot: a sentence with {} for the label")
        ] = "This text is about {}.",
        include_prompt: IncludePrompt = False,
    ) -> None:
        self.label, self.labels, self.model = label, labels or [], model
        self.temperature, self.template, self.include_prompt = temperature, template, include_prompt
        self.backend = backend
        if backend == "sequence":
            if labels is not None:
                raise RewardConfigError(f"labels={labels!r} belong to the model; remove them")
            if model == "all-minilm-l6-v2":
                raise RewardConfigError(f"model={model!r} embeds; name a sequence classifier")
            return
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise RewardConfigError(f"labels={labels!r} must be two or more different labels")
        if label not in self.labels:
            hint = nearest(label, self.labels, "labels")
            raise RewardConfigError(f"label={label!r} is none of the labels; {hint}")
        if "{}" not in template:
            raise RewardConfigError(f"template={template!r} has no {{}} for the label")

    def load(self) -> None:
        if self.backend == "sequence":
            self._sequence.column(self.label)
        else:
            _ = self._label_vectors

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        texts = _texts(prompts, completions, self.include_prompt)
        if self.backend == "sequence":
            column = self._sequence.column(self.label)
            values = self._sequence.probabilities(self._sequence.logits(texts))[:, column]
            return [float(value) for value in values]
        cosines = classifiers.embedder(self.model).encode(texts) @ self._label_vectors.T
        blank = np.array([not text.strip() for text in texts], dtype=bool)
        cosines[blank] = 0.0
        probabilities = classifiers.softmax(cosines / self.temperature)  # (B, labels)
        return [float(value) for value in probabilities[:, self.labels.index(self.label)]]

    @property
    def _sequence(self) -> SequenceClassifier:
        return sequence_classifier(self.model)

    @cached_property
    def _label_vectors(self) -> Floats:
        filled = [self.template.replace("{}", label) for label in self.labels]
        return classifiers.embedder(self.model).encode(filled)  # (labels, D)


@reward("topic.trained", example={"path": "example-topics", "label": "space"})
class Trained:
    """Probability, from 0 to 1, of `label` under a classifier that learnt from your examples.

    `rlalign rewards train` makes the folder from texts with labels. With `log_odds` the value is
    unbounded and has a slope where the probability is close to 0 or 1. A blank text, or one without
    a known word under `--method tfidf`, gets a value too, which says nothing.
    """

    def __init__(
        self,
        *,
        path: ClassifierPath,
        label: ClassifierLabel,
        log_odds: LogOdds = False,
        include_prompt: IncludePrompt = False,
    ) -> None:
        self.scorer, self.include_prompt = LabelScorer(path, label, log_odds), include_prompt

    def load(self) -> None:
        self.scorer.load()

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        return self.scorer(_texts(prompts, completions, self.include_prompt))
