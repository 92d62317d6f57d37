"""A second package that adds rewards through its entry points: built, installed, used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rewards

PLUGIN = Path(__file__).parents[1] / "example_plugin"
CHECKOUT = Path(rewards.__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two packages: the example, and a copy that defines two kinds once more."""
    sources, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    for name in ("example", "second"):
        folder = sources / name
        shutil.copytree(PLUGIN, folder, ignore=shutil.ignore_patterns("__pycache__"))
        if name == "second":
            project = folder / "pyproject.toml"
            code = (folder / "example_rewards.py").read_text(encoding="utf-8")
            (folder / "example_rewards.py").unlink()
            (folder / "second_rewards.py").write_text(
                code.replace("example.exclaims", "second.fine")
                + '\n\n@reward("example.exclaims")\ndef twice(completions: list[str]): ...\n',
                encoding="utf-8",
            )
            text = project.read_text(encoding="utf-8").replace("example", "second")
            project.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    done = subprocess.run(
        [*command, *(str(sources / name) for name in ("example", "second"))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return target


def rlalign(target: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{target}{os.pathsep}{CHECKOUT}"}
    command = [sys.executable, "-m", "rlalign", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)


def test_an_installed_packages_reward_is_named_like_a_built_in_one(installed, tmp_path):
    (tmp_path / "a.yaml").write_text("rewards: {loud: {kind: example.exclaims, most: 2}}\n")
    done = rlalign(installed, "rewards", "probe", "--config=a.yaml", "No! Yes.", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "│ No! Yes. │ 0.500 │ 0.500 │" in done.stdout
    assert '[2:3] +0.500 "!"' in done.stdout


def test_an_installed_packages_reward_keeps_the_contract(installed, tmp_path):
    code = (
        "from rewards import conformance, describe, registry;"
        "conformance.check('example.exclaims'); print(describe('example.exclaims').source);"
        "print(registry.plugins()['example-rewards'])"
    )
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{CHECKOUT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    source = f"{installed / 'example_rewards.py'}:6"
    assert done.stdout.split() == [source, "0.1.0"], done.stderr


def test_two_packages_with_one_kind_are_both_named_and_one_is_left_out(installed, tmp_path):
    done = rlalign(installed, "rewards", "list", cwd=tmp_path)
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert "example.exclaims" in listed
    warning = next(line for line in done.stderr.splitlines() if "left out" in line)
    assert f"{installed / 'example_rewards.py'}:6" in warning
    assert f"{installed / 'second_rewards.py'}:" in warning
    # Which is met first is the file system's choice.
    assert ("second.fine" in listed) == ("of the package example-rewards was left out" in warning)
    assert ("second.fine" in listed) != ("of the package second-rewards was left out" in warning)
