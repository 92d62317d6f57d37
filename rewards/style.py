"""Rewards on how a completion is written."""

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field

from rewards import classifiers
from rewards.contract import RewardConfigError
from rewards.registry import reward
from rewards.sequences import SequenceClassifier, sequence_classifier
from rewards.structure import split_sentences
from rewards.trained import ClassifierLabel, ClassifierPath, LabelScorer, LogOdds
from rewards.words import whole_words


@reward("style.sentiment", bounds=(0, 1), example={})
class Sentiment:
    """How positive the completion is, from 0 to 1.

    `reviews`: probability of a positive film review, TF-IDF and logistic regression trained on
    labelled reviews (AUC 0.851 on held-out films); a text without a known word gets the
    base rate. `vader`: (compound + 1) / 2 of the VADER word list, 0.5 for none of its words (Hutto
    and Gilbert 2014). Use one as the reward and the other, with weight 0, as its judge. All of it
    goes to the last action: neither is a sum over words (VADER weighs negations and emphasis).
    """

    def __init__(
        self,
        *,
        backend: Annotated[
            Literal["reviews", "vader"], Field(description="trained classifier, or word list")
        ] = "reviews",
    ) -> None:
        self.backend = backend

    def load(self) -> None:
        _ = _vader() if self.backend == "vader" else classifiers.sentiment_reviews()

    def __call__(self, completions: list[str]) -> list[float]:
        if self.backend == "reviews":
            return [float(p) for p in classifiers.sentiment_reviews().probability(completions)]
        analyzer = _vader()
        return [(analyzer.polarity_scores(text)["compound"] + 1) / 2 for text in completions]


@cache
def _vader() -> Any:
    module = classifiers.needs("vaderSentiment.vaderSentiment", "embedded")
    return module.SentimentIntensityAnalyzer()


@reward("style.classifier", example={"model": "lvwerra/distilbert-imdb", "label": "POSITIVE"})
class Classifier:
    """Probability of `label` under a Hugging Face sequence classifier, or its raw logit.

    From 0 to 1 as a probability: a softmax over the labels, or a sigmoid where the model has one
    output or says that its labels do not exclude each other. A logit is unbounded; it is what
    reward models with one output are trained to give.
    """

    def __init__(
        self,
        *,
        model: Annotated[str, Field(min_length=1, description="hub id or local directory")],
        label: Annotated[str | int, Field(description="the label's name or number")] = 0,
        output: Annotated[
            Literal["probability", "logit"],
            Field(description="from 0 to 1, or the unbounded number before the softmax"),
        ] = "probability",
        chat: Annotated[
            bool | None,
            Field(
                description="judge prompt and completion as a conversation in the model's chat "
                "template; null: where it has one"
            ),
        ] = None,
        max_length: Annotated[
            int | None, Field(ge=1, description="tokens that are read; null: the model's limit")
        ] = None,
        batch_size: Annotated[int, Field(ge=1, description="texts in one forward pass")] = 32,
        trust_remote_code: Annotated[
            bool, Field(description="run code that comes with the model; only for those you trust")
        ] = False,
    ) -> None:
        self.model, self.label, self.output, self.chat = model, label, output, chat
        self.max_length, self.batch_size, self.trust = max_length, batch_size, trust_remote_code

    def load(self) -> None:
        self._classifier.column(self.label)
        if self.chat and not self._classifier.has_chat_template:
            raise RewardConfigError(
                f"chat=True, but {self.model!r} has no chat template; remove it"
            )

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        model = self._classifier
        chat = model.has_chat_template if self.chat is None else self.chat
        pairs = zip(prompts, completions, strict=True)
        texts = [model.as_chat(p, c) for p, c in pairs] if chat else completions
        logits = model.logits(texts, self.max_length, self.batch_size, special_tokens=not chat)
        values = logits if self.output == "logit" else model.probabilities(logits)
        return [float(value) for value in values[:, model.column(self.label)]]

    @property
    def _classifier(self) -> SequenceClassifier:
        return sequence_classifier(self.model, self.trust)


@reward("style.trained", example={"path": "example-styles", "label": "formal"})
class Trained:
    """Probability, from 0 to 1, of `label` under a classifier that learnt from your examples.

    `rlalign rewards train --kind style` makes the folder from texts with labels. With `log_odds`
    the value is unbounded and has a slope where the probability is close to 0 or 1. An empty text
    gets a value too, which says nothing.
    """

    def __init__(
        self, *, path: ClassifierPath, label: ClassifierLabel, log_odds: LogOdds = False
    ) -> None:
        self.scorer = LabelScorer(path, label, log_odds)

    def load(self) -> None:
        self.scorer.load()

    def __call__(self, completions: list[str]) -> list[float]:
        return self.scorer(completions)


@reward("style.readability", bounds=(0, 1), example={})
class Readability:
    """Flesch reading ease of the completion, cut to 0..100 and divided by 100: 1 is easiest.

    206.835 - 1.015 words / sentences - 84.6 syllables / words (Flesch 1948, for English); pyphen's
    hyphenation counts the syllables, too few rather than too many. 0 for a text without words. All
    of it goes to the last action: over its first words the ratio jumps from 0 to 1 and back.
    """

    def __init__(
        self, *, language: Annotated[str, Field(description="pyphen's dictionary")] = "en_US"
    ) -> None:
        self.language = language

    def load(self) -> None:
        _hyphenation(self.language)

    def __call__(self, completions: list[str]) -> list[float]:
        dictionary = _hyphenation(self.language)
        return [_flesch(text, dictionary) for text in completions]


@cache
def _hyphenation(language: str) -> Any:
    pyphen = classifiers.needs("pyphen", "classifiers")
    if pyphen.language_fallback(language) is None:
        raise RewardConfigError(
            f"language={language!r} has no dictionary in pyphen, as 'en_US' has"
        )
    return pyphen.Pyphen(lang=language)


def _flesch(text: str, dictionary: Any) -> float:
    words = whole_words(text)
    if not words:
        return 0.0
    syllables = sum(len(dictionary.positions(word)) + 1 for word in words)
    ease = 206.835 - 1.015 * len(words) / len(split_sentences(text)) - 84.6 * syllables / len(words)
    return min(max(ease / 100, 0.0), 1.0)
