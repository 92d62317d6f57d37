"""Workers that hang, crash or cannot start, and a run that outlives their faults."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from isolated_reward import (
    DEADLINE,
    REWARD_FILE,
    exists,
    function,
    hasty,
    isolated,
    reward_file,
    reward_set,
    worker_of,
)

from rewards import (
    RewardConfigError,
    RewardError,
    RewardSet,
    isolation,
    load_file,
)
from rewards.compose import RewardEntry
from rewards.contract import WorkerFault, WorkerLost

__all__ = ["function", "hasty", "isolated", "reward_file"]  # fixtures


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("leave", "raised SystemExit: 3"),
        ("memory", "raised MemoryError"),
        ("raise", "raised ValueError: bad text"),
    ],
)
def test_an_exception_leaves_the_worker_alive(function, text, fault):
    before = function(completions=["pid"])
    with pytest.raises(WorkerFault, match=f"^{fault}\n") as caught:
        function(completions=[text])
    assert "moody.py" in caught.value.__notes__[0]  # the worker's traceback
    assert function(completions=["pid"]) == before


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hang", "took more than 1 s"),
        ("sleep", "took more than 1 s"),
        ("power", "took more than 1 s"),
        ("backtrack", "took more than 1 s"),
        ("stop", "took more than 1 s"),
        ("flood", "(sent back more than 8 MiB|took more than 1 s)"),
        ("segfault", r"ended its worker process \(SIGSEGV\)"),
        ("exit", r"ended its worker process \(exit code 3\)"),
        ("scribble", "wrote into its worker's pipe"),
    ],
)
def test_a_lost_worker_is_ended_and_the_next_call_has_another(function, text, fault, monkeypatch):
    monkeypatch.setattr(isolation, "LARGEST_REPLY", 8 << 20)
    before = int(function(completions=["pid"])[0])
    start = time.monotonic()
    with pytest.raises(WorkerLost, match=f"^{fault}$"):
        function(completions=[text])
    assert time.monotonic() - start < DEADLINE + 2
    assert not exists(before)
    assert function(completions=["pid"]) != [before]


def test_what_a_worker_started_ends_with_it_even_in_a_session_of_its_own(function, tmp_path):
    log = tmp_path / "pid"
    with pytest.raises(WorkerLost, match="took more than 1 s"):
        function(completions=[f"child {log}"])
    child = int(log.read_text())
    until = time.monotonic() + 5
    while runs(child):  # killed already; whoever adopts it may take a moment to wait for it
        assert time.monotonic() < until
        time.sleep(0.02)


def test_samples_that_hang_cost_five_deadlines_and_then_the_run_ends(monkeypatch):
    monkeypatch.setattr("rewards.calling.FAILURE_CEILING", 1.0)  # whatever on_error says
    rewards = reward_set(on_error="skip", deadline=0.2)
    rewards([""], ["a"])
    begun = time.monotonic()
    with pytest.raises(RewardError) as caught:
        rewards([""] * 40, ["a", *(f"hang {i}" for i in range(39))])
    rewards.close()
    message = str(caught.value)
    # Ending a worker counts, and takes its time on a machine that does other work.
    tried = r"took more than 0\.2 s on 40 samples, and [2-5] were tried alone; it took more"
    assert re.search(tried, message)
    assert "the 1 s that hanging samples of a batch may cost are over" in message
    assert message.endswith("raise rewards.x.deadline where it is slow, or find what makes it hang")
    assert time.monotonic() - begun < 39 * 0.2 + 20  # with five starts of a worker in it


def test_only_the_samples_that_hang_or_crash_fail(hasty):
    texts = [*"abcd", "hang", *"efgh", "segfault"]
    out = hasty([""] * 10, texts)
    assert out.valid[:, 0].tolist() == [text not in ("hang", "segfault") for text in texts]
    assert out.skipped == {"x": 2}


def test_a_crash_stops_the_run_with_the_sample_named(isolated, reward_file):
    with pytest.raises(RewardError) as caught:
        isolated([""] * 3, ["a", "bb", "exit"])
    assert str(caught.value).startswith("reward 'x' (own.moody, ")
    assert f"{reward_file}:19) ended its worker process (exit code 3) for " in str(caught.value)
    assert str(caught.value).endswith("for sample 2: 'exit'")


def test_a_batch_that_is_slow_only_as_a_whole_is_scored_one_by_one(hasty, caplog):
    texts = [f"doze {i}" for i in range(5)]
    out = hasty([""] * 5, texts)
    assert out.values[3, 0] == pytest.approx(
        sum((i + 1) * ord(c) for i, c in enumerate("doze 3")) / 7
    )
    assert "took more than 1 s on 5 samples, though on none of them alone" in caplog.text


def test_an_interrupted_call_is_not_answered_in_the_next(isolated):
    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            isolated([""], ["doze"])
    finally:
        signal.signal(signal.SIGALRM, old)
    assert isolated([""], ["\x01"]).values.tolist() == [[1 / 7]]


def test_a_worker_that_starts_again_loads_again_and_runs_the_code_of_the_start(tmp_path):
    log, path = tmp_path / "log", tmp_path / "own.py"
    code = REWARD_FILE.replace("own.", "edited.")
    path.write_text(code)
    load_file(path)
    rewards = reward_set("edited.heavy", params={"log": str(log)})
    path.write_text(code.replace("self.loads += 1", "self.loads += 2"))
    assert rewards([""], ["loads"]).values.tolist() == [[1.0]]
    os.kill(worker_of(rewards), signal.SIGKILL)  # as the kernel does where memory runs out
    assert rewards([""], ["loads again"]).values.tolist() == [[1.0]]
    rewards.close()
    pids = [int(line) for line in log.read_text().split()]
    assert len(pids) == 2 and os.getpid() not in pids and not any(map(exists, pids))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("config", r"^rewards\.x\.fault='config' is wrong; remove it$"),
        (
            "crash",
            r"^rewards\.x \(own\.heavy, .*\) cannot be loaded: its worker ended its worker process",
        ),
    ],
)
def test_a_worker_that_cannot_start_is_a_configuration_error_and_leaves_none(
    tmp_path, fault, message
):
    log = tmp_path / "log"
    entry = RewardEntry("y", "own.heavy", {"log": str(log)}, isolate=True)
    faulty = RewardEntry("x", "own.heavy", {"log": str(log), "fault": fault}, isolate=True)
    with pytest.raises(RewardConfigError, match=message):
        RewardSet([entry, faulty])
    pids = [int(line) for line in log.read_text().split()]
    assert len(pids) == 2 and not any(map(exists, pids))


def test_a_set_from_columns_whose_worker_was_lost_closes_without_a_word():
    entry = RewardEntry(
        "x", "own.moody", {"factor": {"column": "by"}}, isolate=True, deadline=DEADLINE
    )
    rewards = RewardSet([entry])
    with pytest.raises(RewardError, match=r"took more than 1 s for sample 0: 'hang'$"):
        rewards([""], ["hang"], {"by": [1.0]})
    rewards.close()


PARENT = """
import os, sys
from rewards import RewardSet, load_file
from rewards.asking import Call
from rewards.compose import RewardEntry

load_file({file!r})
entry = RewardEntry("x", "own.moody", isolate=True, deadline=60.0)
if __name__ == "__main__":
    rewards = RewardSet([entry])
    print(int(rewards([""], ["pid"]).values[0, 0]), flush=True)
    {then}
"""


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("sys.exit(0)", 0),
        ("raise ValueError", 1),
        ("rewards([''], ['hang'])", -signal.SIGKILL),
    ],
)
def test_no_worker_outlives_its_parent(tmp_path, reward_file, then, code):
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT).format(file=str(reward_file), then=then))
    parent = subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    worker = int(parent.stdout.readline())
    if code < 0:
        assert runs(worker)
        time.sleep(0.2)
        parent.kill()
    assert parent.wait() == code
    until = time.monotonic() + 2
    while runs(worker):
        assert time.monotonic() < until
        time.sleep(0.02)
    parent.stdin.close()
    parent.stdout.close()


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which an orphan's new parent may leave."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
