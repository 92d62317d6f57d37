"""`topic.trained` and `style.trained`: the trained pipeline's values, and what a folder must be."""

import hashlib
import json
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from rewards import RewardConfigError, RewardSet, classifiers, conformance, trained
from rewards.entries import RewardEntry
from rewards.style import Trained as Style
from rewards.topic import Trained as Topic
from rewards.trained import open_classifier, read_classifier
from rlalign.reward_training.examples import read_examples, split
from rlalign.reward_training.settings import Settings
from rlalign.reward_training.training import train_classifier

WORDS = {
    "good": ["good", "film", "the", "moon", "good"],
    "bad": ["bad", "film", "the", "answer", "bad"],
    "dull": ["the", "user", "film", "moon", "answer"],
}
TEXTS = [
    "good film",
    "",
    "bad bad the moon",
    "The MOON's film!",
    "moon 🚀 \u0301雨",
    "x",
    "the " * 900,
]


def data(folder, labels):
    rng = np.random.default_rng(0)
    rows = [
        {"text": " ".join(rng.choice(WORDS[label], 4)) + f" {i} no", "label": label}
        for label in labels
        for i in range(20)
    ]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(folder, labels=("good", "bad"), **options):
    settings = Settings(data(folder, labels), folder / "out", **options)
    train_classifier(settings)
    return settings


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A TF-IDF classifier of two labels; tests that alter it take `own`."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder)
    return folder / "out"


@pytest.fixture
def own(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "own")


class Counting:
    """Texts as counts of three words, of unit length, shifted by `shift`."""

    def __init__(self, shift=0.0):
        self.shift = shift

    def encode(self, texts):
        counts = np.array(
            [[t.count(w) + self.shift for w in ("good", "bad", "moon")] for t in texts]
        )
        norms = np.linalg.norm(counts, axis=1, keepdims=True)
        return counts / np.where(norms == 0, 1, norms)


# -- values ---------------------------------------------------------------------------------------

