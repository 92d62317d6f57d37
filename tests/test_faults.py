"""Whatever meets one process of a run, all of them end in time, and run.json says why."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import hashes
import pytest
from faulty import PHASES, at, command, ended, iteration_of, place, server, unbroken, wait_for_fault
from ports import free_port

from rlalign.guard.telling import Guarded

__all__ = ["place", "server", "unbroken"]  # fixtures
SECONDS = 10.0  # in which everything must be over


@pytest.mark.parametrize(
    ("phase", "rank"), [*((phase, 1) for phase in PHASES), ("score", 0), ("save", 0)]
)
def test_an_error_on_one_rank_ends_all_and_is_told_as_it_was(server, place, phase, rank):
    name = f"error-{phase}-{rank}"
    iteration = iteration_of(phase)
    fault = at(phase, "exception", rank, iteration)
    job = server.launch(place, command(name), 2, [fault])
    assert job.wait(60) == [1, 1]
    job.wait_for_nobody(SECONDS)
    said = ended(place, name)
    where = ", ".join([f"rank {rank}", *(["iteration 2"] if iteration else []), phase])
    assert (said["status"], said["exit_code"]) == ("failed", 1)
    assert said["where"] == {"rank": rank, "at": where}
    assert said["message"].startswith("TypeError: a fault of ours")
    last = [line for line in job.stderr.splitlines() if line.startswith("rlalign: ")][-1]
    assert last == f"rlalign: {said['message']}"
    page = place / f"runs/{name}/report.html"
    assert page.exists() == bool(iteration)  # without a row there is nothing to show
    if iteration:
        told = page.read_text(encoding="utf-8")
        assert '<p class="soft">failed · PPO' in told and "TypeError: a fault of ours" in told


def test_an_error_does_not_wait_for_ranks_that_are_busy(server, place):
    faults = [at("score", "exception", 1), at("score", "sleep", 0)]
    job = server.launch(place, command("busy"), 2, faults)
    wait_for_fault(place, "busy", job)
    job.wait_for_nobody(SECONDS)
    said = ended(place, "busy")
    assert said["where"] == {"rank": 1, "at": "rank 1, iteration 2, score"}, job.stderr
    assert said["message"].startswith("TypeError: a fault of ours")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", ["score", "update"])  # before a meeting, and amid several
def test_a_killed_rank_ends_all(server, place, phase, rank):
    name = f"killed-{phase}-{rank}"
    job = server.launch(place, command(name), 2, [at(phase, "kill", rank)])
    codes = job.wait(60)
    job.wait_for_nobody(SECONDS)
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] != 0
    said = ended(place, name)
    assert (said["status"], said["exit_code"]) == ("failed", 137)
    assert said["where"] == {"rank": rank, "at": f"rank {rank}, iteration 2, {phase}"}
    assert "killed" in said["message"] and said["message"] in job.stderr


def test_a_killed_run_of_one_process_says_so_too(server, place):
    job = server.launch(place, command("alone"), 1, [at("update", "kill", 0)])
    assert job.wait(60) == [-signal.SIGKILL]
    job.wait_for_nobody(SECONDS)
    assert ended(place, "alone")["exit_code"] == 137


@pytest.mark.parametrize(
    ("kind", "phase", "ranks"),
    [
        ("sleep", "score", 2),
        ("loop in C", "score", 2),
        ("freeze", "update", 2),
        ("loop in C", "update", 1),
    ],
)
def test_a_silent_rank_is_named_and_ended(server, place, kind, phase, ranks):
    name = f"hung-{kind.replace(' ', '-')}-{ranks}"
    rank = ranks - 1
    job = server.launch(place, command(name, "--run.timeout=4"), ranks, [at(phase, kind, rank)])
    begun = wait_for_fault(place, name, job)
    assert job.wait(30) == [-signal.SIGKILL] * ranks
    assert time.monotonic() - begun > 3.5
    job.wait_for_nobody(SECONDS)
    said = ended(place, name)
    silent = ", ".join([*([f"rank {rank}"] if ranks > 1 else []), "iteration 2", phase])
    assert (said["status"], said["exit_code"], said["where"]["at"]) == ("failed", 7, silent)
    assert f"no sign of life from {silent} for run.timeout=4 s" in said["message"]
    if kind != "freeze":  # a stopped process runs nothing at all
        stacks = (place / f"runs/{name}/stacks-rank{rank}.txt").read_text()
        assert "in meet" in stacks and "run_method" in stacks


@pytest.mark.parametrize("is_stuck", [False, True], ids=["busy", "in C"])
def test_nobody_outlives_a_killed_launcher(server, place, is_stuck):
    name = f"orphans-{is_stuck}"
    faults = [at("update", "SIGKILL to the launcher", 1)]
    faults += [at("update", "loop in C", 0)] if is_stuck else []
    job = server.launch(place, command(name, "--run.grace=3"), 2, faults)
    wait_for_fault(place, name, job)
    job.wait_for_nobody(SECONDS + 5)
    said = ended(place, name)
    assert (said["status"], said["exit_code"]) == ("preempted", 143)
    assert ("could not save" in said["message"]) == is_stuck


def test_a_run_goes_on_when_its_guard_is_gone(server, place, unbroken):
    job = server.launch(place, command("unguarded"), 2, [at("generate", "kill the guard", 0)])
    assert job.wait(60) == [0, 0], job.stderr
    assert hashes.of_run(place / "runs/unguarded") == unbroken[2]


def test_what_a_lost_guard_leaves_behind_is_removed(tmp_path):
    place = tmp_path / "guard"
    place.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(place / "socket"))
        listener.listen(1)
        rank = Guarded(place, rank=0, timeout=5, grace=5)
        listener.accept()[0].close()
    rank.leave()
    assert not place.exists()


def test_a_gradient_that_is_not_finite_is_skipped_by_all(server, place):
    job = server.launch(place, command("nan"), 2, [at("update", "nan", 1)])
    assert job.wait(60) == [0, 0], job.stderr
    rows = {row["iteration"]: row for row in hashes.metrics(place / "runs/nan")}
    skipped = {i: rows[i]["ppo/skipped_steps"] for i in (1, 2, 3, 4)}
    assert skipped == {1: 0.0, 2: 0.5, 3: 0.0, 4: 0.0}
    assert rows[4]["optimizer_steps"] == 7
    assert all(value is not None for row in rows.values() for value in row.values())
    assert "the loss of rank 1 is not finite" in job.stderr


def test_too_many_skipped_steps_end_the_run(server, place):
    faults = [at("update", "nan", 1, i) for i in (1, 2, 3)]
    settings = ("--optim.max_skipped=3", "--ppo.minibatches=1")
    job = server.launch(place, command("diverged", *settings), 2, faults)
    assert job.wait(60) == [1, 1]
    said = ended(place, "diverged")
    assert (
        "rank 1 is not finite, 3 optimiser steps in a row (optim.max_skipped=3)" in said["message"]
    )


def test_memory_that_runs_out_once_changes_nothing(server, place, unbroken):
    job = server.launch(place, command("once"), 2, [at("update", "out of memory", 1)])
    assert job.wait(60) == [0, 0], job.stderr
    assert hashes.of_run(place / "runs/once") == unbroken[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_of_trls_trainers_ends_together_too(server, place, number):
    name = f"grpo-{number.name}"
    settings = ("--sampling.samples_per_prompt=4", "--train.iterations=200", "--eval.every=0")
    argv = ["grpo", "--config=run.yaml", f"--run.name={name}", *settings]
    job = server.launch(place, [*argv, "--rewards.short.max=3"], 2)
    wait_for_fault(place, name, job)
    os.kill(job.ranks[1], number)
    codes = job.wait(30)
    job.wait_for_nobody(SECONDS)
    said, ending = ended(place, name), ("preempted", 143)
    if number == signal.SIGKILL:
        ending = ("failed", 137)
    assert (said["status"], said["exit_code"]) == ending and 0 not in codes, job.stderr


TESTS = Path(__file__).parent


LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch"),
    *("--config_file", str(TESTS.parent / "launch/accelerate/cpu2.yaml")),
]


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("SIGTERM to the launcher", ("preempted", 143)), ("kill", ("failed", 137))],
)
def test_under_accelerates_launcher_too(place, kind, ending):
    """It turns every exit code into 1, or hides it: run.json has it."""
    name = f"launched-{kind[:4]}"
    faults = json.dumps([at("update", kind, 1)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FAULTS": faults}
    launch = [*LAUNCH, "--main_process_port", str(free_port()), str(TESTS / "faults.py")]
    done = subprocess.run(
        [*launch, *command(name)], cwd=place, env=environment, capture_output=True, text=True,
        timeout=180, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode != 0
    said = ended(place, name)
    assert (said["status"], said["exit_code"]) == ending, done.stderr
