"""A sweep file that cannot work is refused before anything starts, with what to do."""

import sys
from pathlib import Path

import pytest
from local_sweeps import GOOD, METRIC, sweep, write

from rlalign import cli

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
    Path("empty").mkdir()
    assert cli.main(["sweep", "empty"]) == 2
    assert "empty holds no local sweep (it has no trials.sqlite)" in capsys.readouterr().err
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
