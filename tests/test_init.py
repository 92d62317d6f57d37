"""`rlalign init`: a folder in which everything works, from the reward's test to the export."""

import os
import re
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from rlalign.algorithms.ppo import optimum_warnings
from rlalign.cli import main
from rlalign.config import load_config
from rlalign.methods import METHODS
from rlalign.project.making import NEXT, TEMPLATES
from rlalign.sweeps.command import _check_program
from rlalign.sweeps.file import command_line, read_sweep
from rlalign.sweeps.settings_check import check_settings


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my-project"]) == 0
    monkeypatch.chdir(tmp_path / "my-project")
    return tmp_path / "my-project"


def commands(readme: Path) -> list[str]:
    """Every command line that a README shows in a block."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", readme.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def run(line: str, *more: str) -> int:
    program, *arguments = shlex.split(line)
    assert program == "rlalign"
    return main([*arguments, *more])


def made_small(project: Path) -> None:
    """The project's own configuration with the tiny model and one short iteration."""
    config = yaml.safe_load((project / "config.yaml").read_text())
    config["model"] = {"name": "glass-tiny", "lora": {"r": 4}, "dtype": "float32"}
    config["sampling"]["max_new_tokens"] = 6
    config["train"] = {"iterations": 1, "samples": 8, "threads": 1}
    config["eval"] = {"every": 0, "target_samples": 8, "samples_per_prompt": 4}
    (project / "config.yaml").write_text(yaml.safe_dump(config))


def test_every_command_of_its_readme_works_from_there(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_small(project)
    lines = [line for line in commands(project / "README.md") if "--local" not in line]
    assert len(lines) == 8 and set(NEXT[:-1]) <= set(lines)
    for line in lines:
        more = ["--no-probe"] if " doctor " in line else []
        assert run(line, *more) == 0, line
    told = capsys.readouterr().out
    assert "my.colours  causal       pass" in told and "failed: 0" in told
    assert told.count("reference 3 of 3") == 1
    AutoModelForCausalLM.from_pretrained(project / "my-model")


def test_its_configuration_loads_and_aims_at_a_target(project: Path) -> None:
    config = load_config(METHODS["ppo"].run_model, ["--config", "config.yaml"])
    assert optimum_warnings(config) == [] and config.rewards["colours"]["most"] == 2


def test_its_own_test_passes_under_pytest_and_ruff(project: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for command in (
        ["pytest", "-q", "-p", "no:cacheprovider"],
        ["ruff", "check", "--isolated", "--line-length=100", "--select=E,F,I,UP,B", "."],
        ["ruff", "format", "--isolated", "--line-length=100", "--check", "."],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
        assert "pytest" not in command or "4 passed" in done.stdout


def test_its_sweep_starts_runs_of_its_configuration(project: Path) -> None:
    sweep = read_sweep(Path("sweep.yaml"))
    assert sweep.grid_size == 4
    _check_program(sweep.program, sweep.command)
    check_settings(sweep)
    line = command_line(sweep, sweep.grid_point(3), Path("unused.json"))
    at = line.index("--config")
    assert line[:at] == ["accelerate", "launch", "-m", "rlalign.ppo"]
    config = load_config(METHODS["ppo"].run_model, line[at:])
    assert config.kl.coef == 0.2 and config.model_dump()["ppo"]["lr"] == 6.5e-4


def test_what_it_tells_to_type_first_is_quoted_and_hostile_names_are_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a b; $(touch x) <b>"
    assert main(["init", name]) == 0
    assert f"  cd {shlex.quote(name)}\n" in capsys.readouterr().out
    title = (tmp_path / name / "README.md").read_text().splitlines()[0]
    assert title == r"# a b; \$\(touch x\) &lt;b\>"
    assert {file.name for file in (tmp_path / name).iterdir()} == set(TEMPLATES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is empty"),
        ("mine", "holds files already"),
        ("mine/config.yaml", "is a file"),
        ("mine/config.yaml/below", "which is a file"),
        ("a\x1b[31m", "a character that cannot be shown"),
        ("\ud83d", "a character that cannot be shown"),
        ("x" * 256, "File name too long"),
        ("~nobody-of-that-name/x", "no name for a folder"),
        ("--help-me", "No such option"),
    ],
)
def test_odd_names_are_refused_and_nothing_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.yaml").write_text("mine")
    assert main(["init", name]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "config.yaml"]
    assert (tmp_path / "mine/config.yaml").read_text() == "mine"


def test_an_empty_folder_is_filled_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    assert main(["init", "."]) == 0
    assert tmp_path.stat().st_ino == before and "cd " not in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text().startswith(f"# {tmp_path.name[:4]}")
    assert {file.name for file in tmp_path.iterdir()} == set(TEMPLATES)


def test_a_folder_that_fails_half_way_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlalign.new_folder.fsync", full)
    assert main(["init", "mine"]) == 4
    assert "mine could not be written: No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_template_is_written_and_none_is_left_over() -> None:
    there = {file.name for file in (files("rlalign.project") / "template").iterdir()}
    assert there - {"__pycache__"} == set(TEMPLATES.values())
