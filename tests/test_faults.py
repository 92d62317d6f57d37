"""Whatever meets one process of a run, all of them end in time, and run.json says why."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hashes
import pytest
from launching import Server
from ports import free_port

CONFIG = """
model: {name: glass-tiny, dtype: float32, lora: {r: 2}}
prompts: {path: prompts.jsonl, eval_fraction: 0}
sampling: {max_new_tokens: 8}
rewards:
  short: {kind: structure.word_count, min: 2, max: 4}
  turn: {kind: turn, weight: 0.1}
reward_files: [turn.py]
train: {iterations: 4, samples: 8}
ppo: {minibatches: 2, epochs: 1}
eval: {every: 2, samples: 4}
checkpoint: {every: 3, keep: 2}
trackers: []
"""
TURN = """
from rewards import reward

@reward("turn")
class Turn:
    calls: int = 0

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]

    def __call__(self, completions: list[str]) -> list[float]:
        self.calls += 1
        return [float(self.calls)] * len(completions)
"""
SECONDS = 10.0  # in which everything must be over
PHASES = ("fit", "generate", "score", "prepare", "update", "evaluate", "save")


def at(phase: str, kind: str, rank: int = 1, iteration: int | None = 2) -> dict:
    return {"phase": phase, "kind": kind, "rank": rank, "iteration": iteration}


def iteration_of(phase: str) -> int | None:
    return None if phase == "fit" else 2


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "run.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "turn.py").write_text(TURN, encoding="utf-8")
    rows = [{"prompt": "Alice saw a"}, {"prompt": "Alice saw the"}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="module")
def unbroken(server, place) -> dict[int, dict[str, str]]:
    """What runs that no fault meets leave, by the number of processes."""
    found = {}
    for ranks in (1, 2):
        job = server.launch(place, command(f"unbroken{ranks}"), ranks)
        assert job.wait(60) == [0] * ranks, job.stderr
        found[ranks] = hashes.of_run(place / f"runs/unbroken{ranks}")
    return found


def command(name: str, *settings: str) -> list[str]:
    return ["ppo", "--config=run.yaml", f"--run.name={name}", "--run.resume=auto", *settings]


def ended(place: Path, name: str) -> dict:
    return json.loads((place / f"runs/{name}/run.json").read_text(encoding="utf-8"))


def wait_for_fault(place: Path, name: str, job) -> float:
    """Until the run has begun its second iteration; the time then."""
    metrics = place / f"runs/{name}/metrics.jsonl"
    end = time.monotonic() + 60
    while not metrics.exists() or b'"iteration": 1,' not in metrics.read_bytes():
        assert time.monotonic() < end, job.stderr
        time.sleep(0.02)
    return time.monotonic()


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


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


@pytest.mark.parametrize(
    ("phase", "kind", "rank", "ranks"),
    [
        *((f"amid {phase}", "SIGTERM", 0, 1) for phase in ("score", "evaluate")),
        *((f"amid {phase}", "SIGTERM", 1, 2) for phase in ("generate", "score")),
        *((phase, "SIGTERM", 0, 1) for phase in ("generate", "update", "evaluate", "save")),
        *((phase, "SIGTERM", 1, 2) for phase in PHASES),
        ("evaluate", "SIGTERM", 0, 2),
        *((phase, "SIGTERM to the launcher", 1, 2) for phase in ("generate", "update")),
    ],
)
def test_a_run_that_is_told_to_stop_saves_and_goes_on_as_if_it_had_not_been(
    server, place, unbroken, phase, kind, rank, ranks
):
    name = f"told-{phase}-{kind[-8:]}-{rank}-{ranks}".replace(" ", "")
    job = server.launch(place, command(name), ranks, [at(phase, kind, rank, iteration_of(phase))])
    if kind == "SIGTERM":
        assert job.wait(60) == [143] * ranks, job.stderr
    else:  # which is gone, and tells nothing
        wait_for_fault(place, name, job)
    job.wait_for_nobody(60)
    said = ended(place, name)
    assert (said["status"], said["exit_code"]) == ("preempted", 143), job.stderr
    again = server.launch(place, command(name), ranks)
    assert again.wait(60) == [0] * ranks, again.stderr
    assert hashes.of_run(place / f"runs/{name}") == unbroken[ranks]


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


def test_a_second_sigterm_is_the_first(server, place):
    """Agents and kernels both send one; the second must not end a run that is saving."""
    job = server.launch(place, command("twice"), 2, [at("save", "SIGTERM", 0)])
    wait_for(lambda: "SIGTERM in" in job.stderr)
    for pid in job.ranks:
        os.kill(pid, signal.SIGTERM)
    assert job.wait(60) == [143, 143], job.stderr
    assert ended(place, "twice")["status"] == "preempted"


def test_two_stops_in_a_row_record_no_row_twice(server, place, unbroken):
    """The first leaves an iteration learned and not evaluated, the second comes right after it."""
    settings = ("--checkpoint.best=null",)
    for phase, iteration in (("amid evaluate", 2), ("amid generate", 3)):
        fault = at(phase, "SIGTERM", 0, iteration)
        job = server.launch(place, command("stops", *settings), 1, [fault])
        assert job.wait(60) == [143], job.stderr
    job = server.launch(place, command("stops", *settings), 1)
    assert job.wait(60) == [0], job.stderr
    rows = hashes.metrics(place / "runs/stops")
    assert rows == hashes.metrics(place / "runs/unbroken1")
    assert hashes.samples(place / "runs/stops") == hashes.samples(place / "runs/unbroken1")


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
