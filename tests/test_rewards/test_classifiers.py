import json
import math

import numpy as np
import pytest

from rewards import RewardConfigError, RewardSet, classifiers
from rewards.classifiers import ReviewSentiment, sigmoid, softmax
from rewards.entries import RewardEntry
from rewards.registry import check_params
from rewards.sequences import SequenceClassifier, sequence_classifier
from rewards.style import Classifier, Readability, Sentiment
from rewards.topic import Classifier as TopicClassifier
from rewards.topic import Similarity

TEXTS = ["good film", "", "bad bad the the moon good film bad", "moon 🚀", "good " * 500]


WORDS = ("moon", "goal", "vote")


class FakeEmbedder:
    """Texts as counts of three words, of unit length; blank ones get a direction, as they do."""

    def encode(self, texts):
        counts = np.array(
            [[text.count(word) for word in WORDS] if text.strip() else [1, 0, 0] for text in texts]
        )
        norms = np.linalg.norm(counts, axis=1, keepdims=True)
        return counts / np.where(norms == 0, 1, norms)


@pytest.fixture
def fake_embedder(monkeypatch):
    monkeypatch.setattr(classifiers, "embedder", lambda model: FakeEmbedder())


def test_similarity_is_the_cosine_to_the_nearest_topic(fake_embedder):
    reward = Similarity(topic=["moon", "vote"])
    values = reward([""] * 4, ["moon goal", "vote", "goal", " "])
    assert values == pytest.approx([1 / math.sqrt(2), 1.0, 0.0, 0.0])


def test_similarity_reads_the_prompt_when_asked(fake_embedder):
    assert Similarity(topic=["moon"], include_prompt=True)(["the moon"], ["rises"]) == [1.0]
    assert Similarity(topic=["moon"])(["the moon"], ["rises"]) == [0.0]


def test_prompt_and_completion_are_joined_at_a_word_boundary():
    from rewards.topic import _join

    assert _join("the moon", "rises") == "the moon rises"
    assert _join("the moon", ", she") == "the moon, she"
    assert _join("the moon", " rises") == "the moon rises"


def test_zero_shot_is_a_softmax_over_cosines(fake_embedder):
    reward = TopicClassifier(label="goal", labels=["moon", "goal"], temperature=0.5, template="{}")
    odds = math.exp((1 - 0) / 0.5)
    assert reward([""] * 3, ["goal", "moon", ""]) == pytest.approx(
        [odds / (1 + odds), 1 / (1 + odds), 0.5]
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"label": "a"}, "labels=None must be two or more"),
        ({"label": "a", "labels": ["a", "a"]}, "must be two or more different"),
        ({"label": "sport", "labels": ["sports", "art"]}, "did you mean 'sports'"),
        ({"label": "a", "labels": ["a", "b"], "template": "x"}, "template='x' has no {}"),
        ({"label": "a", "labels": ["a", "b"], "backend": "sequence"}, "belong to the model"),
        ({"label": "a", "backend": "sequence"}, "name a sequence classifier"),
    ],
)
def test_wrong_zero_shot_settings_are_refused(params, message):
    with pytest.raises(RewardConfigError) as caught:
        TopicClassifier(**params)
    assert message in str(caught.value)


def test_probabilities_of_a_sequence_classifier_do_not_depend_on_the_batch(classifier_directory):
    model = SequenceClassifier(str(classifier_directory), False, "cpu")
    together = model.probabilities(model.logits(TEXTS, batch_size=2))
    alone = np.concatenate([model.probabilities(model.logits([text])) for text in TEXTS])
    assert together == pytest.approx(alone, abs=1e-5)
    assert together.sum(axis=1) == pytest.approx(np.ones(len(TEXTS)))
    assert np.ptp(together[:, 2]) > 0.01  # the texts are told apart


def test_the_probabilities_are_those_of_plain_transformers(classifier_directory):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(classifier_directory)
    network = AutoModelForSequenceClassification.from_pretrained(classifier_directory).eval()
    with torch.no_grad():
        logits = network(**tokenizer("good film", return_tensors="pt")).logits
    expected = torch.softmax(logits, -1)[0, 2].item()
    for label in ("positive", 2):
        reward = Classifier(model=str(classifier_directory), label=label)
        assert reward([""], ["good film"]) == pytest.approx([expected], abs=1e-6)
    raw = Classifier(model=str(classifier_directory), label=2, output="logit")
    assert raw([""], ["good film"]) == pytest.approx([logits[0, 2].item()], abs=1e-5)


def test_max_length_cuts_the_text(classifier_directory):
    reward = Classifier(model=str(classifier_directory), label=2, max_length=4)
    values = reward([""] * 2, ["good film bad bad", "good film moon"])
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_an_unknown_label_names_those_that_there_are(classifier_directory):
    for label in ("joy", 3, -1):
        with pytest.raises(
            RewardConfigError, match="it has: 0 'NEGATIVE', 1 'neutral', 2 'Positive'"
        ):
            Classifier(model=str(classifier_directory), label=label).load()


def test_a_chat_template_that_is_not_there_is_refused(classifier_directory):
    with pytest.raises(RewardConfigError, match="has no chat template"):
        Classifier(model=str(classifier_directory), label=2, chat=True).load()


def test_a_chat_template_joins_prompt_and_completion(classifier_directory, tmp_path):
    import shutil

    directory = shutil.copytree(classifier_directory, tmp_path / "chat")
    template = "[CLS] {% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}[SEP]"
    (directory / "chat_template.jinja").write_text(template)
    chat = Classifier(model=str(directory), label=2)
    plain = Classifier(model=str(directory), label=2, chat=False)
    joined = plain([""], ["user good assistant film"])
    assert chat(["good"], ["film"]) == pytest.approx(joined, abs=1e-6)
    assert plain(["good"], ["film"]) != pytest.approx(joined, abs=1e-6)


