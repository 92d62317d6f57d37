"""The README's own reward, configuration and call from Python, as a reader would try them."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
from pages import README, block_named, blocks, typed, write_files

import rewards
import rlalign
from rlalign import cli
from rlalign.algorithms.ppo import PPORun, optimum_warnings
from rlalign.config import from_mapping, load_config


def python_blocks():
    return [block.text for block in blocks(README, "python")]


@pytest.fixture
def readers_folder(tmp_path, monkeypatch):
    """The files that the README has its reader write, beside the checkout's experiments."""
    write_files(tmp_path, README)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readers_rewards_keep_the_contract(readers_folder):
    rewards.load_file("my_rewards.py")
    kinds = re.findall(r'@reward\("([\w.]+)"', block_named("my_rewards.py"))
    assert kinds == ["my.questions", "my.starts_like"]
    for kind in kinds:
        rewards.conformance.check(kind)


def test_the_one_line_conformance_test_passes(readers_folder, capsys):
    assert "rlalign rewards test my_rewards.py" in typed(README)
    assert cli.main(["rewards", "test", "my_rewards.py"]) == 0
    assert "rewards: 2, checks: 22, failed: 0" in capsys.readouterr().out


def test_the_readers_reward_on_a_column_is_probed_as_the_readme_says(readers_folder, capsys):
    columns = re.search(r"`--columns '([^']+)'` gives `probe`", README.read_text("utf-8"))[1]
    (readers_folder / "column.yaml").write_text(
        "reward_files: [my_rewards.py]\nrewards: {starts: {kind: my.starts_like}}\n"
    )
    argv = ["rewards", "probe", "--config=column.yaml", "--columns", columns, "Once.", "Twice."]
    assert cli.main(argv) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    value = {row[1]: row[3] for row in rows if len(row) > 3}
    assert (value["Once."], value["Twice."]) == ("1.000", "0.000")


def test_the_readers_configuration_loads_and_says_what_it_shows(readers_folder):
    config = load_config(PPORun, ["--config", "my_run.yaml"])
    assert config.rewards["asks"]["most"] == 2 and config.rewards["rain"]["weight"] == 0
    assert config.run.name == "questions" and optimum_warnings(config) == []


def test_the_readers_configuration_is_probed(readers_folder, capsys):
    lines = [line for line in typed(README) if line.startswith("rlalign rewards probe")]
    line = next(line for line in lines if "Who?" in line)
    assert cli.main(shlex.split(line)[1:]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    score = {
        row[1]: row[-2] for row in rows if len(row) > 2 and row[1] in ("Where", "Here.", "Who?")
    }
    assert score == {"Where": "1.000", "Here.": "0.000", "Who?": "2.000"}


def test_a_misspelt_setting_of_the_readers_reward_is_refused_by_name(readers_folder, capsys):
    assert cli.main(["config", "--config", "my_run.yaml", "--rewards.asks.mots=3"]) == 2
    assert "rewards.asks.mots" in capsys.readouterr().err


def test_the_snippet_that_loads_an_adapter_samples_as_in_training():
    source = next(block for block in python_blocks() if "AutoPeftModel" in block)
    assert "model.generation_config = GenerationConfig.from_pretrained(folder)\n" in source


def test_the_python_example_calls_train_as_it_is(monkeypatch, capsys):
    source = next(block for block in python_blocks() if "result = train(" in block)
    calls = []

    class Stub:
        folder, after = Path("runs/x"), type("After", (), {"stats": {"eval/score": 1.0}})

    def stand_in(*args, **kwargs):
        bound = inspect.signature(train).bind(*args, **kwargs)
        given = bound.arguments
        calls.append(given["rewards"][0](["Where?", "Here."]))
        from_mapping(PPORun, given["config"], given["overrides"], rewards_given=True)
        return Stub

    train = rlalign.train
    monkeypatch.setattr("rlalign.api.train", stand_in)
    exec(compile(source, "README", "exec"), {})
    assert calls == [[1.0, 0.0]] and "runs/x 1.0" in capsys.readouterr().out
