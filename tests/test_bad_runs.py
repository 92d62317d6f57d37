"""Faults that show only in a run, or before it in its launcher; bad_inputs.yaml has the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import bad_inputs
import pytest

from rewards import registry
from rlalign import ppo, run_method

ROOT = Path(__file__).parent.parent
# A text of the probe it likes; of the run's own it does not.
LATE = """from rewards import reward


@reward("my.late")
def late(completions: list[str], id: list[int]) -> list[float]:
    return [float("nan") if sum(id) > 0 else 1.0 for _ in completions]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of docs/bad-input.md, without a finished run."""
    for name, content in bad_inputs.load()[1].items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_how_a_run_failed_is_in_its_run_json(folder, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setattr(registry, "_files", dict(registry._files))
    monkeypatch.setattr(run_method, "quiet_libraries", lambda: None)
    monkeypatch.setattr(run_method, "die_with_launcher", lambda: None)
    (folder / "late.py").write_text(LATE, encoding="utf-8")
    arguments = ["--config=run.yaml", "--reward_files=late.py", "--rewards.late.kind=my.late"]
    assert ppo.main([*arguments, "--run.name=late", "--prompts.eval_fraction=0"]) == 5
    last = capsys.readouterr().err.splitlines()[-1]
    said = json.loads((folder / "runs/late/run.json").read_text(encoding="utf-8"))
    assert (said["status"], said["exit_code"]) == ("failed", 5)
    assert last == f"rlalign: {said['message']}" and "returned nan for sample" in last


def test_a_launcher_that_starts_fewer_processes_than_asked_is_refused(folder):
    accelerate = Path(sys.executable).parent / "accelerate"
    asked = ["launch", "--quiet", "--cpu", "--num_processes", "2", str(ROOT / "launch/ppo.py")]
    environment = {k: v for k, v in os.environ.items() if k not in ("MASTER_PORT", "WORLD_SIZE")}
    done = subprocess.run(
        [str(accelerate), *asked, "--config=run.yaml"], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if line.startswith("rlalign: ")]
    assert done.returncode != 0 and ours == [
        "rlalign: the launcher was asked for several processes (it set MASTER_PORT) and started 1; "
        "use --config_file launch/accelerate/cpu2.yaml (accelerate's --cpu starts one only)"
    ]