OPTIONS = {
    "words": {"token_pattern": r"(?u)\b\w+(?:['’]\w+)?\b", "ngram_range": (1, 2), "min_df": 1},  # noqa: RUF001
    "characters": {
        "analyzer": "char_wb", "ngram_range": (1, 4), "lowercase": False, "min_df": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("labels", [("good", "bad"), ("good", "bad", "dull")])
@pytest.mark.parametrize("features", ["words", "characters"])
def test_tfidf_gives_the_pipelines_probabilities(tmp_path, labels, features):
    settings = train(tmp_path, labels, features=features)
    classifier = read_classifier(str(settings.out))
    learnt = split(read_examples(settings.data, "text", "label"), 0.2, 0).train
    vectorizer = TfidfVectorizer(sublinear_tf=True, **OPTIONS[features])
    model = LogisticRegression(C=classifier.about.training["C"], max_iter=5000)
    model.fit(vectorizer.fit_transform([r.text for r in learnt]), [r.label for r in learnt])
    expected = model.predict_proba(vectorizer.transform(TEXTS))
    assert classifier.labels == model.classes_.tolist() == sorted(labels)
    assert classifier.probabilities(TEXTS) == pytest.approx(expected, abs=1e-6)
    for column, label in enumerate(classifier.labels):
        values = Style(path=str(settings.out), label=label)(TEXTS)
        assert values == pytest.approx(expected[:, column], abs=1e-6)
    assert np.ptp(expected[:, 0]) > 0.1  # the texts are told apart


@pytest.mark.parametrize("labels", [("good", "bad"), ("good", "bad", "dull")])
def test_embeddings_give_the_pipelines_probabilities(tmp_path, monkeypatch, labels):
    monkeypatch.setattr(classifiers, "embedder", lambda name: Counting())
    settings = train(tmp_path, labels, method="embedding", model="counting")
    classifier = read_classifier(str(settings.out))
    learnt = split(read_examples(settings.data, "text", "label"), 0.2, 0).train
    model = LogisticRegression(C=classifier.about.training["C"], max_iter=5000)
    model.fit(Counting().encode([r.text for r in learnt]), [r.label for r in learnt])
    expected = model.predict_proba(Counting().encode(TEXTS))
    assert classifier.about.embedder == "counting"
    assert classifier.probabilities(TEXTS) == pytest.approx(expected, abs=1e-6)


def test_a_fine_tuned_encoder_gives_the_values_of_plain_transformers(
    tmp_path, classifier_directory
):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    settings = train(
        tmp_path, method="encoder", model=str(classifier_directory), epochs=30, lr=1e-2
    )
    classifier, folder = read_classifier(str(settings.out)), settings.out / "encoder"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    expected = []
    for text in TEXTS:
        encoded = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            expected.append(torch.softmax(network(**encoded).logits, -1)[0].tolist())
    assert network.config.id2label == {0: "bad", 1: "good"} and classifier.about.max_length == 32
    assert classifier.probabilities(TEXTS) == pytest.approx(np.array(expected), abs=1e-6)
    report = json.loads((settings.out / "report.json").read_text())
    assert report["held_out"]["auc"] > 0.9  # it has learnt
    suffixes = {path.suffix for path in settings.out.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".png"}
    for kind in ("topic.trained", "style.trained"):
        conformance.check(kind, {"path": str(settings.out), "label": "good"})
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refused(settings.out, "encoder/pytorch_model.bin is not listed in classifier.json")


def test_log_odds_are_those_of_the_probability_and_stay_finite(shared, tmp_path):
    settings = train(tmp_path, ("good", "bad", "dull"))
    for folder in (shared, settings.out):
        p = np.array(Style(path=str(folder), label="good")(TEXTS))
        odds = Style(path=str(folder), label="good", log_odds=True)(TEXTS)
        assert odds == pytest.approx(np.log(p / (1 - p)), abs=1e-6)
    sure = trained.TrainedClassifier(
        "x", open_classifier(str(shared)).about, lambda texts: np.array([[0.0, 800.0]])
    )
    assert sure.log_odds([""], 1) == pytest.approx([800.0])
    assert sure.log_odds([""], 0) == pytest.approx([-800.0])


@pytest.mark.parametrize("log_odds", [False, True])
def test_the_kinds_keep_the_contract(shared, log_odds):
    for kind in ("topic.trained", "style.trained"):
        conformance.check(kind, {"path": str(shared), "label": "good", "log_odds": log_odds})


def test_a_topic_may_be_judged_with_its_prompt(shared):
    alone, joined = (
        Topic(path=str(shared), label="good", include_prompt=on) for on in (False, True)
    )
    assert joined(["good good"], ["film"]) == alone([""], ["good good film"])
    assert alone(["good good"], ["film"]) == alone([""], ["film"])


def test_no_text_is_no_value(shared):
    assert Style(path=str(shared), label="good")([]) == []


# -- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "hint"), [("god", "; did you mean 'good'?"), ("xyz", ""), (1, ""), (True, "")]
)
def test_an_unknown_label_names_those_that_there_are(shared, label, hint):
    entry = RewardEntry("x", "topic.trained", {"path": str(shared), "label": label})
    with pytest.raises(RewardConfigError) as caught:
        RewardSet([entry])
    assert str(caught.value) == (
        f"rewards.x.label={label!r} is no label of '{shared}', which has: bad, good{hint}"
    )


def test_numbers_and_truth_values_name_labels_as_json_writes_them(own):
    about = json.loads((own / "classifier.json").read_text())
    for labels, wanted in ((["0", "1"], 1), (["false", "true"], True), (["no", "1"], "1")):
        (own / "classifier.json").write_text(json.dumps(about | {"labels": labels}))
        classifier = read_classifier(str(own))
        assert classifier.column(wanted) == 1


# -- folders --------------------------------------------------------------------------------------


def refused(folder, message):
    with pytest.raises(RewardConfigError) as caught:
        read_classifier(str(folder))
    assert str(caught.value).startswith(f"path={str(folder)!r}") and message in str(caught.value)


def alter(folder, **changes):
    """Change keys of classifier.json; None removes one."""
    path = folder / "classifier.json"
    about = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


def rehash(folder, name):
    """What someone would do who alters a file on purpose."""
    files = json.loads((folder / "classifier.json").read_text())["files"]
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    alter(folder, files=files | {name: digest})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "classifier.json has format=2; this version of rlalign reads 1"),
        ({"format": None}, "classifier.json has format=None; this version"),
        ({"labels": None}, "classifier.json: labels: field required"),
        ({"labels": ["good", "good"]}, "labels=['good', 'good'] are not all different"),
        ({"labels": ["good", 3]}, "classifier.json: labels.1: input should be a valid string"),
        ({"labels": ["a", "b", "c"]}, "coef is float64 of shape (1, 110); it should be float64 of"),
        ({"code": "x"}, "classifier.json: code: is not known"),
        ({"method": "encoder"}, "classifier.json: features belongs to method 'tfidf'"),
        ({"features": None}, "classifier.json: features is missing"),
        ({"features": ".*"}, "classifier.json: features: input should be 'words' or 'characters'"),
        ({"files": {}}, "vocabulary.json is not listed in classifier.json"),
        ({"files": {"../x": "0"}}, "../x is missing, or has no place under 'tfidf'"),
        ({"probes": [{"text": "a", "probabilities": [1.0]}]}, "a probe has 1 probabilities"),
        ({"probes": [{"text": "a", "probabilities": [0.0, 1.0]}]}, "when it was saved: a library"),
    ],
)
def test_an_altered_description_is_refused(own, changes, message):
    size = len(json.loads((own / "vocabulary.json").read_text()))
    alter(own, **changes)
    refused(own, message.replace("110", str(size)))


