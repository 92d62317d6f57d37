"""A sweep file that cannot work is refused before anything starts, with what to do."""

import sys
from pathlib import Path

import pytest
import yaml
from local_sweeps import GOOD, METRIC, sweep, write

from rlalign import cli
from rlalign.sweeps.ours import our_run

ROOT = Path(__file__).parents[2]

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


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kl.cof": {"values": [0.1]}}, "kl.cof is unknown; did you mean kl.coef?"),
        ({"rewards.sapce.weight": {"value": 1}}, "sapce"),
        ({"kl.coef": {"values": [0.1, -1.0]}}, "kl.coef=-1.0"),  # the second value
        ({"kl.coef": {"min": -1.0, "max": 1.0}}, "kl.coef=-1.0"),
    ],
)
@pytest.mark.parametrize("way", [["--local", "--trials=2"], []], ids=["local", "on line"])
def test_a_setting_that_no_run_has_is_refused_before_the_first_trial(
    parameters, message, way, here, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    file = here / "s.yaml"
    command = ["accelerate", "launch", "launch/ppo.py", "${args_json_file}"]
    content = GOOD | {"method": "random", "command": command, "parameters": parameters}
    file.write_text(yaml.safe_dump(content))
    assert cli.main(["sweep", str(file), *way]) == 2
    assert message in capsys.readouterr().err and not Path("runs/sweeps/s").exists()


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (["accelerate", "launch", "launch/dpg.py", "--a=1"], "dpg"),
        (["/usr/bin/env", "python", "-m", "rlalign", "reinforce", "--a=1"], "reinforce"),
        (["accelerate", "launch", "-m", "rlalign.ppo", "--a=1"], "ppo"),
        (["python", "launch/grpo.py", "--a=1"], "grpo"),
        (["python", "elsewhere/launch/ppo.py", "--a=1"], None),
        (["python", "train.py", "--a=1"], None),
        (["rlalign", "doctor", "--a=1"], None),
    ],
)
def test_our_own_runs_are_known_by_their_command(words, method, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert our_run(words) == (None if method is None else (method, ["--a=1"]))
