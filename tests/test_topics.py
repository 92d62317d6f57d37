"""The experiment on one policy for many topics: its prompts, its judge and its counts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rewards.compose import build, parse_entries
from rewards.registry import get
from rlalign.algorithms.ppo import PPORun
from rlalign.config import load_config

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "experiments" / "topics.yaml"


@pytest.fixture(scope="module")
def topics():
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        import topics
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    return topics


@pytest.fixture(scope="module")
def rows():
    """(training, evaluation) rows of the files that the configuration names."""
    section = load_config(PPORun, [], CONFIG).prompts
    files = [ROOT / path for path in (section.path, section.eval_path)]
    return [[json.loads(line) for line in f.read_text("utf-8").splitlines()] for f in files]


# -- the prompts


def test_every_opening_comes_with_every_topic_so_that_only_the_name_tells(topics, rows):
    for part, asked in zip(rows, (topics.TRAINED, topics.TOPICS), strict=True):
        openings = {row["prompt"].split("\n\n")[1] for row in part}
        found = {(row["topic"], row["prompt"].split("\n\n")[1]) for row in part}
        assert found == {(topic, opening) for topic in asked for opening in openings}
        assert len(part) == len(found)
        for row in part:
            assert row["prompt"].startswith(f"A short story about {row['topic']}.\n\n")


def test_held_out_topics_and_openings_are_not_in_the_training(topics, rows):
    train, _ = rows
    assert not set(topics.HELD_OUT) & {row["topic"] for row in train}
    openings = [{row["prompt"].split("\n\n")[1] for row in part} for part in rows]
    assert len(openings[0]) == 24 and len(openings[1]) == 12 and not openings[0] & openings[1]
    assert not any(topic in row["prompt"] for topic in topics.HELD_OUT for row in train)


def test_no_opening_brings_a_word_of_a_topic(topics, rows):
    words = {word for row in rows[1] for word in [*row["keywords"], *row["topic"].split()]}
    for row in [*rows[0], *rows[1]]:
        assert not (words - {"the"}) & set(row["prompt"].split("\n\n")[1].casefold().split())


def test_the_configuration_reads_the_columns_that_the_prompts_have(rows):
    entries = parse_entries(load_config(PPORun, [], CONFIG).rewards)
    read = set().union(*(build(entry, get(entry.kind)).needs for entry in entries))
    assert read - {"prompts", "completions"} == {"topic", "name", "keywords"} < set(rows[0][0])


# -- the judge and the counts


def lists(topics, **words):
    """Empath's categories that the judge reads, empty but for the given ones."""
    names = [name for fields in topics.FIELDS.values() for name in fields]
    assert set(words) <= set(names)
    return {**dict.fromkeys(names, ()), **words}


def test_the_judge_names_the_topic_with_the_most_words(topics):
    judge = topics.Judge(lists(topics, ocean=["wave", "sea"], cooking=["soup"], eating=["bread"]))
    assert judge("Waves, and a WAVE over the soup") == "the sea"
    assert judge("Soup and bread by the waves") == "cooking"
    assert judge("A wave of soup") == judge("") == judge("bookish wavering") == topics.NONE


def test_names_and_ambiguous_words_count_for_no_topic(topics):
    judge = topics.Judge(
        lists(topics, ocean=["sea", "captain", "wave"], sports=["captain"], computer=["computer"])
    )
    assert judge("the sea, the sea, the captain, the computer") == topics.NONE
    assert judge("the sea and the captain of a wave") == "the sea"


def asked(*names):
    return [{"columns": {"topic": name}, "rewards": {}} for name in names]


def test_confusion_holds_who_was_asked_for_what_and_wrote_what(topics):
    rows = asked(*topics.TOPICS, "war", "war", "war")
    written = ["the sea", *["none"] * 7, "music", "war", "war"]
    shares = topics.confusion(rows, written)
    war, columns = topics.TOPICS.index("war"), [*topics.TOPICS, "none"]
    assert dict(zip(columns, shares[war], strict=True)) == {
        **dict.fromkeys(columns, 0.0), "none": 0.25, "music": 0.25, "war": 0.5
    }  # fmt: skip
    assert shares[0, 0] == 1.0 and np.allclose(shares.sum(1), 1.0)
    assert topics.hits(rows, written, ["war"]) == [0.0, 0.0, 1.0, 1.0]
    assert topics.strays(rows, written, ["war"]) == [0.0, 1.0, 0.0, 0.0]
