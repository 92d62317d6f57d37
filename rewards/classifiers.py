"""Models behind the topic and style rewards: loaded on first use, one a process and device."""

import importlib
import json
import os
import pickle
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
        with loading(model) as path:
            self._model = library.SentenceTransformer(path, device=device, trust_remote_code=False)

    def encode(self, texts: Sequence[str]) -> Floats:
        """(B, D); texts beyond the model's length are cut. Batches are formed by length."""
        if not texts:
            return np.zeros((0, 1))
        vectors = self._model.encode(
            list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float64)


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


@cache
def sentiment_reviews() -> ReviewSentiment:
    from rewards import embedded

    return ReviewSentiment(embedded.path("sentiment-reviews"))


@cache
def _embedder(model: str, device: str) -> Embedder:
    return Embedder(model, device)


def pays_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 run in hardware; emulated ones are slower than float32."""
    torch = needs("torch", "classifiers")
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * x))  # exp would overflow


def softmax(x: Floats) -> Floats:
    """Over the last axis."""
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return result


@contextmanager
def loading(model: str) -> Iterator[str]:
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
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        raise RewardConfigError(
            f"model={model!r} cannot be loaded ({type(error).__name__}: {first_line(error)}); "
            f"{choices}"
        ) from error


def first_line(error: BaseException) -> str:
    """Why a model cannot be loaded, on one line."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own words tell how to run it
        return (
            "its weights are a pickle of more than tensors, which is not opened; save them as "
            "safetensors"
        )
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" :") if lines else type(error).__name__
