"""`rlalign doctor`: exit codes, what it prints, and its numbers against a real run's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import builders
import oracle
import pytest
import torch

from rlalign.algorithms.ppo import PPORun
from rlalign.cli import main
from rlalign.config import from_mapping
from rlalign.doctor import demand as demand_module
from rlalign.doctor import for_run
from rlalign.doctor.demand import levers, reward_models, shortage
from rlalign.doctor.machine import Memory
from rlalign.doctor.probe_time import Seconds, Stopwatch, evaluations, lengthened

ROOT = Path(__file__).parent.parent
REWARD = "rewards: {a: {kind: lexical.contains, words: [a]}}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small model, prompts and a configuration for them, in the working directory."""
    monkeypatch.chdir(tmp_path)
    builders.gpt2().save_pretrained(tmp_path / "model")
    oracle.tokenizer().save_pretrained(tmp_path / "model")
    lines = [json.dumps({"prompt": text}) for text in ("ab", "ba b", "aab")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.yaml").write_text(
        REWARD + "model: {name: ./model}\nprompts: {path: prompts.jsonl}\n"
        "sampling: {max_new_tokens: 6}\ntrain: {iterations: 2, samples: 8}\n"
    )
    return tmp_path


def test_a_run_that_can_start_ends_with_0_and_says_what_it_takes(folder, capsys):
    assert main(["doctor", "--config=a.yaml", "--trackers=[]"]) == 0
    out = capsys.readouterr().out
    assert "problem" not in out and "This run can start." in out
    for name in ("weights", "frozen reference", "peak", "an iteration", "the run"):
        assert f"\n {name} " in out


def test_settings_of_every_method_are_read(folder, capsys):
    own = ["--dpg.lr=1e-5", "--reinforce.minibatches=2", "--ppo.clip=0.1"]
    assert main(["doctor", "--config=a.yaml", "--no-probe", *own]) == 0
    assert main(["doctor", "--config=a.yaml", "--no-probe", "--dpg.lrs=1"]) == 2
    assert "dpg.lrs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("--train.samples=7", "train.samples=7"),
        ("--kl.cof=1", "kl.cof"),
        ("--prompts.path=no.jsonl", "prompts.path=no.jsonl"),
        ("--model.name=./nowhere", "model.name=./nowhere"),
        ("--sampling.max_new_tokens=64", "sampling.max_new_tokens=64"),
        ("--model.quantization=4bit", "model.quantization=4bit"),
        ("--sampling.engine=vllm", "sampling.engine=vllm needs a CUDA device"),
    ],
)
def test_a_wrong_setting_ends_with_2_and_its_name(folder, setting, named, capsys):
    assert main(["doctor", "--config=a.yaml", "--no-probe", setting]) == 2
    printed = capsys.readouterr()
    assert named in printed.out + printed.err


def test_too_little_memory_ends_with_4_before_anything_is_loaded(folder, monkeypatch, capsys):
    monkeypatch.setattr(demand_module, "available_memory", lambda: Memory(10**6, 10**6))
    monkeypatch.setattr(for_run, "probe", lambda *_: pytest.fail("the model was loaded"))
    assert main(["doctor", "--config=a.yaml"]) == 4
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("problem: it needs about"))
    assert "0.0 is free" in line and "This run cannot start" in out


def test_a_folder_with_only_a_configuration_still_gets_an_estimate(folder, capsys):
    (folder / "bare").mkdir()
    (folder / "bare/config.json").write_text((folder / "model/config.json").read_text())
    assert main(["doctor", "--config=a.yaml", "--model.name=./bare"]) == 2
    out = capsys.readouterr().out
    assert "the directory has no weights" in out and "frozen reference" in out


def test_a_model_that_is_not_there_yet_is_a_note_and_not_fetched(folder, monkeypatch, capsys):
    monkeypatch.setenv("RLALIGN_CACHE", str(folder / "empty"))
    assert main(["doctor", "--config=a.yaml", "--model.name=glass-tiny"]) == 0
    out = capsys.readouterr().out
    assert "\nnote: model.name=glass-tiny is not in the cache yet" in out
    assert "python -m rewards.embedded glass-tiny" in out and not (folder / "empty").exists()


