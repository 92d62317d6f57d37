"""Whoever waits for a reward hears that it is at work."""

import threading

import pytest

from rewards import RewardSet, alive, parse_entries
from rewards.sequences import SequenceClassifier
from rewards.waiting import pulse


@pytest.fixture
def heard():
    """The threads in which life was shown."""
    threads = []
    before = pulse.set(lambda: threads.append(threading.current_thread()))
    yield threads
    pulse.reset(before)


def test_it_is_said_to_whoever_listens_from_the_main_thread_alone(heard):
    alive()
    thread = threading.Thread(target=alive)
    thread.start()
    thread.join()
    assert heard == [threading.main_thread()]


def test_every_answer_of_a_server_is_a_sign_of_life(heard, server):
    server.answer = lambda n, body: {"rewards": [1.0] * len(body["completions"])}
    entry = {"kind": "remote.http", "url": server.url, "batch_size": 2, "concurrency": 1}
    RewardSet(parse_entries({"far": entry}))(["p"] * 5, ["a", "b", "c", "d", "e"], {})
    assert len(heard) == len(server.bodies) == 3


def test_every_batch_of_a_classifier_is_a_sign_of_life(heard, classifier_directory):
    classifier = SequenceClassifier(str(classifier_directory), False, "cpu")
    heard.clear()
    classifier.logits(["good film"] * 5, batch_size=2)
    assert len(heard) == 3
