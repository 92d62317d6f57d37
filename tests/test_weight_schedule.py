"""A weight on a schedule: in the score, in the log, over a resume, and what is said of it."""

import json

import builders
import oracle
import pytest
from test_resume import breaks_at_call, metrics, run

from rewards.contract import RewardError
from rlalign.algorithms.ppo import PPORun, optimum_warnings
from rlalign.config import from_mapping
from rlalign.evaluate import evaluate
from rlalign.report.card import weight_shown
from rlalign.report.plots import read_metrics, reward_names

RAMP = {"from": 0.5, "to": 2.5, "iterations": 4}
LETTERS = {"kind": "lexical.word_rate", "words": ["c"], "weight": RAMP}


def test_a_run_scores_and_logs_the_weight_of_its_iteration_and_resumes_to_the_same(tmp_path):
    sections = {"rewards": {"rate": LETTERS}}
    unbroken = run(tmp_path / "unbroken", iterations=6, **sections)
    rows = metrics(unbroken)
    assert [row.get("reward/rate/weight") for row in rows] == [None, 0.5, 1, 1.5, 2, 2.5, 2.5]
    for row in rows[1:]:
        expected = row["reward/sparse"] + row["reward/rate/weight"] * row["reward/rate"]
        assert row["score"] == pytest.approx(expected, abs=1e-5)
        if "eval/score" in row:  # under the final weight, whatever the iteration's is
            expected = row["eval/reward/sparse"] + 2.5 * row["eval/reward/rate"]
            assert row["eval/score"] == pytest.approx(expected, abs=1e-5)
    assert "reward/sparse/weight" not in rows[1]
    assert reward_names(read_metrics(unbroken / "metrics.jsonl")) == ["rate", "sparse"]
    with pytest.raises(RewardError, match="the power went out"):
        run(tmp_path / "broken", iterations=6, reward=breaks_at_call(8), **sections)
    assert metrics(run(tmp_path / "broken", iterations=6, **sections)) == rows
    card = (unbroken / "model" / "README.md").read_text()
    assert "0.5 → 2.5 over 4 iterations" in card
    assert json.loads((unbroken / "run.json").read_text())["exit_code"] == 0


def test_an_evaluation_does_not_depend_on_the_iteration():
    trainer = builders.trainer(rewards=(), rewards_={"rate": LETTERS})
    first = evaluate(trainer.session, 0.1, of_reference=True).stats
    trainer.iteration = 3
    assert evaluate(trainer.session, 0.1, of_reference=True).stats == first
    assert first["eval/score"] == pytest.approx(2.5 * first["eval/reward/rate"])
    rollout = trainer.generate()
    late = trainer.score(rollout)
    trainer.iteration = 0
    assert trainer.score(rollout).score.tolist() == pytest.approx((late.score / 4).tolist())


def warnings(iterations, weight):
    entry = {"kind": "lexical.contains", "words": ["rain"], "weight": weight}
    settings = oracle.config(rewards={"x": entry}, train={"iterations": iterations})
    return optimum_warnings(from_mapping(PPORun, settings))


def test_a_weight_that_moves_is_warned_of():
    line = (
        "rewards.x.weight={from: 0.5, to: 2.5, iterations: 4}: it moves; the target is the one of "
        "the final weight"
    )
    assert warnings(5, RAMP) == [line]
    assert warnings(4, RAMP) == [f"{line}, which train.iterations=4 ends before"]
    assert warnings(5, 2.0) == []


def test_the_card_shows_either_form_of_a_weight():
    assert weight_shown({"weight": 0.5}) == "0.5"
    assert weight_shown({"weight": RAMP}) == "0.5 → 2.5 over 4 iterations"