def test_everything_is_told_as_json_too(folder, capsys):
    assert main(["doctor", "--config=a.yaml", "--no-probe", "--json", "--trackers=[]"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["can_start"] is True and told["exit_code"] == 0 and "seconds" not in told["run"]
    held = sum(part["bytes"] for part in told["run"]["memory"]["held"])
    assert 0 < held < told["run"]["memory"]["peak"]
    assert main(["doctor", "--config=a.yaml", "--no-probe", "--json", "--kl.cof=1"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["can_start"] is False and told["exit_code"] == 2


def test_processes_share_the_samples(folder, capsys):
    assert main(["doctor", "--config=a.yaml", "--no-probe", "--processes=3"]) == 2
    assert "does not split over 3 processes" in capsys.readouterr().err
    assert main(["doctor", "--config=a.yaml", "--no-probe", "--processes=2"]) == 0


def test_memory_that_leaves_little_to_others_is_a_note():
    assert [f.code for f in shortage(11, 10, "memory", "", "")] == [4]
    assert [f.code for f in shortage(9, 10, "memory", "", "")] == [0]
    assert shortage(7, 10, "memory", "", "") == []


def test_only_levers_that_are_left_are_named():
    plain = from_mapping(PPORun, {}, rewards_given=True)
    assert "eval.dtype=train, model.lora" in levers(plain)
    values = {"eval.dtype": "train", "model.lora.r": 8, "model.gradient_checkpointing": True}
    spare = levers(from_mapping(PPORun, {}, values, rewards_given=True))
    assert "eval.dtype" not in spare and "model." not in spare


# -- rewards and seconds


def test_models_of_rewards_are_found_by_default_by_name_and_in_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own/classifier").mkdir(parents=True)
    topic = {"kind": "topic.similarity", "topic": "space"}
    assert list(reward_models({"a": topic})) == ["all-minilm-l6-v2"]
    vader = {"kind": "style.sentiment", "backend": "vader"}
    assert list(reward_models({"a": vader, "b": {"kind": "style.sentiment"}})) == [
        "sentiment-reviews"
    ]
    parts = {"kind": "combine.min", "parts": {"a": {**topic, "model": "own/classifier"}}}
    assert list(reward_models({"a": parts})) == ["own/classifier"]


def test_a_run_evaluates_before_on_the_way_and_at_its_end():
    counts = [(22, 11), (22, 10), (3, 0), (3, 5)]
    runs = [
        from_mapping(PPORun, {}, {"train.iterations": i, "eval.every": e}, rewards_given=True)
        for i, e in counts
    ]
    assert [evaluations(run) for run in runs] == [3, 4, 0, 2]


def test_seconds_add_up():
    seconds = Seconds(3.0, 4.0, 0.5, 1.5, 2.0, 8.0, 10.0, 24.0, False)
    assert (seconds.score, seconds.iteration, seconds.run(5, 2)) == (2.0, 16.0, 103.0)


def test_a_stopwatch_ends_every_response_once_the_time_is_over():
    watch, logits = Stopwatch(eos_id=2, limit=0.0), torch.zeros(3, 6)
    assert watch(logits, torch.rand(3))[0].tolist() == [2, 2, 2] and watch.was_cut
    patient = Stopwatch(eos_id=2, limit=60.0)
    assert patient(logits, torch.full((3,), 0.9))[0].tolist() == [5, 5, 5]
    assert not patient.was_cut


def test_cut_responses_are_repeated_to_the_limit_and_ended_ones_stay():
    rollout = builders.rollout(["d e", "d"])
    longer = lengthened(rollout, steps=3, limit=5)
    assert longer.response_mask.sum(1).tolist() == [5, 2]
    assert longer.response_ids[0].tolist() == [3, 4, 3, 4, 3]
    assert longer.texts[1] == rollout.texts[1] and longer.texts[0] == rollout.texts[0] * 2


# -- against a run

PREDICT = """
import json, sys
from rlalign.doctor.for_run import read
from rlalign.doctor.demand import demand
from rlalign.doctor.probe_time import probe
from rlalign.startup import quiet_libraries
quiet_libraries()
config = read(sys.argv[1:], 1)
peak = demand(config, 1).memory.peak
print(json.dumps([peak / 2**20, probe(config).iteration]))
"""
MEASURE = """
import resource, subprocess, sys
subprocess.run([sys.executable, "launch/ppo.py", *sys.argv[1:]], stdout=2, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10)
"""


@pytest.mark.prove
@pytest.mark.skipif(torch.cuda.is_available(), reason="the peak of a process is RAM on a CPU only")
@pytest.mark.parametrize("model", ["glass-tiny", "smollm2-135m"])
def test_a_run_takes_the_memory_and_the_time_that_were_predicted(model, tmp_path):
    argv = [f"--model.name={model}", "--train.iterations=4", "--trackers=[]", "--run.name=doctor"]
    argv += [f"--run.dir={tmp_path}", "--eval.every=4", "--eval.samples=32"]

    def ask(code):
        command = [sys.executable, "-c", code, *argv]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)

    memory, seconds = ask(PREDICT)
    measured = ask(MEASURE)
    rows = (tmp_path / "doctor/metrics.jsonl").read_text().splitlines()
    times = [json.loads(row)["time/total"] for row in rows if "time/total" in row]
    took = sum(times[1:]) / len(times[1:])  # the first also allocates
    print(f"{model}: MiB {memory:.0f} for {measured:.0f}, seconds {seconds:.1f} for {took:.1f}")
    assert memory == pytest.approx(measured, rel=0.25)
    crowded = os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)
    assert seconds == pytest.approx(took, rel=0.5 if crowded else 0.25)
