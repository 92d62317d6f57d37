"""What a sweep ends with: the table, the front, the picture, importances, the best to run."""

import csv
import json
from pathlib import Path

import pytest
from local_sweeps import METRIC, queue, sweep, write

from rlalign import cli
from rlalign.algorithms.ppo import PPORun
from rlalign.config import load_config
from rlalign.sweeps.child import Ending
from rlalign.sweeps.outcome import Measured

FOLDER = Path("runs/sweeps/s")
METRIC_EVAL = METRIC | {"name": "eval/score"}
# A trial's coefficient -> score, KL. The second is worse than the first at more KL.
MEASURED = {0.4: (2.0, 1.0), 0.3: (1.9, 2.0), 0.2: (3.0, 4.0), 0.1: (5.0, 9.0)}


@pytest.fixture
def done(here):
    """A sweep of four trials, over, as their runs would have left it."""
    write({"kl.coef": {"values": list(MEASURED)}, "ppo.lr": {"value": 0.01}}, metric=METRIC_EVAL)
    trials = queue(total=4)
    while claimed := trials.claim():
        score, kl = MEASURED[claimed.values["kl.coef"]]
        run = FOLDER / claimed.folder
        run.mkdir()
        rows = [
            {"iteration": 0, "eval/score": 1.5, "eval/score_se": 0.1, "eval/kl": 0.0},
            {"iteration": 5, "eval/score": score, "eval/score_se": 0.1, "eval/kl": kl},
            {"iteration": 6, "score": 99.0, "kl/ref": 99.0},
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        trials.end(claimed, Ending(0, score, ""))
    return here


def out(capsys, *arguments: str) -> str:
    assert cli.main(["sweep", *(arguments or [str(FOLDER)])]) == 0
    return capsys.readouterr().out


def test_the_table_marks_what_nothing_else_dominates(done, capsys):
    text = out(capsys)
    rows = [line.split("  ") for line in text.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert rows[0] == ["trial", "state", "eval/score", "eval/kl", "kl.coef", "folder"]
    assert rows[1] == ["0*", "done", "2.00 ± 0.10", "1", "0.4", "trial-0000"]
    assert [row[0] for row in rows[1:5]] == ["0*", "1", "2*", "3*"]
    assert "best: trial 3, eval/score 5.00 ± 0.10 at eval/kl 9\n  kl.coef=0.1 ppo.lr=0.01" in text
    assert "within two standard errors" not in text


@pytest.mark.parametrize(
    ("value", "se", "text"),
    [
        (2.9408, 0.0728, "2.941 ± 0.073"),
        (21.27, 1.5, "21.3 ± 1.5"),
        (1200.3, 40.0, "1200 ± 40"),
        (-4e-6, 8e-6, "-0.0000 ± 0.0000"),
        (0.123456, None, "0.1235"),
        (0.0, 0.0, "0"),
    ],
)
def test_a_number_has_the_digits_that_its_error_allows(value, se, text):
    assert str(Measured(value, se)) == text


def test_a_lead_within_the_noise_is_called_one(done, capsys):
    for number in (2, 3):
        path = FOLDER / f"trial-{number:04d}" / "metrics.jsonl"
        path.write_text(path.read_text().replace('"eval/score_se": 0.1', '"eval/score_se": 0.8'))
    assert "within two standard errors of it: trial 2; its lead over them may be chance" in (
        out(capsys)
    )


@pytest.mark.parametrize(
    ("metric", "varied", "named"),
    [
        ("score", "rewards.rain.weight", True),
        ("eval/score", "score.clip", True),
        ("eval/objective", "kl.coef", True),
        ("eval/score", "kl.coef", False),
        ("eval/reward/rain", "rewards.rain.weight", False),
        ("eval/score", "rewards.rain.words", False),
    ],
)
def test_a_metric_that_the_sweep_itself_changes_is_told(here, capsys, metric, varied, named):
    write({varied: {"values": [1.0, 2.0]}}, metric=METRIC | {"name": metric})
    trials = queue(total=2)
    while claimed := trials.claim():
        trials.end(claimed, Ending(0, 1.0, ""))
    said = f"{metric} is made of {varied}, which the trials do not share"
    assert (said in out(capsys)) == named


def test_the_points_of_the_picture_are_in_a_file(done, capsys):
    out(capsys)
    rows = list(csv.DictReader((FOLDER / "trials.csv").open()))
    assert [row["front"] for row in rows] == ["1", "0", "1", "1"]
    assert {
        float(row["kl.coef"]): (float(row["eval/score"]), float(row["eval/kl"])) for row in rows
    } == MEASURED
    assert rows[0]["eval/score_se"] == "0.1" and rows[0]["eval/kl_se"] == ""
    assert (FOLDER / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_no_cell_of_the_table_is_a_formula(here):
    text = '=HYPERLINK("http://x")'
    write({text: {"values": ["@SUM(A1)", "-1+1", -0.5]}}, metric=METRIC_EVAL)
    trials = queue(total=3)
    while claimed := trials.claim():
        trials.end(claimed, Ending(1, None, "no value"))
    sweep()
    rows = [*csv.reader((FOLDER / "trials.csv").open())]
    assert rows[0][-1] == f"'{text}"
    assert {row[-1] for row in rows[1:]} == {"'@SUM(A1)", "'-1+1", "-0.5"}  # a number stays one


def test_the_same_comes_again_from_the_folder_alone_also_under_another_name(done, capsys):
    first = out(capsys, "s.yaml", "--local")
    Path("s.yaml").unlink()
    assert out(capsys) == first
    FOLDER.rename("moved")
    assert out(capsys, "moved") == first.replace(str(FOLDER), "moved")


def test_importances_name_what_the_score_depends_on(here, capsys):
    write({"x": {"values": [1, 2, 3]}, "y": {"values": [1, 2, 3]}})
    trials = queue(total=9)
    while claimed := trials.claim():
        trials.end(claimed, Ending(0, 10.0 * claimed.values["x"] + claimed.values["y"], ""))
    shares = trials.importances()
    assert shares.method == "fANOVA" and shares.trials == 9
    assert list(shares.shares) == ["x", "y"] and shares.shares["x"] > 0.9
    assert "importance for score: x 0.99, y 0.01\n  (fANOVA over 9 trials" in out(capsys)


def test_importances_without_scikit_learn_come_another_way(here, monkeypatch):
    def missing(seed: int) -> None:
        raise ImportError("no scikit-learn")  # as Optuna's own evaluator does

    monkeypatch.setattr("rlalign.sweeps.importances.FanovaImportanceEvaluator", missing)
    write({"x": {"values": [1, 2]}, "y": {"values": [1, 2]}})
    trials = queue(total=4)
    while claimed := trials.claim():
        trials.end(claimed, Ending(0, float(claimed.values["x"]), ""))
    found = trials.importances()
    assert found.method == "PED-ANOVA" and set(found.shares) == {"x", "y"}


def test_one_parameter_has_no_importances(done, capsys):
    assert queue().importances() is None and "importance" not in out(capsys)


def test_the_configuration_of_the_best_is_one_to_run(done, capsys):
    best = FOLDER / "trial-0003"
    assert f"no best.yaml: {best} holds no config.yaml" in out(capsys)
    (best / "run.json").write_text('{"method": "ppo"}')
    (best / "config.yaml").write_text(
        "kl: {coef: 0.1}\nppo: {lr: 1.0e-4}\nrewards: {a: {kind: lexical.contains, words: [sun]}}\n"
        "run: {name: trial-0003, dir: runs/sweeps/s, resume: never, grace: 20.0}\n"
    )
    last = out(capsys).splitlines()[-1]
    assert last == f"its configuration: rlalign ppo --config {FOLDER}/best.yaml"
    config = load_config(PPORun, ["--config", f"{FOLDER}/best.yaml"])
    assert (config.kl.coef, config.ppo.lr, config.run.grace) == (0.1, 1e-4, 20.0)
    assert (config.run.name, config.run.dir, config.run.resume) == ("auto", "runs", "never")


def test_a_sweep_whose_trials_all_failed_has_no_best(here, capsys):
    write({"does": {"value": "crashes"}})
    assert sweep() == 1
    assert cli.main(["sweep", str(FOLDER)]) == 1
    text = capsys.readouterr().out
    assert text.count("no trial gave a value of score") == 2
    assert not (FOLDER / "best.yaml").exists() and not (FOLDER / "pareto.png").exists()


def test_a_file_that_is_no_study_is_refused(here, capsys):
    Path("odd").mkdir()
    Path("odd/trials.sqlite").write_text("hello")
    assert cli.main(["sweep", "odd"]) == 2
    assert "odd/trials.sqlite is not the record of a sweep" in capsys.readouterr().err
