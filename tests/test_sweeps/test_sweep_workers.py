"""Several workers share a sweep; one that dies, sleeps or is stopped takes nothing with it."""

import gc
import json
import signal
import time

from forked import ended, fork
from launching import is_alive
from local_sweeps import READY, attempts, queue, states, sweep, wait_for, write

from rlalign.sweeps import child, worker
from rlalign.sweeps.child import Ending


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
