from types import SimpleNamespace

import pytest

from rewards import bench, registry
from rewards.bench import Cost, NotMeasured

OWN = """
import os
from rewards import reward

@reward("own.prints")
def prints(completions: list[str]) -> list[float]:
    print("{}")
    return [0.0 for _ in completions]

@reward("own.dies")
def dies(completions: list[str]) -> list[float]:
    os._exit(7)

@reward("own.fails")
def fails(completions: list[str]) -> list[float]:
    return []

@reward("own.needy")
def needy(completions: list[str], *, words: list[str]) -> list[float]: ...

@reward("own.keeps")
class Keeps:
    def load(self) -> None:
        self.held = b"x" * (200 << 20)

    def __call__(self, completions: list[str]) -> list[float]:
        return [0.0 for _ in completions]
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Each kind's outcome, measured as `rlalign rewards bench` does."""
    file = tmp_path_factory.mktemp("own") / "own.py"
    file.write_text(OWN)
    kinds = ["prints", "dies", "fails", "needy", "keeps"]
    found = bench.measure_apart([f"own.{kind}" for kind in kinds], 8, [str(file)])
    return {one.kind.removeprefix("own."): one for one in found}


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which only a reward moves on."""
    now = [0.0]
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_the_speed_is_the_batch_over_the_median_of_the_timed_calls(own_registry, clock):
    naps = iter([9.0, 0.5, 0.25, 9.0, 0.25, 0.5])  # the first is the warm-up

    @registry.reward("own.sleeps")
    def sleeps(completions: list[str]) -> list[float]:
        clock[0] += next(naps)
        return [0.0 for _ in completions]

    cost = bench.measure("own.sleeps", 10)
    assert (cost.texts_per_second, cost.load_seconds) == (20.0, 0.0)


def test_loading_is_timed_apart(own_registry, clock):
    @registry.reward("own.slow")
    class Slow:
        def load(self) -> None:
            clock[0] += 3.0

        def __call__(self, completions: list[str]) -> list[float]:
            clock[0] += 0.5
            return [0.0 for _ in completions]

    cost = bench.measure("own.slow", 10)
    assert (cost.texts_per_second, cost.load_seconds) == (20.0, 3.0)


def test_the_texts_are_the_stated_ones():
    texts = bench.sample_texts(512)
    words = [len(text.split()) for text in texts]
    assert len(set(texts)) == 512 and (min(words), max(words)) == (19, 29)
    assert bench.sample_texts(600)[512:] == texts[:88]


def test_memory_counts_what_a_reward_holds_and_nothing_of_the_others(measured):
    assert 195 < measured["keeps"].megabytes < 260
    assert measured["prints"].megabytes < 50


def test_what_a_reward_prints_does_no_harm(measured):
    assert isinstance(measured["prints"], Cost) and measured["prints"].texts_per_second > 0


def test_a_reward_that_fails_or_dies_is_told_from_one_that_cannot_run_here(measured):
    assert measured["dies"] == NotMeasured("own.dies", "its process ended with 7", True)
    assert measured["fails"].has_failed and "0 values for 8 samples" in measured["fails"].reason
    assert not measured["needy"].has_failed and "needs 'words'" in measured["needy"].reason


def test_a_process_that_cannot_start_leaves_no_kind_out(monkeypatch):
    monkeypatch.setattr(bench.sys, "executable", "/bin/false")
    (one,) = bench.measure_apart(["lexical.contains"], 8)
    assert one == NotMeasured("lexical.contains", "the process that measures ended with 1", True)


def test_nothing_is_fetched(monkeypatch, tmp_path):
    spy = tmp_path / "spy"
    spy.write_text(
        "#!/bin/sh\n"
        'printf \'{"kind": "k", "reason": "%s", "has_failed": false}\\n\' '
        "$HF_HUB_OFFLINE$PIP_NO_INDEX\n"
    )
    spy.chmod(0o755)
    monkeypatch.setattr(bench.sys, "executable", str(spy))
    assert [one.reason for one in bench.measure_apart(["k"], 8)] == ["11"]
