"""Trials that are killed are not lost, and none is run twice."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from local_sweeps import attempts, queue, states, sweep, wait_for, write

from rlalign.sweeps.child import Ending, locked_log
from rlalign.sweeps.ours import can_resume


def test_a_trial_whose_process_is_killed_goes_on_in_its_folder(here, capsys):
    write({"does": {"value": "dies once"}, "x": {"value": 4}})
    assert sweep() == 0
    assert states() == [("failed", None), ("done", 4.0)]
    assert [each.get("run.resume") for each in attempts()] == [None, "auto"]
    reason = "trial 0: exit code -9: killed by SIGKILL; went on as trial 1"
    assert reason in capsys.readouterr().out


def test_a_run_that_cannot_be_gone_on_with_begins_anew_beside_what_is_left_of_it(here, monkeypatch):
    """As those of TRL's trainers, which refuse run.resume."""
    monkeypatch.setattr("rlalign.sweeps.worker.can_resume", lambda words: False)
    write({"does": {"value": "dies once"}, "x": {"value": 4}})
    sweep()
    assert [each.get("run.resume") for each in attempts()] == [None]
    assert Path("runs/sweeps/s/trial-0000.cut-1/attempts.jsonl").is_file()


@pytest.mark.parametrize(("method", "can"), [("ppo", True), ("grpo", False), ("rloo", False)])
def test_runs_of_trls_trainers_cannot_resume(method, can):
    assert can_resume(["accelerate", "launch", "-m", f"rlalign.{method}", "--kl.coef=0.1"]) == can
    assert can_resume(["rlalign", method]) == can and can_resume(["python", "mine.py"])


def test_a_run_that_was_preempted_under_a_launcher_that_hides_it_goes_on(here):
    """accelerate's launcher ends with 1 whatever its processes end with."""
    write({"does": {"value": "hides its code"}})
    assert sweep() == 0
    assert states() == [("failed", None), ("done", 0.0)]
    assert queue().table()[0].reason.startswith("exit code 143: stopped after iteration 3")


def test_what_a_launcher_leaves_behind_ends_before_its_trial_does(here):
    write({"does": {"value": "leaves its launcher"}})
    assert sweep() == 0
    assert queue().table()[0].reason.startswith("exit code 143: stopped after iteration 3")


def test_an_ending_that_an_earlier_attempt_wrote_down_is_not_this_ones(here):
    write({"does": {"value": "is preempted, then crashes"}})
    assert sweep() == 1
    assert [trial.reason for trial in queue().table()] == [
        "exit code 143: stopped; went on as trial 1",
        "exit code 1: no such model",
    ]


def test_a_trial_that_always_dies_is_tried_three_times(here):
    write({"does": {"value": "dies"}})
    assert sweep() == 1
    assert states() == [("failed", None)] * 3 and len(attempts()) == 3


def test_a_worker_that_is_stopped_again_and_again_does_not_use_up_a_trials_attempts(here):
    write({"x": {"value": 1}})
    trials = queue()
    for _ in range(5):
        claimed = trials.claim()
        trials.end(claimed, Ending(143, None, "stopped", is_lost=True), was_stopped=True)
    assert trials.claim().folder == "trial-0000"
    assert [trial.state for trial in trials.table()] == ["failed"] * 5 + ["running"]


def test_a_worker_that_was_taken_for_dead_leaves_its_trial_to_the_other(here):
    write({"x": {"value": 1}})
    first, other = queue(grace=1, total=1), queue(grace=1, total=1)
    claimed = first.claim()
    assert first.beat(claimed) and other.claim() is None
    wait_for(lambda: other.claim() is not None)
    assert not first.beat(claimed)
    first.end(claimed, Ending(0, 1.0, ""))  # too late: it is counted once
    assert states() == [("failed", None), ("running", None)]


def test_nobody_goes_on_in_a_folder_while_a_process_of_the_last_attempt_lives(here):
    path = here / "trial-0000.log"
    with locked_log(path) as log:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, stdout=log)
    assert locked_log(path) is None
    process.communicate(b"\n")
    wait_for(lambda: locked_log(path))


@pytest.mark.parametrize("commits", range(3, 53, 6))
def test_a_worker_that_dies_at_any_write_leaves_every_point_to_be_run_once(commits, here):
    write({"x": {"values": [1, 2]}, "y": {"values": ["a"]}})
    queue()
    if (pid := os.fork()) == 0:
        dies_at_commit(commits)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    with sqlite3.connect("runs/sweeps/s/trials.sqlite") as file:  # years later
        file.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    trials, done = queue(), []
    while claimed := trials.claim():
        done.append(claimed.values["x"])
        trials.end(claimed, Ending(0, 1.0, ""))
    assert sorted(done) == [1, 2] and not trials.is_busy()
    assert len({trial.folder for trial in trials.table() if trial.state == "done"}) == 2


def dies_at_commit(number: int) -> None:
    """Claim a trial, end it as lost, claim it again; die before the database has it all."""
    from sqlalchemy import event

    trials, count = queue(), 0

    def commit(_: object) -> None:
        nonlocal count
        count += 1
        if count == number:
            os._exit(1)

    event.listen(trials._storage.engine, "commit", commit)
    try:
        trials.end(trials.claim(), Ending(-9, None, "killed by SIGKILL", is_lost=True))
        trials.claim()
    finally:
        os._exit(0)  # it lived on: the test is to kill it
