"""The workflows run what .ci/run runs, on the ends of what pyproject.toml says is supported."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NEEDS_MAKE = pytest.mark.skipif(shutil.which("make") is None, reason="no make")
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


class Loader(yaml.SafeLoader):
    """YAML in which `on` is a word, as GitHub reads it."""

    yaml_implicit_resolvers = {  # noqa: RUF012  replaces the base class's own
        first: [(tag, regexp) for tag, regexp in rules if tag != "tag:yaml.org,2002:bool"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read(file: Path) -> dict:
    return yaml.load(file.read_text("utf-8"), Loader)


def jobs():
    return [job for file in FILES for job in read(file)["jobs"].values()]


def trl() -> SpecifierSet:
    lines = map(Requirement, PROJECT["dependencies"])
    return next(line.specifier for line in lines if line.name == "trl")


def lowest_trl() -> Version:
    return next(Version(rule.version) for rule in trl() if rule.operator == ">=")


def pinned_trl() -> str:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return next(line.removeprefix("trl==") for line in lines if line.startswith("trl=="))


def test_there_are_workflows():
    assert [file.name for file in FILES] == ["ci.yml", "newest-trl.yml"]


@each_file
def test_a_workflow_runs_the_script_that_a_change_must_pass_and_may_only_read(file):
    workflow = read(file)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
        assert job["timeout-minutes"] == 60
        assert "permissions" not in job and "continue-on-error" not in str(job)


@each_file
def test_actions_are_githubs_own_and_held_to_a_major_version(file):
    used = re.findall(r"uses: (\S+)", file.read_text("utf-8"))
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used)


def test_python_is_what_is_asked_of_make():
    for job in jobs():
        setup = next(
            s for s in job["steps"] if s.get("uses", "").startswith("actions/setup-python")
        )
        assert job["env"]["PYTHON"] == f"python{setup['with']['python-version']}"
        assert setup["with"]["cache"] == "pip"
        for name in setup["with"]["cache-dependency-path"].split():
            assert (ROOT / name).is_file()


def test_the_matrix_is_the_ends_of_what_is_supported():
    matrix = read(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    rows = {(row["python"], row["trl"]) for row in matrix["include"]}
    pythons = [
        found[1] for name in PROJECT["classifiers"] if (found := re.search(r":: (3\.\d+)$", name))
    ]
    first, last = pythons[0], pythons[-1]
    assert PROJECT["requires-python"] == f">={first}"
    assert {row[0] for row in rows} == {first, last}
    newest = pinned_trl()
    assert {(first, newest), (last, newest)} <= rows
    (lowest,) = {row[1] for row in rows} - {newest}
    assert Version(lowest) == lowest_trl() and (first, lowest) in rows


def test_every_trl_that_a_workflow_names_is_in_range():
    named = {job["env"]["TRL"] for job in jobs()} - {"${{ matrix.trl }}"}
    assert named == {"1.*"} and trl().contains("1.999") and not trl().contains("2.0")
    assert trl().contains(pinned_trl()) and not trl().contains("1.15.0")


@NEEDS_MAKE
def test_make_installs_the_trl_that_is_asked_for_in_a_folder_of_its_own():
    def dry(*arguments):
        done = subprocess.run(
            ["make", "-n", "env-test", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    lines = dry("TRL=1.13.0")
    assert "python3 -m venv .venv-trl-1.13.0" in lines and "'trl==1.13.0'" in lines
    assert "-m venv here\n" in dry("TRL=1.*", "VENV=here", "PYTHON=python3")
    assert "trl==" not in dry("VENV=not-there")


@NEEDS_MAKE
def test_make_refuses_an_environment_of_another_python(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for place, version in (("there/bin/python", "3.11.2"), ("other", "3.13.0")):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\necho Python {version}\n")
        file.chmod(0o755)
    (tmp_path / "there/.created").touch()

    def make(*arguments):
        command = ["make", "VENV=there", "same-python", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    refused = make("PYTHON=./other")
    assert refused.returncode != 0
    assert "there is of Python 3.11.2, and PYTHON=./other is Python 3.13.0" in refused.stderr
    assert make("PYTHON=there/bin/python").returncode == 0
    assert make().returncode == 0
