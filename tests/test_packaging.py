"""The wheel, the pins and the Makefile's stamps; nothing here needs a network."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD_FILES = ["pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel that was built from a copy, so the checkout stays as it is."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("rlalign", "rewards", "experiments", "tests", "launch"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in BUILD_FILES:
        shutil.copy(ROOT / file, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("rlalign-*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_the_wheel_holds_both_packages_whole(wheel: list[str]) -> None:
    for package in ("rlalign", "rewards"):
        wanted = {
            str(file.relative_to(ROOT))
            for file in (ROOT / package).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert wanted <= set(wheel)
    assert {"rlalign/py.typed", "rewards/py.typed"} <= set(wheel)


def test_the_wheel_holds_the_quickstart_and_the_licence(wheel: list[str]) -> None:
    assert "rlalign/quickstart/quickstart.yaml" in wheel
    assert "rlalign/quickstart/openings.jsonl" in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_the_wheel_brings_no_other_top_level(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rlalign", "rewards"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in extras for name in extra)]
    names = {re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-") for line in wanted}
    assert names - set(pins()) == set()
    assert pins()["torch"] == "2.13.0"  # a local suffix would refuse every other build


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A clone's build files, and a Python whose virtual environments have a pip that fails."""
    for file in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)
    python = tmp_path / "python-with-broken-pip"
    python.write_text(
        "#!/bin/sh\n"
        '[ "$1 $2" = "-m venv" ] || exit 0\n'
        'mkdir -p "$3/bin" && printf "#!/bin/sh\\nexit 1\\n" > "$3/bin/python"\n'
        'chmod +x "$3/bin/python"\n'
    )
    python.chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, env=environment
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("target", ["env", "env-test"])
def test_a_failed_installation_leaves_no_stamp(bare: Path, target: str) -> None:
    done = make(bare, "PYTHON=./python-with-broken-pip", target)
    assert done.returncode != 0
    assert {file.name for file in (bare / ".venv").iterdir()} == {"bin", ".created"}


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_an_old_python_is_refused_with_the_fix(bare: Path) -> None:
    python = bare / "old-python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "sys.version_info = (3, 9)\n"
        "exec(sys.argv[2])\n"
    )  # fmt: skip
    python.chmod(0o755)
    done = make(bare, "PYTHON=./old-python", "env")
    assert done.returncode != 0
    assert "Python 3.9; rlalign needs 3.11 or newer: make PYTHON=python3.11" in done.stderr
    assert not (bare / ".venv").exists()
