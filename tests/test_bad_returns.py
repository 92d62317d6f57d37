"""What a reward can return or raise that is no value: a run does not start, and says what to fix."""

# ruff: noqa: E501  a case a line

import json

import pytest
from transformers.utils import logging as transformers_logging

from rewards import registry
from rlalign import ppo, run_method

CONFIG = """
model: {name: glass-tiny, dtype: float32}
prompts: {path: prompts.jsonl}
sampling: {max_new_tokens: 4}
rewards: {mine: {kind: my.reward, isolate: ISOLATE}}
reward_files: [mine.py]
train: {iterations: 1, samples: 8}
ppo: {minibatches: 2, epochs: 1}
eval: {every: 0}
trackers: []
"""
FILE = """
import sys
from fractions import Fraction
from rewards import Failure, Score, Span, reward


class NoFloat(Fraction):
    def __float__(self):
        raise ValueError("no float")


class NoRepr:
    def __repr__(self):
        raise ValueError("no repr")


class NoIter(list):
    def __iter__(self):
        raise ValueError("no iteration")


class Endless(list):
    def __len__(self):
        return 6

    def __iter__(self):
        while True:
            yield 0.0


class NoWhy(Exception):
    def __str__(self):
        raise ValueError("no reason")


class NoArray:
    @property
    def tolist(self):
        raise RuntimeError("no list")


ITSELF = []
ITSELF.append(ITSELF)
LAUGHS = 0.5
for _ in range(40):
    LAUGHS = [LAUGHS] * 10
DEEP = []
for _ in range(100_000):
    DEEP = [DEEP]


@reward("my.reward", cache=False)
def mine(completions: list[str]) -> list[float]:
    n = len(completions)
    RETURN
"""
FIRST = "for sample 0: ' The ship left the harbour at dawn, and she watched it go.'"
A_VALUE = "; a value is a number or None"
A_LIST = "; a reward returns a list with a number or None for each sample"
BODIES = {
    "a number": ("return 0.5", "returned float 0.5" + A_LIST),
    "a generator": ("return (0.5 for _ in completions)", "returned generator <generator"),
    "a range that nobody could list": ("return range(10**15)", "returned range range(0, 1000000000000000)" + A_LIST),
    "too many": ("return [0.5] * 10_000_000", "returned 10000000 values for 6 samples"),
    "text": ("return ['0.5'] * n", "returned str '0.5' " + FIRST + A_VALUE),
    "a list that holds itself": ("return [ITSELF] * n", "returned list [[[[[...]]]]] " + FIRST),
    "a list of 10^40 numbers": ("return [LAUGHS] * n", "returned list [[[[[...], "),
    "a nest of lists": ("return [DEEP] * n", "returned list [[[[[...]]]]] " + FIRST + A_VALUE),
    "a text of 10 million letters": ("return ['x' * 10_000_000] * n", "returned str 'xxxx"),
    "NaN": ("return [float('nan')] * n", "returned nan " + FIRST),
    "a number beyond floats": ("return [10**5000] * n", "returned inf " + FIRST),
    "what has no float": ("return [NoFloat(1, 2)] * n", "raised ValueError: no float " + FIRST),
    "what has no repr": ("return [NoRepr()] * n", "returned NoRepr <NoRepr instance at 0x"),
    "a list that cannot be read": ("return NoIter([0.5] * n)", "raised ValueError: no iteration " + FIRST),
    "a list without an end": ("return Endless()", "returned a Endless that holds another number of values"),
    "an array that is none": ("return NoArray()", "raised RuntimeError: no list " + FIRST),
    "a span that is none": ("return [Score(1.0, ['ab'])] * n", "raised AttributeError: 'str' object has no attribute 'start' " + FIRST),
    "a span outside": ("return [Score(1.0, [Span(0, 10**5000, 1.0)])] * n", "which lies outside its text, " + FIRST),
    "a reason that is none": ("return [Failure(NoWhy())] * n", "raised ValueError: no reason " + FIRST),
    "an error that cannot say why": ("raise NoWhy", "raised NoWhy (which cannot say why) " + FIRST),
    "endless recursion": ("return mine(completions)", "raised RecursionError: maximum recursion depth exceeded"),
    "an exit": ("sys.exit(0)", "raised SystemExit: 0 " + FIRST),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("returns")
    lines = [json.dumps({"prompt": f"Alice saw {thing}"}) for thing in ("a", "the", "her")]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("isolate", [False, True], ids=["in process", "isolated"])
@pytest.mark.parametrize("case", BODIES)
def test_a_run_whose_reward_returns_no_values_does_not_start(
    folder, monkeypatch, capsys, case, isolate
):
    body, said = BODIES[case]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setattr(registry, "_files", dict(registry._files))
    monkeypatch.setattr(run_method, "quiet_libraries", transformers_logging.disable_progress_bar)
    monkeypatch.setattr(run_method, "die_with_launcher", lambda: None)
    (folder / "mine.py").write_text(FILE.replace("RETURN", body), encoding="utf-8")
    (folder / "run.yaml").write_text(CONFIG.replace("ISOLATE", str(isolate).lower()))
    assert ppo.main(["--config=run.yaml"]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rlalign: reward 'mine' (my.reward, mine.py:") and said in line
    assert len(line) < 500
    assert not (folder / "runs").exists()
