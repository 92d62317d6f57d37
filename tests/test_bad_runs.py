"""Bad input to a run ends within seconds, before training, in one line that says what to do."""

# ruff: noqa: E501  a case a line

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from rewards import registry
from rlalign import ppo, run_method

ROOT = Path(__file__).parent.parent
CONFIG = """
model: {name: glass-tiny, dtype: float32}
prompts: {path: prompts.jsonl}
sampling: {max_new_tokens: 4}
rewards: {short: {kind: structure.word_count, min: 2, max: 4}}
train: {iterations: 1, samples: 8}
ppo: {minibatches: 2, epochs: 1}
eval: {every: 0}
trackers: []
"""
PROMPTS = [{"prompt": f"Alice saw {thing}", "id": i} for i, thing in enumerate(["a", "the", "her"])]
FIRST = (
    "' The ship left the harbour at dawn, and she watched it go.'"  # what rewards are probed with
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a configuration, prompts, and a run named `done` with a checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.yaml").write_text(CONFIG, encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in PROMPTS)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(patch, "--run.name=done") == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch):
    """A copy of it that a test may spoil, with the registry as it was."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setattr(registry, "_files", dict(registry._files))
    return tmp_path


def run(patch, *arguments):
    """`rlalign ppo` in this process, which keeps its own log levels and signals."""
    patch.setattr(run_method, "quiet_libraries", transformers_logging.disable_progress_bar)
    patch.setattr(run_method, "die_with_launcher", lambda: None)
    return ppo.main(["--config=run.yaml", *arguments])


def ends_with(folder, monkeypatch, capsys, arguments, code, line):
    """Whether the run ends with this code and this one line, and writes no new folder."""
    before = {path.name for path in (folder / "runs").iterdir()}
    capsys.readouterr()
    assert run(monkeypatch, *arguments) == code
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"rlalign: {line}"]
    assert {path.name for path in (folder / "runs").iterdir()} == before


# -- configuration --------------------------------------------------------------------------------

SETTINGS = [
    (["--rewards.short.kind=structure.word_cout"], "rewards.short.kind='structure.word_cout' is unknown; did you mean 'structure.word_count'?"),
    (["--rewards.shrot.weight=2"], "no reward named shrot; did you mean short?"),
    (["--rewards.short.moment=2"], "rewards.short.moment=2.0 is outside of the reward's range, 0 to 1, and so is no mean of it; wish for one inside"),
    (["--rewards.short.hard=true", "--rewards.short.scale=2"], "rewards.short.hard=true: a response holds it or not, so scale and clip mean nothing; remove them, or say by rewards.short.threshold from which value on it holds"),
    (["--ppo.epoch=3"], "ppo.epoch is unknown; did you mean ppo.epochs?"),
    (["--train.samples=many"], "train.samples='many' is not an integer of at least 1"),
    (["--ppo.lr=-1"], "ppo.lr=-1 is not a number above 0"),
    (["--run.name=../evil"], "run.name='../evil' is not text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    (["--train.samples=7"], "train.samples=7 does not split over 1 processes x 2 minibatches with 1 samples a prompt; nearest valid: 6 or 8"),
    (["--sampling.samples_per_prompt=3"], "train.samples=8 does not split over 1 processes x 2 minibatches with 3 samples a prompt; nearest valid: 6 or 12"),
    (["--run.resume=auto"], "run.resume='auto' needs run.name, to know which run to go on with"),
    (["--run.name=done"], "run.name='done': runs/done holds a run already; give --run.resume=auto to go on with it, or another --run.name"),
    (["--run.dir=prompts.jsonl"], "run.dir='prompts.jsonl' cannot be made: [Errno 17] File exists: 'prompts.jsonl'; name another"),
    (["--kl.estimator=k3"], "kl.estimator=k3 with kl.placement=reward: its gradient is that of KL(policy|ref) - KL(ref|policy); use k1"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "line"), SETTINGS, ids=lambda case: str(case)[:40])
def test_wrong_settings_are_refused(folder, monkeypatch, capsys, arguments, line):
    ends_with(folder, monkeypatch, capsys, arguments, 2, line)


# -- prompts --------------------------------------------------------------------------------------

FILES = [
    ("", "prompts.path=bad.jsonl holds no prompts; it needs at least one"),
    ('{"text": "a"}\n', "prompts.column=prompt is not in row 1 of prompts.path=bad.jsonl; its columns are: text"),
    ('{"prompt": "a"}\nhello\n', "prompts.path=bad.jsonl, line 2 is not JSON: Expecting value"),
    ('{"prompt": 3}\n', "the prompt in row 1 of prompts.path=bad.jsonl is neither text nor a list of messages: 3"),
    (json.dumps({"prompt": "word " * 200}), "row 1 of prompts.path=bad.jsonl has 203 tokens, more than the 124 that the model's context leaves beside sampling.max_new_tokens (or that prompts.max_length allows); shorten it or leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), FILES, ids=["empty", "column", "json", "type", "long"])
def test_wrong_prompt_files_are_refused(folder, monkeypatch, capsys, text, line):
    (folder / "bad.jsonl").write_text(text, encoding="utf-8")
    ends_with(folder, monkeypatch, capsys, ["--prompts.path=bad.jsonl"], 2, line)


PROMPT_SETTINGS = [
    (["--prompts.path=none.jsonl"], "prompts.path=none.jsonl: there is no such file"),
    (["--prompts.path=run.yaml"], "prompts.path=run.yaml: not a .jsonl or .parquet file"),
    (["--prompts.column=prmpt"], "prompts.column=prmpt is not in row 1 of prompts.path=prompts.jsonl; its columns are: id, prompt"),
    (["--prompts.eval_path=none.jsonl"], "prompts.eval_path=none.jsonl: there is no such file"),
    (["--prompts.chat"], "the prompt in row 1 of prompts.path=prompts.jsonl is a chat, but the model has no chat template"),
    (["--sampling.max_new_tokens=1000"], "sampling.max_new_tokens=1000 leaves no room for a prompt in the model's context of 128 tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "line"), PROMPT_SETTINGS, ids=lambda case: str(case)[:40])
def test_wrong_prompt_settings_are_refused(folder, monkeypatch, capsys, arguments, line):
    ends_with(folder, monkeypatch, capsys, arguments, 2, line)


# -- models ---------------------------------------------------------------------------------------

MODELS = [
    (["--model.name=./none"], "model.name=./none: there is no such directory"),
    (["--model.name=./bare"], "model.name=./bare: the directory has no weights (*.safetensors or *.bin); save the model with save_pretrained"),
    (["--model.quantization=4bit"], "model.quantization=4bit: quantised weights cannot learn; add model.lora"),
    (["--model.lora.r=2", "--model.lora.target_modules=nope"], "model.lora.target_modules=nope: Target modules nope not found in the base model. Please check the target modules and try again."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "line"), MODELS, ids=lambda case: str(case)[:40])
def test_wrong_models_are_refused(folder, monkeypatch, capsys, arguments, line):
    (folder / "bare").mkdir()
    (folder / "bare" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    ends_with(folder, monkeypatch, capsys, arguments, 2, line)


# -- rewards of the user's own --------------------------------------------------------------------

BODIES = [
    ("return [1.0] * (len(completions) + 1)", "returned 7 values for 6 samples"),
    ("return [float('nan') for _ in completions]", f"returned nan for sample 0: {FIRST}"),
    ("raise ValueError('boom')", f"raised ValueError: boom for sample 0: {FIRST}"),
    ("return 'x' * len(completions)", "returned str 'xxxxxx'; a reward returns a list with a number or None for each sample"),
    ("raise SystemExit(0)", f"raised SystemExit: 0 for sample 0: {FIRST}"),
    ("pass", "returned NoneType None; a reward returns a list with a number or None for each sample"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "what"), BODIES, ids=lambda case: case[:30])
def test_a_faulty_reward_is_found_before_training(folder, monkeypatch, capsys, body, what):
    write_reward(folder, "completions: list[str]", body)
    arguments = ["--reward_files=mine.py", "--rewards.mine.kind=my.reward"]
    line = f"reward 'mine' (my.reward, mine.py:4) {what}"
    ends_with(folder, monkeypatch, capsys, arguments, 5, line)


def test_a_column_that_the_data_lacks_is_named(folder, monkeypatch, capsys):
    write_reward(folder, "completions: list[str], answer: list[str]", "return [1.0] * len(answer)")
    arguments = ["--reward_files=mine.py", "--rewards.mine.kind=my.reward"]
    line = (
        "prompts.path=prompts.jsonl: reward 'mine' needs the column 'answer'; the data has: "
        "completion_ids, completions, id, prompts"
    )
    ends_with(folder, monkeypatch, capsys, arguments, 2, line)


REWARD_FILES = [
    (None, "no file 'mine.py' in {folder}"),
    ("def f(:\n", "reward file 'mine.py' is no valid Python: {folder}/mine.py:1: invalid syntax"),
    ("import notamodule\n", "reward file 'mine.py' failed at line 1: ModuleNotFoundError: No module named 'notamodule'"),
    ("x = 1\n", "reward file 'mine.py' defines no reward; put @reward(\"my.name\") above a function, or write one as for TRL, with `completions` and `**kwargs`"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "what"), REWARD_FILES, ids=["none", "syntax", "import", "empty"])
def test_faulty_reward_files_are_refused(folder, monkeypatch, capsys, text, what):
    if text is not None:
        (folder / "mine.py").write_text(text, encoding="utf-8")
    line = f"reward_files: {what.format(folder=folder)}"
    ends_with(folder, monkeypatch, capsys, ["--reward_files=mine.py"], 2, line)


def write_reward(folder, parameters, body):
    text = f"from rewards import reward\n\n\n@reward('my.reward')\ndef mine({parameters}) -> list[float]:\n    {body}\n"
    (folder / "mine.py").write_text(text, encoding="utf-8")


# -- checkpoints and processes --------------------------------------------------------------------


def test_a_damaged_checkpoint_is_refused_by_its_file(folder, monkeypatch, capsys):
    file = folder / "runs/done/checkpoints/step-000001/policy.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    arguments = ["--run.name=done", f"--run.resume={file.parent.relative_to(folder)}"]
    line = "runs/done/checkpoints/step-000001/policy.safetensors is not what was written: its sha256 differs"
    ends_with(folder, monkeypatch, capsys, arguments, 3, line)


def test_a_path_without_a_checkpoint_is_refused(folder, monkeypatch, capsys):
    line = "run.resume='runs/done': there is no checkpoint (no manifest.json in it); use never, auto, or a folder such as runs/NAME/checkpoints/step-000010"
    ends_with(folder, monkeypatch, capsys, ["--run.name=done", "--run.resume=runs/done"], 3, line)


def test_a_checkpoint_of_another_model_is_refused(folder, monkeypatch, capsys):
    arguments = ["--run.name=done", "--run.resume=auto", "--model.lora.r=2"]
    capsys.readouterr()
    assert run(monkeypatch, *arguments) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "rlalign: runs/done/checkpoints/step-000001 holds another model's parameters ("
    )
    assert line.endswith("; resume with the model.* settings that it was made with")


def test_how_a_run_failed_is_in_its_run_json(folder, monkeypatch, capsys):
    write_reward(
        folder,
        "completions: list[str]",
        "return [float('nan') if 'Alice' in p else 1.0 for p in prompts]",
    )
    text = (folder / "mine.py").read_text(encoding="utf-8")
    text = text.replace(
        "completions: list[str]", "completions: list[str], prompts: list[str], id: list[int]"
    )
    (folder / "mine.py").write_text(text.replace("'Alice' in p", "sum(id) > 0"), encoding="utf-8")
    arguments = ["--reward_files=mine.py", "--rewards.mine.kind=my.reward", "--run.name=late"]
    arguments.append("--prompts.eval_fraction=0")
    assert run(monkeypatch, *arguments) == 5
    last = capsys.readouterr().err.splitlines()[-1]
    said = json.loads((folder / "runs/late/run.json").read_text(encoding="utf-8"))
    assert (said["status"], said["exit_code"]) == ("failed", 5)
    assert last == f"rlalign: {said['message']}" and "returned nan for sample" in last


def test_a_launcher_that_starts_fewer_processes_than_asked_is_refused(folder):
    accelerate = Path(sys.executable).parent / "accelerate"
    command = [
        accelerate,
        "launch",
        "--quiet",
        "--cpu",
        "--num_processes",
        "2",
        ROOT / "launch/ppo.py",
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("MASTER_PORT", "WORLD_SIZE")}
    done = subprocess.run(
        [*map(str, command), "--config=run.yaml"], cwd=folder, env=environment, capture_output=True,
        text=True, timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if line.startswith("rlalign: ")]
    assert done.returncode != 0 and ours == [
        "rlalign: the launcher was asked for several processes (it set MASTER_PORT) and started 1; "
        "use --config_file launch/accelerate/cpu2.yaml (accelerate's --cpu starts one only)"
    ]
