"""The embedded models themselves, from the real cache: what was converted is what was packaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards import embedded

OPENING = "The old clockmaker opened the door and"


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    directory = embedded.path("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="session")
def glass() -> tuple[Any, Any]:
    directory = embedded.path("glass-tiny")
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="session")
def glass_expected() -> dict[str, Any]:
    """What glassllm's own NumPy code gives; the file says how it was made."""
    file = Path(__file__).parent / "data" / "glass.json"
    return dict(json.loads(file.read_text(encoding="utf-8")))


def test_smollm2_continues_an_opening_in_english(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    inputs = tokenizer(OPENING, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(output[0]) == (
        f"{OPENING} began to work on a new one. He was amazed by"
    )


def test_smollm2_is_plain_and_its_pad_is_not_its_eos(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not hasattr(model.config, "quantization_config")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (0, 2)
    assert "<|im_start|>assistant" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer("Hello").input_ids == [19556]


@pytest.mark.parametrize("name", ["smollm2-135m", "glass-tiny"])
def test_the_generation_config_chooses_nothing(name: str) -> None:
    settings = json.loads((embedded.path(name) / "generation_config.json").read_text())
    assert set(settings) == {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
    }


def test_a_saved_and_reloaded_smollm2_gives_identical_logits(
    smollm2: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = smollm2
    ids = tokenizer(OPENING, return_tensors="pt").input_ids
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_glass_gives_the_logits_of_its_own_numpy_code(
    glass: tuple[Any, Any], glass_expected: dict[str, Any]
) -> None:
    expected = glass_expected["logits"]
    with torch.no_grad():
        logits = glass[0](torch.tensor([expected["ids"]])).logits[0]  # (T, V)
    assert_close(logits[:, expected["at"]], torch.tensor(expected["values"]), atol=1e-4, rtol=0)
    assert_close(logits.logsumexp(-1), torch.tensor(expected["logsumexp"]), atol=1e-4, rtol=0)


def test_glass_tokenizes_as_its_own_code_does(
    glass: tuple[Any, Any], glass_expected: dict[str, Any]
) -> None:
    _, tokenizer = glass
    assert tokenizer.is_fast
    for case in glass_expected["tokens"]:
        assert tokenizer(case["text"]).input_ids == case["ids"]
        known = case["decoded"].replace("⁇", "")  # how glassllm writes an unknown character
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == known


def test_minilm_puts_a_paraphrase_nearer_than_another_topic() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(
        str(embedded.path("all-minilm-l6-v2")), device="cpu"
    )
    rocket, launch, soup = model.encode(
        ["The rocket left the launch pad.", "A spacecraft lifted off.", "Stir the soup slowly."],
        normalize_embeddings=True,
    )
    assert rocket @ launch > 0.5
    assert rocket @ soup < 0.2


def sentiment_logits(texts: list[str]) -> "np.ndarray[Any, Any]":
    from safetensors.numpy import load_file
    from sklearn.feature_extraction.text import TfidfVectorizer

    directory = embedded.path("sentiment-reviews")
    stored = json.loads((directory / "vocabulary.json").read_text(encoding="utf-8"))
    weights = load_file(directory / "model.safetensors")
    settings = stored["tfidf"] | {"ngram_range": tuple(stored["tfidf"]["ngram_range"])}
    vectoriser = TfidfVectorizer(vocabulary=stored["vocabulary"], **settings)
    vectoriser.idf_ = weights["idf"]
    return np.asarray(vectoriser.transform(texts) @ weights["coef"] + weights["intercept"])


def test_the_stored_sentiment_model_tells_praise_from_blame() -> None:
    praise, blame = sentiment_logits(
        ["A warm, moving and wonderfully funny film.", "A dull, lifeless and pointless mess."]
    )
    assert praise > 1
    assert blame < -1


def test_the_sentiment_report_was_measured_on_other_movies() -> None:
    report = json.loads((embedded.path("sentiment-reviews") / "report.json").read_text())
    assert 0.84 < report["auc"] < 0.87
    assert report["accuracy"] > report["majority_class"] + 0.15
    assert report["held_out_reviews"] > 2000
