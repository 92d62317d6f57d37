"""Rewards that hang, fork or fail on one rank of a run of two."""

import os
import signal

import hashes
import pytest
from faulty import at, command, ended, place, server

__all__ = ["place", "server"]  # fixtures

REWARD = """
import time
from rewards import reward

@reward
def slow(completions: list[str], calls=[0]) -> list[float]:
    calls[0] += 1
    if calls[0] > 6:
        time.sleep(1000)
    return [0.0] * len(completions)
"""


def test_a_reward_that_hangs_is_named_with_its_sample(server, place):
    (place / "slow.py").write_text(REWARD, encoding="utf-8")
    settings = ("--reward_files=[turn.py, slow.py]", "--rewards.slow.kind=slow", "--run.timeout=4")
    job = server.launch(place, command("slow", *settings), 2)
    assert job.wait(60) == [-signal.SIGKILL] * 2, job.stderr
    message = ended(place, "slow")["message"]
    assert "score: reward 'slow' (slow, " in message
    assert "on 4 samples, the first being sample 0: " in message


def test_a_reward_that_hangs_before_training_is_named_too(server, place):
    """While moments are fitted to the reference."""
    text = REWARD.replace("calls[0] > 6", "len(completions) > 6")
    (place / "early.py").write_text(text.replace("def slow", "def early"), encoding="utf-8")
    files = "--reward_files=[turn.py, early.py]"
    wish = "--rewards.early={kind: early, moment: 0.5}"
    job = server.launch(place, command("early", files, wish, "--run.timeout=4"), 2)
    assert job.wait(60) == [-signal.SIGKILL] * 2, job.stderr
    assert "fit: reward 'early' (early, " in ended(place, "early")["message"]


FORKING = """
import multiprocessing
import os
import time
from rewards import reward

def child_of(ready):
    ready.set()  # a signal before Python has settled in the child would be lost, whoever listens
    time.sleep(1000)


@reward
def forking(completions: list[str]) -> list[float]:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=child_of, args=(ready,))
    child.start()
    ready.wait()
    if KEEPS:
        return [0.0] * len(completions)
    child.terminate()
    child.join()
    return [float(child.exitcode)] * len(completions)
"""


@pytest.mark.parametrize("keeps", [False, True], ids=["terminated", "left behind"])
def test_what_a_reward_forks_is_no_rank(server, place, keeps):
    """A signal to it stops nothing, and that it lives on does not hide that its parent is gone."""
    name = f"forking{keeps:d}"
    text = FORKING.replace("KEEPS", str(keeps))
    (place / f"{name}.py").write_text(text.replace("def forking", f"def {name}"), encoding="utf-8")
    files = f"--reward_files=[turn.py, {name}.py]"
    faults = [at("update", "kill", 1)] if keeps else []
    argv = command(name, files, f"--rewards.forking.kind={name}", "--run.grace=2")
    job = server.launch(place, argv, 2, faults)
    codes = job.wait(60)
    for pid in job.survivors() if keeps else ():
        os.kill(pid, signal.SIGKILL)  # the children, which are the reward's own business
    said = ended(place, name)
    if keeps:  # whoever is not killed may have been in a meeting, and was told so
        assert codes[1] == -signal.SIGKILL and said["exit_code"] == 137
    else:
        assert codes == [0, 0], job.stderr
        values = {row["reward/forking"] for row in hashes.metrics(place / f"runs/{name}")[1:]}
        assert values == {-float(signal.SIGTERM)}


PICKY = """
import os
from rewards import reward

seen = []

@reward
def picky(completions: list[str]) -> list[float]:
    seen.extend(completions[:1] if len(completions) > 6 else [])  # no probe, no evaluation
    if os.environ["RANK"] == "1" and seen and seen[0] in completions:
        raise ValueError("not that one")
    return [1.0] * len(completions)
"""


def test_samples_that_fail_on_one_rank_are_counted_for_all(server, place):
    (place / "picky.py").write_text(PICKY, encoding="utf-8")
    settings = (
        "--reward_files=[turn.py, picky.py]",
        "--rewards.picky={kind: picky, on_error: skip}",
    )
    more = ("--train.samples=32", "--sampling.max_new_tokens=12", "--train.iterations=2")
    job = server.launch(place, command("picky", *settings, *more), 2)
    assert job.wait(60) == [0, 0], job.stderr
    rows = [row for row in hashes.metrics(place / "runs/picky") if row["iteration"]]
    failed = [row["reward/picky/failed"] for row in rows]
    assert failed[0] >= 1 and [row["reward/picky/valid"] for row in rows] == [
        pytest.approx(1 - count / 32) for count in failed
    ]
