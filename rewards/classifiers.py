"""Models behind the topic and style rewards: loaded on first use, one a process and device."""

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.contract import RewardConfigError

Floats = NDArray[np.float64]

_device = "cpu"


def set_device(device: str) -> None:
    """Where models that are loaded from now on run; torch's name of it, at first `cpu`."""
    global _device
    _device = device


def device() -> str:
    """Where models that are loaded now run."""
    return _device


def needs(module: str, extra: str) -> Any:
    """An optional library's module, or how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RewardConfigError(
            f"needs the Python package that provides '{error.name}': pip install 'rlalign[{extra}]'"
        ) from error


class Embedder:
    """Sentence embeddings of unit length."""

    def __init__(self, model: str, device: str) -> None:
        library = needs("sentence_transformers", "classifiers")
        with _loading(model) as path:
            self._model = library.SentenceTransformer(path, device=device)

    def encode(self, texts: Sequence[str]) -> Floats:
        """(B, D); texts beyond the model's length are cut. Batches are formed by length."""
        if not texts:
            return np.zeros((0, 1))
        vectors = self._model.encode(
            list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float64)


class SequenceClassifier:
    """A Hugging Face sequence classifier: logits of texts, and the column of a label."""

    def __init__(self, model: str, trust_remote_code: bool, device: str) -> None:
        transformers = needs("transformers", "classifiers")
        self.name, self._device, self._torch = model, device, needs("torch", "classifiers")
        trust = {"trust_remote_code": trust_remote_code}
        with _loading(model) as path:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, **trust)
            network, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
                path, output_loading_info=True, dtype=self._torch.float32, **trust
            )
        if loading["missing_keys"]:  # transformers only warns, and classifies at random
            raise RewardConfigError(
                f"model={model!r} is no trained sequence classifier: its files lack "
                f"{', '.join(sorted(loading['missing_keys'])[:3])}"
            )
        self._network = network.to(device).eval()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._network.config.pad_token_id = self._tokenizer.pad_token_id
        self._tokenizer.padding_side = "right"

    @property
    def has_chat_template(self) -> bool:
        return self._tokenizer.chat_template is not None

    @property
    def labels(self) -> list[str]:
        names = self._network.config.id2label
        return [names[i] for i in sorted(names)]

    def column(self, label: str | int) -> int:
        """The index of a label by name (case does not matter) or number."""
        folded = [name.casefold() for name in self.labels]
        if isinstance(label, int) and 0 <= label < len(folded):
            return label
        if isinstance(label, str) and label.casefold() in folded:
            return folded.index(label.casefold())
        raise RewardConfigError(
            f"label={label!r} is no label of {self.name!r}; it has: "
            + ", ".join(f"{i} {name!r}" for i, name in enumerate(self.labels))
        )

    def as_chat(self, prompt: str, completion: str) -> str:
        """Prompt and completion as a conversation in the model's own template."""
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False)
        return text

    def logits(
        self,
        texts: Sequence[str],
        max_length: int | None = None,
        batch_size: int = 32,
        *,
        special_tokens: bool = True,
    ) -> Floats:
        """(B, labels); texts beyond `max_length` tokens (null: the model's own limit) are cut.

        `special_tokens` is false for text from `as_chat`, which holds them already.
        """
        limit = min(max_length or self._longest(), self._longest())
        encoded = [
            self._tokenizer(
                text, truncation=True, max_length=limit, add_special_tokens=special_tokens
            )
            for text in texts
        ]
        # Without special tokens an empty text has no token at all, and no logits.
        ids = [one["input_ids"] or [self._tokenizer.pad_token_id] for one in encoded]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = np.zeros((len(ids), len(self.labels)))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            padded = self._tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
            with self._torch.inference_mode():
                result = self._network(**padded.to(self._device)).logits
            out[rows] = result.float().cpu().numpy()
        return out

    def probabilities(self, logits: Floats) -> Floats:
        """(B, labels): a softmax, or a sigmoid each where labels do not exclude each other."""
        several = self._network.config.problem_type == "multi_label_classification"
        return sigmoid(logits) if several or logits.shape[1] == 1 else softmax(logits)

    def _longest(self) -> int:
        limits = [self._tokenizer.model_max_length]  # astronomic where the files name none
        positions = self._network.config.to_dict().get("max_position_embeddings")
        return int(min(limits if positions is None else [*limits, positions]))


class ReviewSentiment:
    """Probability that a text is a positive review: TF-IDF and logistic regression."""

    def __init__(self, directory: Path) -> None:
        text = needs("sklearn.feature_extraction.text", "classifiers")
        load_file = needs("safetensors.numpy", "classifiers").load_file
        tensors = load_file(directory / "model.safetensors")
        stored = json.loads((directory / "vocabulary.json").read_text(encoding="utf-8"))
        options = {**stored["tfidf"], "ngram_range": tuple(stored["tfidf"]["ngram_range"])}
        self._vectorizer = text.TfidfVectorizer(vocabulary=stored["vocabulary"], **options)
        self._vectorizer.idf_ = tensors["idf"]
        self._coef, self._intercept = tensors["coef"], float(tensors["intercept"][0])

    def probability(self, texts: Sequence[str]) -> Floats:
        """(B,); a text without a known word gets that of the intercept."""
        if not texts:
            return np.zeros(0)
        return sigmoid(self._vectorizer.transform(texts) @ self._coef + self._intercept)


def embedder(model: str) -> Embedder:
    return _embedder(model, _device)


def sequence_classifier(model: str, trust_remote_code: bool = False) -> SequenceClassifier:
    return _sequence_classifier(model, trust_remote_code, _device)


@cache
def sentiment_reviews() -> ReviewSentiment:
    from rewards import embedded

    return ReviewSentiment(embedded.path("sentiment-reviews"))


@cache
def _embedder(model: str, device: str) -> Embedder:
    return Embedder(model, device)


@cache
def _sequence_classifier(model: str, trust_remote_code: bool, device: str) -> SequenceClassifier:
    return SequenceClassifier(model, trust_remote_code, device)


def sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * x))  # exp would overflow


def softmax(x: Floats) -> Floats:
    """Over the last axis."""
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return result


@contextmanager
def _loading(model: str) -> Iterator[str]:
    """The directory or hub id to load from, without progress bars; a failure names the model."""
    from rewards import embedded
    from rewards.embedded import converters

    choices = f"give an embedded model ({', '.join(embedded.names())}), a hub id or a directory"
    path = str(embedded.path(model)) if embedded.is_embedded(model) else os.path.expanduser(model)
    # A hub id has one slash at most.
    is_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    if is_local and not os.path.isdir(path):
        raise RewardConfigError(f"model={model!r}: there is no such directory; {choices}")
    try:
        with converters.quiet_transformers():
            yield path
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise RewardConfigError(
            f"model={model!r} cannot be loaded ({type(error).__name__}: {reason}); {choices}"
        ) from error
