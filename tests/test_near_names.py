# ruff: noqa: E501  a case a line
"""Wherever a name is typed, a misspelt one is answered with the nearest that is there."""

from pathlib import Path

import pytest

from rlalign import api
from rlalign.cli import main
from rlalign.config import ConfigError
from rlalign.nearby import file_hint, run_hint

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a run, a reward file, prompts and the experiments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "my_rewards.py").write_text("from rewards import reward\n")
    (tmp_path / "runs/quickstart/checkpoints/step-000010").mkdir(parents=True)
    (tmp_path / "runs/quickstart/run.json").write_text("{}")
    (tmp_path / "my-model").mkdir()
    return tmp_path


# fmt: off
LINES = [
    # commands and their options
    (["pppo"], "Did you mean 'ppo'?"),
    (["reward", "list"], "Did you mean 'rewards'?"),
    (["rewards", "lst"], "Did you mean 'list'?"),
    (["compare", "runs/quickstart", "--ot", "x"], "--out"),
    (["rewards", "probe", "--confg", "a", "x"], "--config"),
    (["ppo", "--confg", "a.yaml"], "did you mean --config FILE?"),
    (["doctor", "--no-prob"], "did you mean --no-probe?"),
    (["doctor", "--proceses=2"], "did you mean --processes?"),
    (["config", "--schma"], "did you mean --schema?"),
    (["config", "--explan", "kl.coef"], "did you mean --explain?"),
    (["eval", "runs/quickstart", "--trst"], "did you mean --trust?"),
    (["rewards", "train", "--data=x", "--out=y", "--method=tfdf"], "'tfidf'"),
    # settings and their values
    (["config", "--kl.cof=1"], "did you mean kl.coef?"),
    (["config", "--sampling.temp=1"], "did you mean sampling.temperature?"),
    (["config", "--explain", "kl.cof"], "did you mean kl.coef?"),
    (["config", "--rewards.spce.weight=1"], "did you mean space?"),
    (["config", "--rewards.a.kind=lexical.contain"], "did you mean 'lexical.contains'?"),
    (["config", "--trackers=[wandbb]"], "did you mean wandb?"),
    (["config", "--kl.estimator=k22"], "did you mean k2?"),
    (["grpo", "--trl.num_generation=3"], "did you mean trl.num_generations?"),
    # kinds of reward
    (["rewards", "show", "topic.similarty"], "did you mean 'topic.similarity'?"),
    (["rewards", "bench", "topic.similarty"], "did you mean 'topic.similarity'?"),
    # files
    (["config", "--config=experiments/quikstart.yaml"], "did you mean experiments/quickstart.yaml?"),
    (["config", "--config=exprimnts/quickstart.yaml"], "did you mean experiments/quickstart.yaml?"),
    (["config", "--config=quikstart.yaml"], "did you mean experiments/quickstart.yaml?"),
    (["config", "--config=runs/quikstart"], "did you mean runs/quickstart?"),
    (["config", "--diff", "experiments/quikstart.yaml", "x"], "did you mean experiments/quickstart.yaml?"),
    (["config", "--reward_files=my_reward.py"], "did you mean my_rewards.py?"),
    (["rewards", "test", "my_reward.py"], "did you mean my_rewards.py?"),
    (["rewards", "list", "--reward_files=my_reward.py"], "did you mean my_rewards.py?"),
    (["rewards", "probe", "--config=experiments/quikstart.yaml", "x"], "did you mean experiments/quickstart.yaml?"),
    (["rewards", "train", "--data=experiments/data/labeled.jsonl", "--label=style", "--out=y"], "did you mean experiments/data/labelled.jsonl?"),
    (["sweep", "experiments/sweeps/kll.yaml", "--local"], "did you mean experiments/sweeps/kl.yaml?"),
    (["doctor", "--no-probe", "--prompts.path=experiments/data/opening.jsonl"], "did you mean experiments/data/openings.jsonl?"),
    # models, runs, checkpoints
    (["doctor", "--no-probe", "--model.name=smolm2-135m"], "did you mean 'smollm2-135m'?"),
    (["doctor", "--no-probe", "--model.name=./my-modle"], "did you mean my-model?"),
    (["eval", "runs/quikstart"], "did you mean runs/quickstart?"),
    (["eval", "quikstart", "--out=x"], "did you mean runs/quickstart?"),
    (["report", "runs/quikstart"], "did you mean runs/quickstart?"),
    (["compare", "runs/quikstart"], "did you mean runs/quickstart?"),
]
# fmt: on


@pytest.mark.parametrize(("argv", "said"), LINES, ids=lambda value: " ".join(value)[:60])
def test_the_nearest_name_is_said(argv, said, capsys):
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert said in printed.err + printed.out


def test_a_checkpoint_to_go_on_from_is_named(capsys):
    Path("runs/quickstart/checkpoints/step-000010/manifest.json").write_text("{}")
    argv = ["doctor", "--no-probe", "--run.resume=runs/quikstart/checkpoints/step-000010"]
    assert main(argv) == 3
    meant = "did you mean runs/quickstart/checkpoints/step-000010?"
    assert meant in capsys.readouterr().err


def test_a_method_from_python_is_named():
    with pytest.raises(ConfigError, match=r"method='pppo' is unknown; did you mean 'ppo'\?"):
        api.resolve(None, None, {}, "pppo")


def test_nothing_near_is_left_unsaid(capsys):
    assert file_hint("quite/another/thing.yaml") == "" and run_hint("Qwen/Qwen3-0.6B") == ""
    assert file_hint("a\0b") == file_hint("x" * 5000) == ""
    assert main(["config", "--config=zzzz.yaml"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_a_model_of_the_hub_is_no_misspelt_run(place):
    (place / "org/model-small").mkdir(parents=True)  # a model, not a run
    assert run_hint("org/model-smaller") == ""
    (place / "org/model-small/run.json").write_text("{}")
    assert run_hint("org/model-smaller") == "; did you mean org/model-small?"
