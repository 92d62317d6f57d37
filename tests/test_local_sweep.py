"""`rlalign sweep --local`: nothing that dies takes a trial with it, and none is run twice."""

import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import ended, fork
from launching import is_alive
from wandb import wandb_agent

from rlalign import cli
from rlalign.sweeps import child, worker
from rlalign.sweeps.child import Ending, locked_log
from rlalign.sweeps.file import FORMS, command_line, read_sweep
from rlalign.sweeps.metrics import read_value
from rlalign.sweeps.parameters import read_parameter
from rlalign.sweeps.queue import Queue

ROOT = Path(__file__).resolve().parents[1]
READY = Path("runs/sweeps/s/trial-0000/ready")
METRIC = {"name": "score", "goal": "maximize"}

# What a run does that a sweep sees, in a program that starts at once. `does` says how it ends.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = Path(given["run.dir"]) / given["run.name"]
folder.mkdir(exist_ok=True)
with open(folder / "attempts.jsonl", "a") as file:
    file.write(json.dumps(given | {"pid": os.getpid()}) + "\\n")
does, is_resumed = given.get("does", "ends"), given.get("run.resume") == "auto"


def leave(code, message):
    ended = {"exit_code": code, "message": message, "ended_at": time.time()}
    (folder / "run.json").write_text(json.dumps(ended))
    sys.exit(code if does != "hides its code" else min(code, 1))


if does == "hangs once" and not is_resumed:
    signal.signal(signal.SIGTERM, lambda *_: leave(143, "stopped after iteration 3"))
    (folder / "ready").touch()
    time.sleep(120)
if does == "ignores SIGTERM":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "ready").touch()
    time.sleep(120)
if does == "leaves its launcher" and not is_resumed and os.fork() == 0:
    time.sleep(1)
    leave(143, "stopped after iteration 3")
if does == "dies" or (does in ("dies once", "leaves its launcher") and not is_resumed):
    os.kill(os.getpid(), signal.SIGKILL)
if does == "is preempted, then crashes":
    leave(143, "stopped") if not is_resumed else sys.exit("no such model")
if does == "fails":
    leave(5, "reward 'space' failed")
if does == "hides its code" and not is_resumed:
    leave(143, "stopped after iteration 3")
if does == "crashes":
    sys.exit("no such model")
score = None if does == "null" else float(given.get("x", 0))
rows = [{"score": -1.0}, {"score": score}] if does != "none" else [{"scores": 3.0}]
with open(folder / "metrics.jsonl", "a") as file:
    file.write("".join(json.dumps({"iteration": 1} | row) + "\\n" for row in rows))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def write(parameters: dict[str, Any], **more: Any) -> Path:
    """A sweep file, s.yaml, which runs the program above."""
    content = {"program": "program.py", "method": "grid", "metric": METRIC} | more
    text = yaml.safe_dump(content | {"parameters": parameters}, sort_keys=False)
    Path("s.yaml").write_text(text)
    return Path("s.yaml")


def sweep(*arguments: str) -> int:
    return cli.main(["sweep", "s.yaml", "--local", *arguments])


def queue(grace: int = 60, total: int = 2) -> Queue:
    folder = Path("runs/sweeps/s")
    folder.mkdir(parents=True, exist_ok=True)
    return Queue(folder, read_sweep(Path("s.yaml")), total, grace)


def states() -> list[tuple[str, float | None]]:
    return [(trial.state, trial.value) for trial in queue().table()]