@pytest.mark.parametrize("text", ["", "[1]", "{", '"x"', "3", "[" * 100_000])
def test_a_description_that_is_none_is_refused(own, text):
    (own / "classifier.json").write_text(text)
    refused(own, "classifier.json is no JSON object (")


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.json"])
def test_a_cut_or_altered_or_absent_file_is_named(own, name):
    whole = (own / name).read_bytes()
    for content in (whole[:-1], whole[:10], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        (own / name).write_bytes(content)
        refused(own, f"{name} is not what was written: its sha256 differs; copy the folder anew")
    (own / name).unlink()
    refused(own, f"{name} is missing")


def test_weights_of_another_form_are_refused_though_their_hash_is_right(own):
    path = own / "weights.safetensors"
    sound = load_file(path)
    wrong = [
        ({"coef": sound["coef"][:, :-1]}, "weights.safetensors: coef is float64 of shape (1, "),
        ({"idf": sound["idf"].astype(np.float32)}, "weights.safetensors: idf is float32 of sha"),
        ({"intercept": np.array([math.nan])}, "weights.safetensors: intercept holds NaN or inf"),
        ({"coef": sound["coef"] * math.inf}, "weights.safetensors: coef holds NaN or infinity"),
        ({"more": np.zeros(1)}, "holds ['coef', 'idf', 'intercept', 'more']; it should hold ["),
        ({"coef": sound["coef"] * 2}, "when it was saved: a library is another one"),
    ]
    for changes, message in wrong:
        save_file(sound | changes, path)
        rehash(own, path.name)
        refused(own, message)
    save_file({"coef": sound["coef"]}, path)
    rehash(own, path.name)
    refused(own, "weights.safetensors holds ['coef']; it should hold ['coef', 'idf', 'intercept']")
    path.write_bytes(b"no tensors")
    rehash(own, path.name)
    refused(own, "weights.safetensors cannot be read (")


@pytest.mark.parametrize("content", ["{}", "[]", '["a", "a"]', "[1]", "x"])
def test_a_vocabulary_of_another_form_is_refused_though_its_hash_is_right(own, content):
    (own / "vocabulary.json").write_text(content)
    rehash(own, "vocabulary.json")
    refused(own, "vocabulary.json is no ")


def test_a_folder_that_is_not_there_or_none_of_ours_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    for name in ("none", "file"):
        refused(name, f"there is no such folder in {tmp_path}; train a classifier with `rlalign")
    (tmp_path / "other").mkdir()
    refused("other", "has no classifier.json, so `rlalign rewards train` did not write it")
    (tmp_path / "other" / "config.json").write_text("{}")
    refused("other", "; a transformers classifier is named by `model` of style.classifier")


def test_a_sentence_encoder_that_has_changed_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "embedder", lambda name: Counting())
    settings = train(tmp_path, method="embedding", model="counting")
    monkeypatch.setattr(classifiers, "embedder", lambda name: Counting(shift=0.3))
    refused(settings.out, "when it was saved: the sentence encoder 'counting' or a library is anot")


def test_a_sentence_encoder_that_is_gone_is_named(own, tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "embedder", lambda name: Counting())
    settings = train(tmp_path, method="embedding", model="counting")
    monkeypatch.undo()
    alter(settings.out, embedder="./gone")
    refused(settings.out, "its sentence encoder, model='./gone': there is no such directory")


def test_a_folder_is_opened_once_and_a_retrained_one_does_not_change_a_run(own, shared, tmp_path):
    assert open_classifier(str(own)) is open_classifier(str(own))
    reward = Style(path=str(own), label="good")
    reward.load()
    before = reward(TEXTS)
    shutil.rmtree(own)
    shutil.copytree(train(tmp_path, ("good", "bad", "dull")).out, own)
    assert reward(TEXTS) == before
    assert Style(path=str(own), label="good")(TEXTS) != before