def test_a_model_without_a_trained_head_is_refused(classifier_directory, tmp_path):
    from transformers import AutoTokenizer, BertForSequenceClassification

    network = BertForSequenceClassification.from_pretrained(classifier_directory)
    network.bert.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(classifier_directory).save_pretrained(tmp_path)
    with pytest.raises(
        RewardConfigError, match=r"no trained sequence classifier.*classifier\.bias"
    ):
        Classifier(model=str(tmp_path), label=0).load()


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(RewardConfigError, match=r"^model='.*' cannot be loaded \("):
        Classifier(model=str(tmp_path), label=0).load()
    with pytest.raises(RewardConfigError, match=r"^model='.*' cannot be loaded \("):
        Similarity(topic=["moon"], model=str(tmp_path)).load()


@pytest.mark.parametrize("model", ["./nope", "~/nope", "/nope", "some/model/nope"])
def test_a_model_directory_that_is_not_there_is_said_to_be_absent(model):
    line = f"rewards.x.model={model!r}: there is no such directory; give an embedded model ("
    for kind, params in (
        ("style.classifier", {"label": 0}),
        ("topic.similarity", {"topic": ["moon"]}),
        ("topic.classifier", {"label": "a", "labels": ["a", "b"]}),
        ("topic.classifier", {"label": "a", "backend": "sequence"}),
    ):
        with pytest.raises(RewardConfigError) as caught:
            RewardSet([RewardEntry("x", kind, check_params(kind, {**params, "model": model}))])
        assert str(caught.value).startswith(line)


def test_models_are_loaded_once_a_device(classifier_directory):
    name = str(classifier_directory)
    first = sequence_classifier(name)
    assert sequence_classifier(name) is first
    classifiers.set_device("meta")
    with pytest.raises(Exception, match="meta"):
        sequence_classifier(name).logits(["good"])


def test_the_topic_classifier_takes_a_sequence_classifier(classifier_directory):
    reward = TopicClassifier(label="positive", backend="sequence", model=str(classifier_directory))
    style = Classifier(model=str(classifier_directory), label="Positive")
    assert reward([""], ["good"]) == style([""], ["good"])


def test_review_sentiment_is_tf_idf_and_a_logistic(tmp_path):
    from safetensors.numpy import save_file

    tensors = {
        "idf": np.array([1.0, 2.0, 1.0]),
        "coef": np.array([3.0, -3.0, 1.0]),
        "intercept": np.array([0.5]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    tfidf = {"ngram_range": [1, 2], "sublinear_tf": True, "min_df": 2, "lowercase": True}
    stored = {"vocabulary": ["good", "bad", "good bad"], "tfidf": tfidf}
    (tmp_path / "vocabulary.json").write_text(json.dumps(stored))
    model = ReviewSentiment(tmp_path)
    # "bad bad good": tf 1 + ln 2 and 1, idf 2 and 1, then unit length
    bad, good = 2 * (1 + math.log(2)), 1.0
    logit = (3 * good - 3 * bad) / math.hypot(bad, good) + 0.5
    expected = [1 / (1 + math.exp(-x)) for x in (3.5, 0.5, logit)]
    assert model.probability(["GOOD", "", "bad bad good"]) == pytest.approx(expected)


def test_sigmoid_and_softmax_do_not_overflow():
    assert sigmoid(np.array([-1e4, 0.0, 1e4])) == pytest.approx([0, 0.5, 1])
    assert softmax(np.array([[1e4, 0.0], [0.0, 0.0]])) == pytest.approx(
        np.array([[1, 0], [0.5, 0.5]])
    )


def test_vader_is_mapped_to_zero_to_one():
    values = Sentiment(backend="vader")(["A wonderful day!", "", "A horrible, awful day.", "🚀"])
    assert values[0] > 0.75 and values[1] == 0.5 and values[2] < 0.25


def test_readability_is_flesch_reading_ease():
    # 3 words, 1 sentence, 3 syllables: 206.835 - 3.045 - 84.6 = 119.19 -> 1
    # "the remarkable man": re-mark-able -> 3 + 2 syllables by pyphen
    reward = Readability()
    easy, harder, nothing = reward(["The cat sat.", "The remarkable man.", "?! 🚀"])
    assert (easy, nothing) == (1.0, 0.0)
    assert harder == pytest.approx((206.835 - 1.015 * 3 - 84.6 * 5 / 3) / 100)
    assert reward(["Incomprehensibility notwithstanding, characterization industrializes."]) == [
        0.0
    ]


def test_a_language_without_a_dictionary_is_refused():
    with pytest.raises(RewardConfigError, match="language='xx' has no dictionary"):
        Readability(language="xx").load()


def test_a_missing_library_says_what_to_install():
    with pytest.raises(
        RewardConfigError, match=r"'no_such_thing': pip install 'rlalign\[classifiers\]'"
    ):
        classifiers.needs("no_such_thing", "classifiers")


def test_the_embedded_sentiment_and_topic_models_know_what_they_are_for():
    good, bad = Sentiment()(["A wonderful, brilliant film.", "A dull and terrible film."])
    assert good > 0.7 and bad < 0.3
    texts = ["Rockets fly past the moon to other planets.", "She bakes bread with butter."]
    near, far = Similarity(topic=["outer space"])([""] * 2, texts)
    assert near > 0.3 and far < 0.2
    kitchen = TopicClassifier(label="cooking", labels=["cooking", "space travel"])
    rocket, bread = kitchen([""] * 2, texts)
    assert rocket < 0.1 and bread > 0.9
