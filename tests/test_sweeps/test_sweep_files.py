from pathlib import Path

import pytest
import yaml
from small_run import SmallRun
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from rlalign.config import from_mapping, load_config

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"
FORMS = ["args", "args_no_equals", "args_no_boolean_flags", "args_no_hyphens", "args_json"]

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


@pytest.mark.parametrize("form", FORMS)
def test_what_an_agent_sends_loads_to_the_same_values(form):
    sent = {name: {"value": value} for name, value in VALUES.items()}
    argv = create_sweep_command_args({"args": sent})[form]
    loaded = load_config(SmallRun, argv, QUICKSTART)
    assert loaded == from_mapping(SmallRun, QUICKSTART, VALUES)
    assert loaded.run.name == "2024" and loaded.model.name == VALUES["model.name"]
    assert loaded.sampling.stop == VALUES["sampling.stop"] and loaded.kl.target is None
    assert loaded.prompts.chat and not loaded.score.normalize and loaded.kl.horizon == 500
    assert loaded.rewards["light"]["words"] == VALUES["rewards.light.words"]
    assert "ending" not in loaded.rewards


def test_the_sweep_file_is_one_that_an_agent_runs_as_it_is():
    sweep = yaml.safe_load((ROOT / "experiments" / "sweeps" / "kl.yaml").read_text())
    assert sweep["method"] == "grid" and sweep["metric"]["goal"] in ("maximize", "minimize")
    first = {name: {"value": spec["values"][0]} for name, spec in sweep["parameters"].items()}
    filled = create_sweep_command_args({"args": first})
    command = [
        item
        for part in create_sweep_command(sweep["command"])
        for item in (filled[part[2:-1]] if part.startswith("${") else [part])
    ]
    assert command[:3] == ["accelerate", "launch", sweep["program"]]
    config = load_config(SmallRun, command[3:], QUICKSTART)
    assert config.kl.coef == first["kl.coef"]["value"]
    assert config.ppo.lr == first["ppo.lr"]["value"]


def test_the_sweep_file_states_numbers_that_wandb_reads_as_numbers():
    sweep = yaml.safe_load((ROOT / "experiments" / "sweeps" / "kl.yaml").read_text())
    for name, spec in sweep["parameters"].items():
        assert set(spec) == {"values"}, name
        assert all(type(value) is float for value in spec["values"]), name
        load_config(SmallRun, [f"--{name}={value}" for value in spec["values"]], QUICKSTART)
