"""docs/first-run.md and docs/write-a-reward.md, done as they say, on the tiny model."""

import json
import shlex
from pathlib import Path

import pytest
from pages import page_named, typed, write_files

import rewards
import rlalign
from rlalign import cli

FIRST, REWARD = page_named("docs/first-run.md"), page_named("docs/write-a-reward.md")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    write_files(tmp_path, FIRST, REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_reward_keeps_the_contract(reader):
    rewards.load_file("thanks.py")
    rewards.conformance.check("my.thanks")


def test_the_test_beside_the_reward_passes(reader):
    claims = {}
    exec(compile(Path("test_thanks.py").read_text(), "test_thanks.py", "exec"), claims)
    claims["test_one_thanks_is_best"]()


def test_the_reward_is_probed_as_the_page_says(reader, capsys):
    line = next(line for line in typed(REWARD) if "probe" in line)
    assert cli.main(shlex.split(line)[1:]) == 0
    out = capsys.readouterr().out
    rows = [row.split() for row in out.splitlines()]
    thanks = {row[1]: row[-8] for row in rows if len(row) > 8 and row[0] == "│"}  # a cell
    thanks.pop("weight")  # the last row
    assert thanks == {"Thank": "1.000", "Thanks,": "-1.000", "No.": "0.000"}, out
    assert '[0:9] +1.000 "Thank you"' in out and '[8:14] -2.000 "thanks"' in out


SMALL = {
    "train.iterations": 1, "train.samples": 8, "train.threads": 1, "eval.samples": 8,
    "sampling.max_new_tokens": 4, "ppo.minibatches": 1, "ppo.epochs": 1, "trackers": [],
}  # fmt: skip


def test_the_call_from_python_trains(reader, capsys, monkeypatch):
    train = rlalign.train
    monkeypatch.setattr(rlalign, "train", lambda *a, **k: train(*a, **k, overrides=SMALL))
    exec(compile(Path("polite.py").read_text(), "polite.py", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "runs/polite-py"
    assert Path("runs/polite-py/model").is_dir()


@pytest.mark.parametrize("file", ["first.yaml", "polite.yaml"])
def test_the_configurations_train(file, reader):
    trainer = rlalign.open_trainer(file, overrides=SMALL)
    trainer.step(trainer.generate())
    assert trainer.iteration == 1


@pytest.mark.prove
def test_the_first_run_does_what_the_page_says(reader):
    result = rlalign.train("first.yaml", overrides={"train.threads": 1}, quiet=True)
    rows = [json.loads(row) for row in (result.folder / "metrics.jsonl").open()]
    assert rows[1]["reward/queen"] < 0.1
    last = [row["reward/queen"] for row in rows[-3:]]
    assert sum(last) / 3 > 0.25 and rows[-1]["kl/ref"] < 15
