"""What TAB answers: through typer's protocol of each shell, and in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rewards import registry
from rewards.entries import options_json_schema
from rlalign import completion
from rlalign.cli import main
from rlalign.settings.method_sections import AnyRun
from rlalign.settings.schema import settings

ROOT = Path(__file__).parent.parent
MINE = (
    "from rewards import reward\n\n\n"
    '@reward("my.own", bounds=(0, 1))\n'
    "def own(completions: list[str], *, most: int = 1) -> list[float]:\n"
    "    return [0.0 for _ in completions]\n\n\n"
    'open("it-was-run", "w")\n'
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Runs, a reward file and a configuration, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/one", "runs/other", "elsewhere/three", "runs/no-run"):
        Path(name).mkdir(parents=True)
        if name != "runs/no-run":
            Path(name, "run.json").write_text("{}")
    Path("mine.py").write_text(MINE)
    Path("a.yaml").write_text(
        "reward_files: [mine.py]\nrewards: {own: {kind: my.own}, sky: {kind: topic.similarity}}\n"
    )
    return tmp_path


@pytest.fixture
def bash(monkeypatch, capsys):
    """What bash is answered for words, the last one the one to complete."""

    def ask(*words):
        monkeypatch.setenv("COMP_WORDS", "\n".join(["rlalign", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        monkeypatch.setenv("_RLALIGN_COMPLETE", "complete_bash")
        with pytest.raises(SystemExit):
            main([])
        return capsys.readouterr().out.split()

    return ask


def test_commands_and_their_own_options_are_completed(bash):
    assert {"ppo", "eval", "doctor", "rewards"} <= set(bash(""))
    assert bash("rewards", "pro") == ["probe"]
    assert bash("doctor", "--no-p") == ["--no-probe"]


def test_settings_are_completed_wherever_they_can_be_typed(bash):
    assert bash("ppo", "--kl.co") == ["--kl.coef"]
    assert bash("config", "--kl.coef", "0.2", "--ppo.gae") == ["--ppo.gae_lambda"]
    assert bash("doctor", "--conf") == ["--config"]
    assert bash("config", "--explain", "kl.co") == ["kl.coef"]
    known = {f"--{setting.path}" for setting in settings(AnyRun.model_json_schema())}
    assert known - {"--rewards"} <= set(bash("config", "--"))


def test_a_method_is_offered_its_own_settings_and_no_others(bash):
    sections = {"ppo": "ppo", "dpg": "dpg", "reinforce": "reinforce", "grpo": "ppo", "rloo": "ppo"}
    for command, own in sections.items():
        offered = {word.partition(".")[0] for word in bash(command, "--")}
        assert offered & {"--ppo", "--dpg", "--reinforce"} == {f"--{own}"}, command
        assert {"--kl", "--train", "--trl"} <= offered


def test_values_are_completed_where_they_are_words(bash):
    assert bash("ppo", "--kl.estimator", "") == ["k1", "k2", "k3"]
    assert bash("ppo", "--kl.estimator", "=", "k2") == ["k2"]  # as bash takes it apart
    assert bash("ppo", "--prompts.chat", "=") == ["true", "false"]
    assert bash("ppo", "--model.dtype", "b") == ["bfloat16"]
    assert bash("ppo", "--kl.coef", "") == []  # a number; the shell names files
    assert bash("ppo", "--config", "") == []


def test_rewards_are_those_of_the_configuration_and_no_file_is_run(place, bash):
    line = ["ppo", "--config", "a.yaml"]
    assert set(bash(*line, "--rewards.")) >= {"--rewards.own.weight", "--rewards.sky.topic"}
    assert bash(*line, "--rewards.own.mo") == ["--rewards.own.moment", "--rewards.own.most"]
    assert bash(*line, "--rewards.own.kind", "=", "my.") == ["my.own"]
    assert bash("rewards", "show", "--reward_files", "mine.py", "my.") == ["my.own"]
    assert bash("config", "--config=a.yaml", "--explain", "rewards.o") == ["rewards.own"]
    assert not Path("it-was-run").exists()
    Path("a.yaml").write_text("rewards: [")
    assert bash(*line, "--rewards.") == []


def test_kinds_and_parameters_are_those_of_the_registry(monkeypatch):
    ours = [k for k in registry.kinds() if registry.get(k).target.__module__[:8] == "rewards."]
    assert completion.kinds() == sorted(ours) and len(ours) > 20
    for kind in completion.kinds():
        if kind not in completion.COMBINED:
            wanted = registry.get(kind).signature.annotations
            assert set(completion.parameters(kind)) == set(wanted), kind
    assert set(completion.OPTIONS) == {"kind", *options_json_schema()["properties"]}


def test_runs_are_completed_by_their_folders(place, bash):
    assert bash("eval", "") == ["runs/one", "runs/other"]
    assert bash("eval", "runs/ot") == ["runs/other"]
    assert bash("compare", "runs/one", "elsewhere/") == ["elsewhere/three"]
    assert bash("eval", "nowhere/") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_get_the_whole_word(shell, monkeypatch, capsys):
    monkeypatch.setenv("_RLALIGN_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "rlalign ppo --kl.estimator=k")
    with pytest.raises(SystemExit):
        main([])
    out = capsys.readouterr().out
    assert all(f"--kl.estimator=k{number}" in out for number in (1, 2, 3))


def test_a_meaning_cannot_break_zshs_script():
    assert completion.harmless('cap on each token\'s weight (x): "y"') == "cap on each token"


TIMED = """
import os, sys
os.environ |= {"COMP_WORDS": "rlalign\\nppo\\n--", "COMP_CWORD": "2"}
os.environ["_RLALIGN_COMPLETE"] = "complete_bash"
from rlalign.cli import main
try:
    main([])
except SystemExit:
    pass
heavy = [m for m in ("torch", "transformers", "rewards", "numpy", "wandb") if m in sys.modules]
print(heavy, sum(os.times()[:2]))
"""


def test_a_tab_is_quick_and_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", TIMED], cwd=ROOT, capture_output=True, text=True)
    heavy, _, seconds = done.stdout.splitlines()[-1].rpartition(" ")
    assert heavy == "[]" and float(seconds) < 1.0  # 0.35 of processor time where it was written


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_real_bash_completes_after_the_installation(tmp_path):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/rlalign"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m rlalign "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"

    def run(script):
        command = ["bash", "-c", script]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)

    installed = run("rlalign --install-completion bash")
    assert "bash completion installed" in installed.stdout, installed.stderr
    assert "rlalign.sh" in (tmp_path / ".bashrc").read_text()
    asked = run(
        "source ~/.bashrc; COMP_WORDS=(rlalign ppo --kl.estimator = k); COMP_CWORD=4; "
        'complete -p rlalign; _rlalign_completion rlalign; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    registered, *answers = asked.stdout.splitlines()
    assert registered == "complete -o default -F _rlalign_completion rlalign"
    assert answers == ["k1", "k2", "k3"], asked.stderr


def test_the_script_can_be_printed_too():
    command = [sys.executable, "-m", "rlalign", "--show-completion", "fish"]
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout.startswith("complete --command rlalign"), done.stderr
