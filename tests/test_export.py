"""`rlalign export`: a plain folder that computes what was trained, whole or not there at all."""

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import ended, fork
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from tried_run import trained

from rewards import embedded
from rlalign.checkpoints.folder import load_checkpoint
from rlalign.cli import main
from rlalign.config import read_file
from rlalign.new_folder import ADVICE
from rlalign.report.exported_card import MERGED


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    trained(folder, "lora", checkpoint={"every": 3})
    trained(folder, "whole", model={"name": "glass-tiny", "dtype": "float32", "lora": None})
    return folder


def logits_of(folder: Path, loader: type = AutoModelForCausalLM) -> torch.Tensor:
    lm = loader.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("The Queen said to Alice", return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = lm(**ids).logits
    return found


def test_a_merged_model_computes_what_base_and_adapter_do(place: Path, tmp_path: Path) -> None:
    assert main(["export", str(place / "lora"), str(tmp_path / "out")]) == 0
    policy = logits_of(place / "lora/model", AutoPeftModelForCausalLM)
    base = logits_of(embedded.path("glass-tiny"))
    merged = logits_of(tmp_path / "out")
    torch.testing.assert_close(merged, policy, rtol=0, atol=1e-5)
    assert (merged - base).abs().max() > 0.01
    assert not (tmp_path / "out/adapter_config.json").exists()  # which transformers would follow


def test_a_checkpoint_is_exported_as_the_run_that_ended_with_it(
    place: Path, tmp_path: Path
) -> None:
    checkpoint = place / "lora/checkpoints/step-000003"
    for adapter in ("--merged", "--adapter"):
        assert main(["export", str(checkpoint), str(tmp_path / adapter), adapter]) == 0
    policy = logits_of(place / "lora/model", AutoPeftModelForCausalLM)
    torch.testing.assert_close(logits_of(tmp_path / "--merged"), policy, rtol=0, atol=1e-5)
    adapted = logits_of(tmp_path / "--adapter", AutoPeftModelForCausalLM)
    torch.testing.assert_close(adapted, policy, rtol=0, atol=1e-5)
    assert load_checkpoint(checkpoint).step == 3
    assert "# glass-tiny, steered by rewards" in (tmp_path / "--adapter/README.md").read_text()


def test_an_adapter_and_all_weights_come_out_as_they_are(place: Path, tmp_path: Path) -> None:
    assert main(["export", str(place / "lora"), str(tmp_path / "a"), "--adapter"]) == 0
    assert torch.equal(
        logits_of(tmp_path / "a", AutoPeftModelForCausalLM),
        logits_of(place / "lora/model", AutoPeftModelForCausalLM),
    )
    assert main(["export", str(place / "whole"), str(tmp_path / "w")]) == 0
    assert torch.equal(logits_of(tmp_path / "w"), logits_of(place / "whole/model"))


def test_the_folder_samples_as_in_training_and_holds_no_critic(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(place / "lora"), str(out), "--dtype=bfloat16"]) == 0
    settings = GenerationConfig.from_pretrained(out)
    assert (settings.temperature, settings.top_k, settings.top_p) == (0.8, 0, 1.0)
    assert settings.do_sample and settings.max_new_tokens == 8
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "generation_config.json", "README.md"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.iterdir())


def test_the_card_keeps_the_results_and_says_what_this_is(place: Path, tmp_path: Path) -> None:
    own = (place / "lora/model/README.md").read_text()
    cards = {}
    for form in ("merged", "adapter"):
        assert main(["export", str(place / "lora"), str(tmp_path / form), f"--{form}"]) == 0
        cards[form] = (tmp_path / form / "README.md").read_text()
        table = own.partition("## Before and after")[2].partition("## How")[0]
        assert len(table) > 200 and table in cards[form]
        assert "value_head" not in cards[form]
    assert "library_name: transformers" in cards["merged"] and MERGED in cards["merged"]
    assert "AutoPeft" not in cards["merged"]
    assert "library_name: peft" in cards["adapter"] and "AutoPeft" in cards["adapter"]


def test_reward_files_of_the_run_are_not_run(place: Path, tmp_path: Path) -> None:
    config = place / "lora/config.yaml"
    before = config.read_text()
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    try:
        config.write_text(json.dumps(read_file(config) | {"reward_files": [str(trap)]}))
        assert main(["export", str(place / "lora"), str(tmp_path / "out")]) == 0
    finally:
        config.write_text(before)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("run", "form"), [("lora", "--merged"), ("lora", "--adapter"), ("whole", "--merged")]
)
def test_weights_that_are_missing_are_not_made_up(
    place: Path, tmp_path: Path, run: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / run, tmp_path / "run")
    (file,) = [f for f in (tmp_path / "run/model").glob("*model.safetensors")]
    weights = load_file(file)
    save_file(dict(list(weights.items())[1:]), file, metadata={"format": "pt"})
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), form]) == 3
    assert "its files lack the weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def names(tmp_path: Path) -> dict[str, tuple[str, str]]:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    return {
        "full": (str(tmp_path / "full"), "holds files already"),
        "file": (str(tmp_path / "file"), "is a file"),
        "below a file": (str(tmp_path / "file/out"), "which is a file"),
        "link": (str(tmp_path / "dangling"), "is a link to nothing"),
        "empty": (" ", "is empty"),
        "line break": (str(tmp_path / "a\nb"), "a character that cannot be shown"),
        "nul": (str(tmp_path / "a\0b"), "a character that cannot be shown"),
        "long": (str(tmp_path / ("a" * 300)), "File name too long"),
    }


def test_odd_names_are_refused_in_words_and_nothing_is_touched(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out, words in names(tmp_path).values():
        assert main(["export", str(place / "lora"), out]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "full/mine").read_text() == (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file", "dangling"}


@pytest.mark.parametrize(
    ("run", "more", "words"),
    [
        ("whole", ["--adapter"], "there is no adapter; leave --adapter out"),
        ("lora", ["--adapter", "--dtype=bfloat16"], "an adapter is kept in float32"),
        ("lroa", [], "did you mean"),
        ("lora/model", [], "has no config.yaml: only a run"),
    ],
)
def test_what_a_run_does_not_have_is_said(
    place: Path, tmp_path: Path, run: str, more: list[str], words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["export", str(place / run), str(tmp_path / "out"), *more]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_leaves_nothing_and_ends_with_4(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        os._exit(main(["export", str(place / "lora"), str(tmp_path / "out")]))

    status = ended(fork(work), time.monotonic() + 120)
    assert os.waitstatus_to_exitcode(status) == 4
    last = capfd.readouterr().err.splitlines()[-1]
    assert "out could not be written" in last and last.endswith(ADVICE)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_refused_before(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("rlalign.trying.export.shutil.disk_usage", lambda _: free)
    assert main(["export", str(place / "lora"), str(tmp_path / "out")]) == 4
    assert "needs 20 MB" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
