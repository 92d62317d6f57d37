"""`early_terminate`: the runs that W&B would stop are stopped, cleanly, and kept."""

import json
from pathlib import Path

import pytest
from local_sweeps import GOOD, attempts, queue, sweep, write

from rlalign.problems import ConfigError
from rlalign.sweeps.child import Ending
from rlalign.sweeps.early import Hyperband, read_early_terminate
from rlalign.sweeps.file import parse_sweep
from rlalign.sweeps.metrics import History

EARLY = {"type": "hyperband", "min_iter": 2}
RECORDED = json.loads((Path(__file__).parents[1] / "data" / "hyperband.json").read_text())


def test_the_same_runs_are_stopped_as_by_wandbs_own_engine():
    """Its verdicts on random histories, as tests/data/record_hyperband.py wrote them down."""
    wrong = []
    for case in RECORDED:
        rule = read_early_terminate(case["early_terminate"])
        everyones = [run["values"] for run in case["runs"]]
        maximize = case["goal"] == "maximize"
        stopped = [
            number
            for number, run in enumerate(case["runs"])
            if run["is_running"] and rule.judge(run["values"], everyones, maximize)
        ]
        wrong += [(case, stopped)] if stopped != case["stopped"] else []
    assert not wrong
    assert sum(len(case["stopped"]) for case in RECORDED) > 30


def test_the_brackets_are_those_of_wandbs_documentation():
    def brackets(**given: object) -> list[int]:
        return read_early_terminate({"type": "hyperband"} | given).brackets(100)

    assert brackets(min_iter=3) == [3, 9, 27, 81]
    assert brackets(max_iter=27, s=2) == [3, 9]
    assert brackets(max_iter=5, s=4, eta=2) == [1, 2]
    assert read_early_terminate({"type": "hyperband", "min_iter": 3}) == Hyperband(
        3, 3, None, None, strict=False
    )


def test_strict_counts_the_value_at_the_bracket_and_not_the_best_before_it():
    own, other = [5.0, 1.0], [3.0, 3.0]
    lenient = Hyperband(3, 2, None, None, strict=False)
    strict = Hyperband(3, 2, None, None, strict=True)
    assert lenient.judge(own, [own, other], maximize=True) is None
    behind = strict.judge(own, [own, other], maximize=True)
    assert str(behind) == "stopped early: at bracket 2 1 is behind 3"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "early_terminate=3 must be a mapping: early_terminate: {type: hyperband"),
        ({"type": "envelope", "min_iter": 3}, "type='envelope' is unknown; W&B has hyperband"),
        ({"type": "hyperband", "min_itr": 3}, "min_itr is unknown; did you mean min_iter?"),
        ({"type": "hyperband"}, "takes either min_iter, the first bracket, or max_iter with s"),
        ({"type": "hyperband", "min_iter": 3, "max_iter": 9, "s": 1}, "takes either min_iter"),
        ({"type": "hyperband", "max_iter": 9}, "max_iter and s, the number of brackets, go toget"),
        ({"type": "hyperband", "min_iter": 3, "s": 2}, "max_iter and s, the number of brackets"),
        ({"type": "hyperband", "min_iter": 0}, "min_iter=0 must be a whole number above 0"),
        ({"type": "hyperband", "min_iter": 3, "eta": 1}, "eta=1 must be a number above 1"),
        ({"type": "hyperband", "min_iter": 3, "strict": 1}, "strict=1 must be true or false"),
        ({"type": "hyperband", "max_iter": 2, "s": 2}, "max_iter=2 / eta=3 is below 1; raise max"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(given, message):
    with pytest.raises(ConfigError) as refused:
        parse_sweep(GOOD | {"program": "p.py", "early_terminate": given})
    assert message in str(refused.value)


def test_a_trial_that_falls_behind_is_told_to_stop_and_kept_with_its_last_value(here, capsys):
    """The second writes four rows and then waits to be stopped, for ever if need be."""
    write(
        {"does": {"values": ["climbs", "climbs and waits"]}, "x": {"value": 1}},
        early_terminate=EARLY,
    )
    assert sweep() == 0
    good, behind = queue().table()
    assert (good.state, good.value) == ("done", 4.0)
    assert (behind.state, behind.value) == ("pruned", 0.4)
    assert behind.reason == "stopped early: at bracket 2 0.4 is behind 2"
    ended = json.loads((here / "runs/sweeps/s/trial-0001/run.json").read_text())
    assert ended["message"] == "stopped after iteration 4"  # by SIGTERM, in peace
    assert len(attempts("trial-0001")) == 1  # and not done again
    out = capsys.readouterr().out
    assert f"trial 1: {behind.reason}" in out and "best: trial 0, score 4" in out


def test_one_that_is_ahead_is_not_stopped(here):
    write({"does": {"value": "climbs"}, "x": {"values": [1, 2, 3]}}, early_terminate=EARLY)
    assert sweep() == 0
    assert [(trial.state, trial.value) for trial in queue().table()] == [
        ("done", 4.0),
        ("done", 8.0),
        ("done", 12.0),
    ]


def test_what_a_trial_did_before_it_was_lost_does_not_count_twice(here):
    write({"x": {"values": [1, 2]}}, early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2})
    trials = queue()
    lost = trials.claim()
    trials.report(lost, [5.0])
    trials.end(lost, Ending(-9, None, "killed by SIGKILL", is_lost=True))
    again, other = trials.claim(), trials.claim()
    assert again.is_retry and trials.report(again, [5.0]) is None
    # Of two runs the second is still among the best half; were the lost one a third, it were not.
    assert trials.report(other, [4.0]) is None


def test_the_values_of_a_growing_file_are_whole_rows_of_numbers_and_begin_anew_with_it(tmp_path):
    file = tmp_path / "metrics.jsonl"
    history = History(file, "score")
    assert not history.grows() and history.values == []
    with file.open("a") as out:
        out.write('{"score": 1.0}\n{"score": null}\n{"kl/ref": 2}\n{"score": 2')
    assert history.grows() and history.values == [1.0]
    with file.open("a") as out:
        out.write(".5}\n")
    assert history.grows() and history.values == [1.0, 2.5]
    assert not history.grows()
    (tmp_path / "new").write_text('{"score": 1.0}\n{"score": 7}\n')  # as a run that resumes does
    (tmp_path / "new").rename(file)
    assert history.grows() and history.values == [1.0, 7]