def attempts(trial: str = "trial-0000") -> list[dict[str, Any]]:
    lines = Path("runs/sweeps/s", trial, "attempts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


class Started:
    """A worker in a process of its own, forked because everything is imported here already."""

    def __init__(self, *arguments: str) -> None:
        def work() -> None:
            os._exit(sweep(*arguments))

        gc.collect()  # no connection to the study's file is shared
        self.pid, self.is_over = fork(work), False

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        status = ended(self.pid, time.monotonic() + 120)
        self.is_over = True
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def start(here: Path) -> Iterator[Any]:
    """Starts workers, and leaves none behind."""
    workers: list[Started] = []

    def begin(*arguments: str) -> Started:
        workers.append(Started(*arguments))
        return workers[-1]

    yield begin
    for each in workers:
        if not each.is_over:
            each.signal(signal.SIGKILL)
            each.wait()


def wait_for(claim: Any, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


# -- what a trial is given ------------------------------------------------------------------------

VALUES = {
    "kl.coef": 0.05,
    "ppo.lr": 1e-05,
    "ppo.epochs": 3,
    "kl.target": None,
    "prompts.chat": True,
    "score.normalize": False,
    "sampling.stop": ["it's", 'say "no"'],
    "kl": {"horizon": 500},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_trials_command_is_the_one_that_an_agent_starts(form, here, monkeypatch):
    """The agent's own code, with nothing but the start of the process taken out."""
    monkeypatch.setenv("WORDS", "a b")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")  # the agent sets them; restored after the test
    command = ["${env}", "${interpreter}", "${program}", "${envvar:WORDS}", 3, f"${{{form}}}"]
    path = write({"x": {"value": 1}}, command=command)
    agent = object.__new__(wandb_agent.Agent)
    agent._sweep_command, agent._function, agent._in_jupyter = list(command), None, False
    agent._run_processes, agent._forward_signals = {}, False
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **more: Any) -> None:
            started.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    given = {name: {"value": value} for name, value in VALUES.items()}
    agent._command_run({"run_id": "r", "program": "program.py", "args": given})
    ours = command_line(read_sweep(path), VALUES, Path("wandb/sweep-None/config-r.json"))
    assert [ours] == started and len(ours) > 5


def test_numbers_are_made_as_wandb_makes_them():
    def of(drawn: float, **spec: Any) -> Any:
        return read_parameter("x", spec).value(drawn)

    assert of(0.34, distribution="q_uniform", min=0, max=1, q=0.25) == 0.25
    assert of(340.0, distribution="q_log_uniform_values", min=1, max=1000, q=100) == 300
    assert of(0.5, distribution="normal", mu=3, sigma=2) == 3.0
    assert of(0.8413447460685429, distribution="normal", mu=3, sigma=2) == pytest.approx(5.0)
    assert of(0.5, distribution="log_normal", mu=0, sigma=1) == 1.0
    assert of("[1, 2]", values=[[1, 2], 3]) == [1, 2]
    assert of(None, value=None) is None


def test_numbers_are_drawn_between_the_ends_that_wandb_draws_between():
    def drawn(**spec: Any) -> tuple[Any, Any, bool]:
        found = read_parameter("x", spec).distribution()
        return found.low, found.high, found.log

    assert drawn(min=1, max=4) == (1, 4, False)
    assert type(read_parameter("x", {"min": 1, "max": 4}).distribution()).__name__ == (
        "IntDistribution"
    )
    assert drawn(min=1.0, max=4) == (1.0, 4.0, False)
    assert drawn(distribution="log_uniform_values", min=1e-5, max=1e-2) == (1e-5, 1e-2, True)
    low, high, is_log = drawn(distribution="log_uniform", min=0, max=1)
    assert (low, is_log) == (1.0, True) and high == pytest.approx(2.718281828)


# -- bad input -------------------------------------------------------------------------------------

GOOD = {"method": "grid", "metric": METRIC, "parameters": {"x": {"values": [1]}}}
BAD = [
    ({"metric": None}, "metric=None must name a metric"),
    ({"metric": {"name": "score", "goal": "max"}}, "metric.goal='max' must be maximize or"),
    ({"metric": METRIC | {"target": 3}}, "metric.target=3 cannot be had"),
    ({"method": "hyperband"}, "method='hyperband' is unknown; there are grid, random, bayes"),
    ({"method": "random"}, "method=random has no end of its own; give --trials N"),
    ({"run_cap": 0}, "run_cap=0 must be a whole number above 0"),
    ({"comand": []}, "comand is no key of a sweep file; did you mean command?"),
    ({"command": ["python", "x.py"]}, "has no ${args}, so no trial would get its parameters"),
    ({"command": ["python", "${argz}"]}, "command: ${argz} is unknown"),
    ({"command": ["no-such-program", "${args}"]}, "command begins with 'no-such-program'"),
    ({"program": "other.py"}, "program='other.py' is no file here"),
    ({"program": None}, "command has ${program}, and the file names no program"),
    ({"parameters": {}}, "parameters={} must map settings to values"),
    ({"parameters": {"run.name": {"value": "a"}}}, "parameters.run.name: each trial has a folder"),
    ({"parameters": {"x": 3}}, "parameters.x=3 must be a mapping"),
    ({"parameters": {"x": {"values": []}}}, "parameters.x.values=[] must be a list of at least"),
    ({"parameters": {"x": {"values": [1, True]}}}, "parameters.x.values: True equals another"),
    ({"parameters": {"x": {"values": [float("nan")]}}}, "nan cannot be kept in the study"),
    ({"parameters": {"x": {"min": 0.0, "max": 1.0}}}, "has no end of values, which method=grid"),
    ({"parameters": {"x": {"min": 2, "max": 1}}}, "parameters.x.min=2 must be below max=1"),
    ({"parameters": {"x": {"min": 2}}}, "parameters.x.max is missing: uniform needs it"),
    ({"parameters": {"x": {"min": "low", "max": 1}}}, "parameters.x.min='low' must be a number"),
    ({"parameters": {"x": {"values": [1], "q": 1}}}, "parameters.x.q=1 is not for categorical"),
    ({"parameters": {"x": {"distribution": "beta"}}}, "x.distribution='beta' cannot be had"),
    ({"parameters": {"x": {"parameters": {}}}}, "parameters.x.parameters: nested parameters"),
    (
        {"parameters": {"x": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
        "parameters.x.min=0 must be above 0 to have a logarithm",
    ),
    (
        {"parameters": {"x": {"distribution": "log_uniform", "min": 1, "max": 1000}}},
        "log_uniform takes exponents of e",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=lambda each: str(each)[:50])
def test_a_bad_sweep_is_refused_before_anything_is_started(change, message, here, capsys):
    write(**(GOOD | change))
    assert sweep() == 2
    assert message in capsys.readouterr().err and not Path("runs").exists()


def test_other_bad_calls_say_what_to_do(here, capsys):
    write(GOOD["parameters"])
    assert cli.main(["sweep", "no.yaml", "--local"]) == 2
    assert "the sweep file no.yaml cannot be read: No such file" in capsys.readouterr().err
    assert cli.main(["sweep", "s.yaml"]) == 2
    assert "rlalign sweep s.yaml needs --local" in capsys.readouterr().err
    assert sweep("--name", "../away") == 2
    assert "--name '../away' cannot be a folder's" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_all_that_is_wrong_with_a_file_is_said_at_once(here, capsys):
    write({"x": {}, "y": {"values": []}}, method="hyperband")
    assert sweep() == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_without_optuna_it_says_how_to_install_it(here, monkeypatch, capsys):
    write(GOOD["parameters"])
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "rlalign.sweeps.queue")
    monkeypatch.delitem(sys.modules, "rlalign.sweeps.worker", raising=False)
    assert sweep() == 2
    assert "pip install 'rlalign[sweeps]'" in capsys.readouterr().err


# -- trials that end -------------------------------------------------------------------------------


def test_every_failure_is_kept_with_its_reason_and_not_repeated(here, capsys):
    ends = ["ends", "fails", "crashes", "none", "null"]
    write({"does": {"values": ends}, "x": {"value": 3}})
    assert sweep() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["0", "done", "3", "runs/sweeps/s/trial-0000", "does=ends", "x=3"]
    assert [line.split()[1] for line in lines[2:6]] == ["failed"] * 4
    assert lines[6:] == [
        "trial 1: exit code 5: reward 'space' failed",
        "trial 2: exit code 1: no such model",
        "trial 3: exit code 0: metrics.jsonl has no score; did you mean scores?",
        "trial 4: exit code 0: the last score in metrics.jsonl is null, not a number",
        "best: trial 0, score=3",
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


# -- trials that are lost --------------------------------------------------------------------------


def test_a_trial_whose_process_is_killed_goes_on_in_its_folder(here, capsys):
    write({"does": {"value": "dies once"}, "x": {"value": 4}})
    assert sweep() == 0
    assert states() == [("failed", None), ("done", 4.0)]
    assert [each.get("run.resume") for each in attempts()] == [None, "auto"]
    reason = "trial 0: exit code -9: killed by SIGKILL; went on as trial 1"
    assert reason in capsys.readouterr().out


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


# -- workers ---------------------------------------------------------------------------------------


def test_workers_share_a_grid_without_leaving_out_or_repeating(here):
    """Three that do nothing but claim, so that they meet at every step."""
    write({"x": {"values": [1, 2, 3, 4]}, "y": {"values": [1, 2, 3]}})
    gc.collect()

    def work() -> None:
        trials = queue(total=12)
        while claimed := trials.claim():
            trials.end(claimed, Ending(0, 1.0, ""))

    workers = [fork(work) for _ in range(3)]
    assert [ended(each, time.monotonic() + 90) for each in workers] == [0, 0, 0]
    assert [trial.state for trial in queue().table()] == ["done"] * 12
    assert len({tuple(trial.values.items()) for trial in queue().table()}) == 12


def test_the_trial_of_a_killed_worker_is_done_by_the_other(start):
    write({"does": {"values": ["hangs once", "ends"]}, "x": {"value": 2}})
    killed = start("--grace", "3")
    wait_for(READY.exists)
    other = start("--grace", "3")
    wait_for(lambda: ("done", 2.0) in states())
    assert states() == [("running", None), ("done", 2.0)]
    killed.signal(signal.SIGKILL)
    wait_for(lambda: not is_alive(attempts()[0]["pid"]), 30)  # the run does not outlive it
    assert other.wait() == 0
    assert states() == [("failed", None), ("done", 2.0), ("done", 2.0)]
    assert [each.get("run.resume") for each in attempts()] == [None, "auto"]
    assert queue().table()[0].reason == "its worker was lost; went on as trial 2"


def test_a_worker_that_only_slept_stops_its_run_before_the_other_goes_on(start):
    write({"does": {"value": "hangs once"}, "x": {"value": 2}})
    asleep = start("--grace", "2")
    wait_for(READY.exists)
    asleep.signal(signal.SIGSTOP)
    other = start("--grace", "2")
    wait_for(lambda: states() == [("failed", None), ("running", None)])
    time.sleep(0.5)
    assert len(attempts()) == 1 and is_alive(attempts()[0]["pid"])  # the other waits for it
    asleep.signal(signal.SIGCONT)
    assert [asleep.wait(), other.wait()] == [0, 0]
    assert states() == [("failed", None), ("done", 2.0)] and len(attempts()) == 2


def test_a_worker_that_is_told_to_stop_lets_its_run_save_and_leaves_the_trial(start):
    write({"does": {"value": "hangs once"}, "x": {"value": 2}})
    stopped = start()
    wait_for(READY.exists)
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == 143
    assert json.loads(READY.with_name("run.json").read_text())["exit_code"] == 143
    assert states() == [("failed", None), ("waiting", None)]
    assert sweep() == 0
    assert states() == [("failed", None), ("done", 2.0)]


def test_a_run_that_does_not_stop_is_killed_in_the_end(start, monkeypatch):
    for module in (child, worker):
        monkeypatch.setattr(module, "SAVING_SECONDS", 0.5)
    write({"does": {"value": "ignores SIGTERM"}})
    stopped = start()
    wait_for(READY.exists)
    stopped.signal(signal.SIGINT)
    assert stopped.wait() == 130
    assert not is_alive(attempts()[0]["pid"])
    assert states() == [("failed", None), ("waiting", None)]


SMALL = """
model: {name: glass-tiny, dtype: float32, lora: {r: 2}}
prompts: {path: prompts.jsonl, eval_fraction: 0}
sampling: {max_new_tokens: 8}
rewards: {short: {kind: structure.word_count, min: 2, max: 6}}
train: {iterations: 60, samples: 8, threads: 1}
ppo: {minibatches: 1, epochs: 1}
eval: {every: 0}
checkpoint: {every: 10}
trackers: []
"""


def test_a_real_run_that_is_stopped_with_its_worker_goes_on_where_it_was(start):
    Path("small.yaml").write_text(SMALL)
    Path("prompts.jsonl").write_text('{"prompt": "Once"}\n{"prompt": "Then"}\n')
    words = ["${interpreter}", "-m", "rlalign", "ppo", "--config=small.yaml", "${args}"]
    write({"kl.coef": {"values": [0.1]}}, command=words)
    folder = Path("runs/sweeps/s/trial-0000")
    stopped = start()
    wait_for(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text())
    stopped.signal(signal.SIGTERM)
    assert stopped.wait() == 143
    assert json.loads((folder / "run.json").read_text())["status"] == "preempted"
    assert sweep() == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(1, 61))
    assert states() == [("failed", None), ("done", rows[-1]["score"])]
    assert json.loads((folder / "run.json").read_text())["resumed_at"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["kl"]["coef"] == 0.1
