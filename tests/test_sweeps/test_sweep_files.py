"""The sweep files of experiments/sweeps, and what an agent sends, under the real parsers."""

import json
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from rlalign.algorithms.ppo import PPORun
from rlalign.config import from_mapping, load_config
from rlalign.sweeps.file import FORMS, command_line, read_sweep
from rlalign.sweeps.parameters import Choice, Range

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"
FILES = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))

VALUES = {
    "kl.coef": 0.05,
    "ppo.lr": 1e-05,
    "ppo.epochs": 3,
    "kl.target": None,
    "prompts.chat": True,
    "score.normalize": False,
    "run.name": "2024",
    "prompts.column": "True",
    "model.name": 'my org/it\'s a "model"',
    "sampling.stop": ["it's", 'say "no"', "a, b", "1", "\n"],
    "optim.betas": [0.9, 0.99],
    "rewards.space.weight": 2,
    "rewards.light.words": ["don't", "no", "yes", "Sun"],
    "rewards.ending": None,
    "rewards.length.max": 20,
    "kl": {"horizon": 500},
}


def arguments(form: str, values: dict, folder: Path) -> list[str]:
    """What wandb's own builder makes of the values; a file where the agent writes one."""
    made = create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    if form != "args_json_file":
        return made[form]
    file = folder / "config-r1.json"
    file.write_text(made["args_json"][0])
    return [str(file)]


@pytest.mark.parametrize("form", FORMS)
def test_what_an_agent_sends_loads_to_the_same_values(form, tmp_path):
    loaded = load_config(PPORun, arguments(form, VALUES, tmp_path), QUICKSTART)
    assert loaded == from_mapping(PPORun, QUICKSTART, VALUES)
    assert loaded.run.name == "2024" and loaded.model.name == VALUES["model.name"]
    assert loaded.sampling.stop == VALUES["sampling.stop"] and loaded.kl.target is None
    assert loaded.prompts.chat and not loaded.score.normalize and loaded.kl.horizon == 500
    assert loaded.rewards["light"]["words"] == VALUES["rewards.light.words"]
    assert "ending" not in loaded.rewards


def first(parameter: object) -> object:
    if isinstance(parameter, Choice):
        return parameter.values[0]
    assert isinstance(parameter, Range)
    return parameter.low


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_starts_the_launcher_with_settings_that_it_has(path, monkeypatch):
    """The whole way: file, command, `accelerate launch`, parser."""
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(path)
    values = {name: first(each) for name, each in sweep.parameters.items()}
    words = command_line(sweep, values, Path("unused.json"))
    start = words.index("accelerate")
    assert words[start : start + 3] == ["accelerate", "launch", "launch/ppo.py"]
    assert set(words[:start]) <= {"/usr/bin/env"} and Path(sweep.program).is_file()
    loaded = load_config(PPORun, words[start + 3 :], QUICKSTART)
    assert loaded == from_mapping(PPORun, QUICKSTART, values)
    assert loaded != from_mapping(PPORun, QUICKSTART, {})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_wandb_reads_a_file_as_we_do(path):
    """Plain YAML 1.1 takes 1e-4 for text, and so would W&B."""
    content = yaml.safe_load(path.read_text())
    defined = json.loads(read_sweep(path).definition)
    assert {key: content[key] for key in defined} == defined
    for name, spec in content["parameters"].items():
        numbers = [
            *spec.get("values", []),
            *(spec[k] for k in ("value", "min", "max") if k in spec),
        ]
        assert all(type(number) in (int, float) for number in numbers), name


def test_the_files_show_every_method_and_early_termination():
    sweeps = [read_sweep(path) for path in FILES]
    assert {sweep.method for sweep in sweeps} == {"grid", "random", "bayes"}
    assert sum(sweep.early is not None for sweep in sweeps) == 2
    forms = {word for sweep in sweeps for word in sweep.command if word.startswith("${args")}
    assert len(forms) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "not a JSON mapping (it is a list)"),
        ("{", "not a JSON mapping"),
        (None, "it cannot be read: No such file or directory"),
    ],
)
def test_a_file_of_arguments_that_is_none_is_named(text, message, tmp_path):
    file = tmp_path / "a.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match="unexpected argument") as refused:
        load_config(PPORun, [str(file)], QUICKSTART)
    assert message in str(refused.value)
