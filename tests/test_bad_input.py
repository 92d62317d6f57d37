"""Bad input ends within seconds, before training, in one line that says what to do."""

import json
import shutil

import bad_inputs
import pytest
from transformers.utils import logging as transformers_logging

from rewards import registry
from rlalign import cli, run_method

_, FILES, SECTIONS = bad_inputs.load()
CASES = [case for cases in SECTIONS.values() for case in cases]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a configuration, prompts, and a run named `done` with a checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(patch, ["ppo", "--config=run.yaml", "--run.name=done"]) == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A copy of it that a test may spoil, with the registry as it was."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setattr(registry, "_files", dict(registry._files))
    return tmp_path


def run(patch, arguments):
    """`rlalign ...` in this process, which keeps its own log levels and signals."""
    patch.setattr(run_method, "quiet_libraries", transformers_logging.disable_progress_bar)
    patch.setattr(run_method, "die_with_launcher", lambda: None)
    return cli.main(arguments)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case.given)[:50] or "file")
def test_bad_input_ends_with_its_line_and_code(folder, monkeypatch, capsys, case):
    case.prepare(folder)
    before = {path.name for path in (folder / "runs").iterdir()}
    capsys.readouterr()
    code = run(monkeypatch, case.arguments)
    lines = [line.removeprefix("rlalign: ") for line in capsys.readouterr().err.splitlines()]
    said = [line for line in lines if not line.startswith("warning: ")]
    expected = case.message.replace("DIRECTORY", str(folder)).splitlines()
    assert (code, said) == (case.code, expected)
    assert {path.name for path in (folder / "runs").iterdir()} == before


def test_the_page_shows_the_cases_of_the_tests():
    assert len(CASES) >= 120
    page = bad_inputs.SOURCE.parent.parent / "docs" / "bad-input.md"
    assert page.read_text(encoding="utf-8") == bad_inputs.page(), (
        "run: python tests/bad_inputs.py > docs/bad-input.md"
    )


def test_no_two_cases_are_the_same():
    said = [json.dumps([case.given, case.command, case.files, case.damage]) for case in CASES]
    assert len(set(said)) == len(said)
