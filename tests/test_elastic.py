"""Going on with another number of processes: refused, or allowed and owned up to."""

import json

import exact_runs
import hashes
import pytest

from rlalign.config import load_config
from rlalign.methods import METHODS

LONGER = {"train": {"iterations": 6}, "eval": {"every": 6, "samples": 64}}
ELASTIC = {"run": {"allow_elastic": True}}


@pytest.mark.parametrize(("was", "now"), [(2, 1), (1, 2)])
def test_another_number_of_processes_is_refused_by_every_rank(tmp_path, was, now):
    exact_runs.killed(tmp_path, "reinforce", after=1, world=was)
    rows = (tmp_path / "a/metrics.jsonl").read_bytes()
    for message in exact_runs.refusals(tmp_path, "reinforce", world=now):
        assert message.startswith(f"3 {tmp_path}/a/checkpoints/step-000001 was written by {was} ")
        assert f"this run has {now}" in message and "--run.allow_elastic" in message
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == rows
    assert (tmp_path / "a/checkpoints/step-000001").is_dir()


def test_two_then_one_then_two_processes_end_near_where_two_would(tmp_path, capfd):
    whole = exact_runs.whole(tmp_path / "whole", "ppo", 2, **LONGER)
    exact_runs.killed(tmp_path, "ppo", 2, world=2, **LONGER)
    exact_runs.killed(tmp_path, "ppo", 4, world=1, **LONGER, **ELASTIC)
    elastic = exact_runs.whole(tmp_path, "ppo", 2, **LONGER, **ELASTIC)
    said = [line for line in capfd.readouterr().err.splitlines() if "allow_elastic" in line]
    assert len(said) == 2  # rank 0 alone says it
    assert said[0].startswith("resumed by 1 process(es) in place of 2 (run.allow_elastic)")
    assert "no longer the one that 2 would have made" in said[0]
    noted = json.loads((elastic / "run.json").read_text(encoding="utf-8"))["elastic"]
    assert noted == [
        {"after_iteration": 2, "from": 2, "to": 1},
        {"after_iteration": 4, "from": 1, "to": 2},
    ]
    ours, theirs = hashes.metrics(elastic), hashes.metrics(whole)
    assert ours[:3] == theirs[:3] and ours[3] != theirs[3]
    assert [row.get("lr") for row in ours] == [row.get("lr") for row in theirs]
    prompts = [[row["prompt"] for row in hashes.samples(run)] for run in (elastic, whole)]
    assert prompts[0] == prompts[1]
    assert ours[-1]["eval/score"] > ours[0]["eval/score"] + 0.05
    assert ours[-1]["eval/score"] == pytest.approx(theirs[-1]["eval/score"], abs=0.05)


def test_a_bare_flag_allows_it():
    arguments = ["--run.allow_elastic", "--rewards.x={kind: lexical.contains, words: [rain]}"]
    assert load_config(METHODS["ppo"].run_model, arguments).run.allow_elastic
