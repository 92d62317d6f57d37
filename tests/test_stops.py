"""A run that is told to stop, wherever it is, goes on later as if it had not been."""

import os
import signal

import hashes
import pytest
from faulty import (
    PHASES,
    at,
    command,
    ended,
    iteration_of,
    place,
    server,
    unbroken,
    wait_for,
    wait_for_fault,
)

__all__ = ["place", "server", "unbroken"]  # fixtures


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


def test_a_second_sigterm_is_the_first(server, place):
    """Agents and kernels both send one; the second must not end a run that is saving."""
    job = server.launch(place, command("twice"), 2, [at("save", "SIGTERM", 0)])
    wait_for(lambda: "SIGTERM in" in job.stderr)
    for pid in job.ranks:
        os.kill(pid, signal.SIGTERM)
    assert job.wait(60) == [143, 143], job.stderr
    assert ended(place, "twice")["status"] == "preempted"
    page = (place / "runs/twice/report.html").read_text(encoding="utf-8")
    assert '<p class="soft">preempted · PPO' in page


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
