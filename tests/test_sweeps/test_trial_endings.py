"""What becomes of a trial that ends, and of the study around it."""

import pytest
from local_sweeps import attempts, queue, sweep, write

from rlalign.sweeps.child import trial_env
from rlalign.sweeps.metrics import read_value


def test_every_failure_is_kept_with_its_reason_and_not_repeated(here, capsys):
    ends = ["ends", "fails", "crashes", "none", "null"]
    write({"does": {"values": ends}, "x": {"value": 3}})
    assert sweep() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["0", "done", "3", "-", "ends", "trial-0000"]
    assert [line.split()[1] for line in lines[2:6]] == ["failed"] * 4
    assert lines[6:10] == [
        "trial 1: exit code 5: reward 'space' failed",
        "trial 2: exit code 1: no such model",
        "trial 3: exit code 0: metrics.jsonl has no score; did you mean scores?",
        "trial 4: exit code 0: the last score in metrics.jsonl is null, not a number",
    ]
    assert sweep() == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert [len(attempts(f"trial-000{n}")) for n in range(5)] == [1] * 5


def test_nothing_but_failures_is_not_a_success(here, capsys):
    write({"does": {"value": "crashes"}})
    assert sweep() == 1
    assert "no trial gave a value of score" in capsys.readouterr().out


def test_a_value_is_the_last_number_of_the_metric_whatever_a_kill_left_behind_it(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_value(file, "score")[0] is None
    file.write_text('{"score": 1.0}\n{"score": 2.5}\n{"other": 3}\n{"score": 9')
    assert read_value(file, "score") == (2.5, "")


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_study_goes_on_to_more_trials_within_its_ranges(method, here, capsys):
    x = {"distribution": "log_uniform_values", "min": 0.01, "max": 0.1}
    write({"x": x, "n": {"min": 2, "max": 4}}, method=method)
    assert sweep("--trials", "2") == 0
    assert sweep("--trials", "3", "--name", "s") == 0
    table = queue().table()
    assert [trial.state for trial in table] == ["done"] * 3
    for trial in table:
        assert trial.value == trial.values["x"] and 0.01 <= trial.value <= 0.1
        assert trial.values["n"] in (2, 3, 4)
    assert len({trial.value for trial in table}) == 3


def test_another_sweep_does_not_go_on_in_the_same_folder(here, capsys):
    write({"x": {"values": [1]}})
    assert sweep() == 0
    write({"x": {"values": [1, 2]}})
    assert sweep() == 2
    assert "holds the trials of a sweep with another parameters; give another --name" in (
        capsys.readouterr().err
    )
    assert sweep("--name", "other") == 0


def test_a_trials_wandb_run_is_off_line_and_in_the_sweeps_group_unless_it_is_asked_on_line(
    monkeypatch,
):
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):  # of an agent that started the sweep
        monkeypatch.setenv(name, "another")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    env = trial_env("the-group")
    assert (env["WANDB_RUN_GROUP"], env["WANDB_MODE"]) == ("the-group", "offline")
    assert "WANDB_SWEEP_ID" not in env and "WANDB_RUN_ID" not in env
    monkeypatch.setenv("WANDB_MODE", "online")
    assert trial_env("the-group")["WANDB_MODE"] == "online"
