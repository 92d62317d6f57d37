"""No file of a run, a checkpoint or a model runs code, whatever is put under its name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from canaries import CODE, READERS, Canary, read_by_all, repository

import rewards
from rewards import RewardConfigError, embedded
from rewards.trained import read_classifier
from rlalign.checkpoints.folder import CheckpointError, best, load_checkpoint, newest_sound
from rlalign.cli import main
from rlalign.config import ConfigError, read_file
from rlalign.files import MANIFEST, seal, sha256
from rlalign.runs import RunFolder

# What others write beside a model, and none of ours reads.
OTHERS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "optimizer.bin",
          "best.json.bin", "value_head.bin", "objective.pkl", "policy.pt")  # fmt: skip
PICKLES = ("pytorch_model.bin", "adapter_model.bin")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration and a run of it."""
    folder = tmp_path_factory.mktemp("untrusted")
    (folder / "prompts.jsonl").write_text('{"prompt": "Alice"}\n{"prompt": "The Queen"}\n')
    prompts = str(folder / "prompts.jsonl")
    settings: dict[str, Any] = {
        "model": {"name": "glass-tiny", "dtype": "float32"},
        "prompts": {"path": prompts, "eval_path": prompts},
        "sampling": {"max_new_tokens": 4},
        "rewards": {"the": {"kind": "lexical.contains", "words": ["the"]}},
        "train": {"iterations": 1, "samples": 8, "threads": 1},
        "ppo": {"minibatches": 2},
        "eval": {"every": 1, "samples": 8, "target_samples": 8, "samples_per_prompt": 4},
        "trackers": [],
        "run": {"dir": str(folder), "name": "run"},
    }
    (folder / "a.yaml").write_text(yaml.safe_dump(settings))
    assert main(["ppo", f"--config={folder / 'a.yaml'}"]) == 0
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def test_the_canary_sings_where_somebody_unpickles_it(tmp_path: Path, trace: Path) -> None:
    torch.save(Canary(trace), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert trace.exists()


def test_no_file_of_a_checkpoint_runs(run: Path, trace: Path) -> None:
    checkpoint = newest_sound(run / "checkpoints")
    assert checkpoint is not None
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    about = {key: manifest[key] for key in ("step", "tensors")}
    names = [path.name for path in checkpoint.iterdir()]
    assert {"policy.safetensors", "optimizer.safetensors", "state.json", MANIFEST} <= {*names}
    for name in names:
        kept = (checkpoint / name).read_bytes()
        torch.save(Canary(trace), checkpoint / name)
        if name != MANIFEST:
            seal(checkpoint, about)  # so that it is not the hash that saves us
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(checkpoint)
        assert not trace.exists(), name
        (checkpoint / name).write_bytes(kept)
        seal(checkpoint, about)
    load_checkpoint(checkpoint)


def test_no_file_that_describes_a_run_is_run(run: Path, trace: Path) -> None:
    for name in ("run.json", "config.yaml", "checkpoints/best.json"):
        assert (run / name).is_file()
        torch.save(Canary(trace), run / name)
    assert RunFolder(run).read_run_json() == {}
    assert best(run / "checkpoints") is None
    with pytest.raises(ConfigError):
        read_file(run / "config.yaml")
    assert not trace.exists()


def test_no_file_of_a_model_runs_whoever_opens_it(run: Path, trace: Path) -> None:
    model, tried = run / "model", set()
    for path in sorted(model.iterdir()):
        kept = path.read_bytes()
        torch.save(Canary(trace), path)
        for reader in read_by_all(model):
            assert not trace.exists(), f"{path.name}, opened as {reader}"
            tried.add(reader)
        path.write_bytes(kept)
    assert tried == READERS.keys()


@pytest.mark.parametrize("name", PICKLES)
def test_weights_in_a_pickle_run_nothing(
    run: Path, trace: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no safetensors file, transformers and peft fall back to these."""
    model = run / "model"
    (model / "model.safetensors").unlink()
    torch.save(Canary(trace), model / name)
    if name == "adapter_model.bin":
        about = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2,
                 "base_model_name_or_path": str(embedded.path("glass-tiny"))}  # fmt: skip
        (model / "adapter_config.json").write_text(json.dumps(about))
    for reader in read_by_all(model):
        assert not trace.exists(), reader
    assert main(["eval", str(run)]) == 3
    assert "which is not opened; save them as safetensors" in capsys.readouterr().err
    assert not trace.exists()


def test_no_file_of_a_classifier_runs(tmp_path: Path, trace: Path) -> None:
    examples = Path(rewards.__file__).parent / "example_classifiers"
    folder = Path(shutil.copytree(examples / "example-styles", tmp_path / "classifier"))
    about = json.loads((folder / "classifier.json").read_text())
    for path in sorted(folder.iterdir()):
        kept = path.read_bytes()
        torch.save(Canary(trace), path)
        if path.name in about["files"]:  # so that it is not the hash that saves us
            files = about["files"] | {path.name: sha256(path)}
            (folder / "classifier.json").write_text(json.dumps(about | {"files": files}))
        with pytest.raises(RewardConfigError, match=path.name):
            read_classifier(str(folder))
        assert not trace.exists(), path.name
        path.write_bytes(kept)


def test_pickles_that_lie_about_in_a_run_are_left_alone(
    run: Path, place: Path, trace: Path, tmp_path: Path
) -> None:
    for folder in (run, run / "model", run / "checkpoints", run / "plots"):
        for name in (*OTHERS, *PICKLES):
            torch.save(Canary(trace), folder / name)
    checkpoint = newest_sound(run / "checkpoints")
    assert checkpoint is not None
    config = f"--config={place / 'a.yaml'}"
    assert main(["eval", str(run)]) == 0
    assert main(["eval", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    on = [f"--run.resume={checkpoint}", f"--run.dir={tmp_path}", "--train.iterations=2"]
    assert main(["ppo", config, "--run.name=run", *on]) == 0
    policy = f"--model.name={run / 'model'}"
    assert main(["ppo", config, policy, "--run.name=b", f"--run.dir={tmp_path}"]) == 0
    torch.save(Canary(trace), checkpoint / "adapter_model.bin")  # there it was not written
    assert main(["eval", str(checkpoint), "--out", str(tmp_path / "out")]) == 3
    assert not trace.exists()


def poisoned(run: Path, trace: Path, **changes: Any) -> Path:
    """The run with other settings; `evil.py` lies in it."""
    reward = "\ndef evil(completions, **kwargs): return [0.0] * len(completions)\n"
    (run / "evil.py").write_text(CODE.format(trace=str(trace)) + reward)
    settings = yaml.safe_load((run / "config.yaml").read_text()) | changes
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run


def test_the_reward_files_of_a_runs_configuration_need_trust(
    run: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned(run, trace, reward_files=[str(run / "evil.py")], rewards={"x": {"kind": "evil"}})
    assert main(["eval", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"{run / 'config.yaml'} would run reward_files=" in said
    assert f"`rlalign eval {run} --trust`" in said and not trace.exists()
    assert main(["eval", str(run / "model"), "--out", str(run)]) == 2  # it has no configuration
    assert main(["eval", str(newest_sound(run / "checkpoints"))]) == 2
    assert not trace.exists()
    assert main(["eval", str(run), "--trust"]) == 0
    assert trace.exists()


def test_a_resumed_run_does_not_run_the_reward_files_of_the_folder(
    run: Path, place: Path, trace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned(run, trace, reward_files=[str(run / "evil.py")])
    where = [f"--run.dir={run.parent}", "--run.name=run", "--run.resume=auto"]
    assert main(["ppo", f"--config={place / 'a.yaml'}", *where]) == 0
    assert "other settings than before: reward_files" in caplog.text
    assert not trace.exists()


def test_the_servers_of_a_runs_configuration_need_trust(
    run: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = {"kind": "remote.http", "url": "http://127.0.0.1:9/", "headers": {"X-A": "HOME"},
           "retries": 0, "weight": 1}  # fmt: skip
    poisoned(run, trace, rewards={"far": far})
    assert main(["eval", str(run)]) == 2
    assert "send texts to rewards.far.url='http://127.0.0.1:9/' with headers={'X-A': 'HOME'}" in (
        capsys.readouterr().err
    )
    assert main(["eval", str(run), "--trust"]) == 5  # it is asked, and is not there


def test_code_beside_a_model_that_is_measured_needs_trust(
    place: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = repository(tmp_path / "evil", trace), f"--config={place / 'a.yaml'}"
    assert main(["eval", str(folder), config, "--model.trust_remote_code"]) == 3
    assert "comes with Python code, which is not run; if you trust" in capsys.readouterr().err
    assert not trace.exists()
    assert main(["eval", str(folder), config, "--trust"]) != 0  # it is no model
    assert trace.exists()


def test_results_do_not_follow_links_out_of_the_run(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    for name in ("eval.json", "eval_samples.jsonl", "eval.png"):
        (run / name).symlink_to(mine)
    assert main(["eval", str(run)]) == 0
    assert mine.read_text() == "precious"
    assert not any((run / name).is_symlink() for name in ("eval.json", "eval.png"))
