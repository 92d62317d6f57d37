"""What `rlalign eval` loads: adapters and checkpoints, and whether they belong to the reference."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from rewards import embedded
from rlalign.checkpoints.folder import CheckpointError
from rlalign.cli import main
from rlalign.config import ConfigError, from_mapping
from rlalign.measure import measure
from rlalign.methods import METHODS
from rlalign.session import Session
from rlalign.trained import load_trained, settings_for

SETTINGS: dict[str, Any] = {
    "model": {"name": "glass-tiny", "dtype": "float32", "lora": {"r": 4, "alpha": 8.0}},
    "sampling": {"max_new_tokens": 8, "samples_per_prompt": 8},
    "rewards": {"the": {"kind": "lexical.contains", "words": ["the"]}},
    "kl": {"coef": 1.0},
    "train": {"iterations": 2, "samples": 16, "threads": 1},
    "reinforce": {"lr": 1e-2},
    "eval": {"every": 0, "target_samples": 128, "samples_per_prompt": 64},
    "trackers": [],
}
IDS = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under LoRA, with its checkpoint and its saved adapter."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "prompts.jsonl").write_text(
        '{"prompt": "Alice and the Queen"}\n{"prompt": "The Queen and Alice"}\n'
    )
    settings = SETTINGS | {
        "prompts": {"path": str(folder / "prompts.jsonl")},
        "run": {"dir": str(folder), "name": "run"},
    }
    (folder / "a.yaml").write_text(yaml.safe_dump(settings))
    assert main(["reinforce", f"--config={folder / 'a.yaml'}"]) == 0
    return folder / "run"


def settings_of(run: Path, **model: Any) -> Any:
    settings = SETTINGS | {"prompts": {"path": str(run.parent / "prompts.jsonl")}}
    settings["model"] = SETTINGS["model"] | model
    return from_mapping(METHODS["reinforce"].run_model, settings)


def logits(source: Path, config: Any) -> torch.Tensor:
    with Session(settings_for(str(source), config)) as session, torch.no_grad():
        load_trained(session, str(source))
        found: torch.Tensor = session.policy.lm(IDS).logits
        return found


def test_a_checkpoint_under_lora_is_the_adapter_that_was_saved(run: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
    of_adapter = logits(run / "model", settings_of(run))
    of_checkpoint = logits(run / "checkpoints" / "step-000002", settings_of(run))
    torch.testing.assert_close(of_checkpoint, of_adapter, atol=1e-4, rtol=1e-4)
    assert float((reference(IDS).logits.detach() - of_adapter).abs().max()) > 0.01


def test_a_checkpoint_is_refused_under_other_adapters_than_its_own(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-000002"
    config = settings_of(run, lora={"r": 4, "alpha": 80.0})  # the same shapes
    with pytest.raises(ConfigError, match=r"was trained under model.lora=.*'alpha': 8.0"):
        logits(checkpoint, config)


def test_the_same_adapters_written_otherwise_are_the_same(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-000002"
    logits(checkpoint, settings_of(run, lora={"r": 4}))  # alpha is 2 r where nothing is said


def test_another_base_than_the_reference_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logits(run / "model", settings_of(run))
    assert "was trained from" not in capsys.readouterr().err
    saved = tmp_path / "adapter"
    saved.mkdir()
    for file in (run / "model").iterdir():
        if file.is_file():
            (saved / file.name).write_bytes(file.read_bytes())
    told = json.loads((saved / "adapter_config.json").read_text())
    told["base_model_name_or_path"] = "somebody/glass-small"
    (saved / "adapter_config.json").write_text(json.dumps(told))
    logits(saved, settings_of(run))
    said = capsys.readouterr().err
    assert "was trained from somebody/glass-small, and is measured on model.name=glass-tiny" in said


def test_a_damaged_adapter_is_refused_in_words(run: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base')
    with pytest.raises(CheckpointError, match=r"holds no weights that fit model.name=glass-tiny"):
        logits(tmp_path, settings_of(run))


@pytest.mark.parametrize("keeps", [0, 1])
def test_an_adapter_that_is_not_whole_is_refused(run: Path, tmp_path: Path, keeps: int) -> None:
    shutil.copytree(run / "model", tmp_path / "part")
    weights = load_file(tmp_path / "part/adapter_model.safetensors")
    kept = dict(list(weights.items())[:keeps])
    save_file(kept, tmp_path / "part/adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"its files lack the weights base_model\.model"):
        logits(tmp_path / "part", settings_of(run))


def test_a_name_that_is_nowhere_is_refused_in_words(run: Path, tmp_path: Path) -> None:
    config = f"--config={run.parent / 'a.yaml'}"
    with pytest.raises(CheckpointError, match=r"no-such-model holds no weights that fit"):
        measure("no-such-model", [config], str(tmp_path))


@pytest.mark.parametrize("kind", [{"use_rslora": True}, {"use_dora": True}])
def test_an_adapter_of_any_kind_is_measured_as_it_is(
    run: Path, tmp_path: Path, kind: dict[str, bool]
) -> None:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
    lora = LoraConfig(r=4, lora_alpha=3, target_modules="all-linear", **kind)
    adapted: Any = get_peft_model(base, lora)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    adapted.save_pretrained(tmp_path)
    with Session(settings_for(str(tmp_path), settings_of(run))) as session:
        load_trained(session, str(tmp_path))
        with torch.no_grad():
            found = session.policy.lm(IDS).logits
            torch.testing.assert_close(found, adapted(IDS).logits, atol=1e-4, rtol=1e-4)
            with session.policy.reference() as reference, adapted.disable_adapter():
                assert torch.equal(reference.lm(IDS).logits, adapted(IDS).logits)


def saved(folder: Path, lm: Any, tokenizer: Any = None) -> Path:
    lm.save_pretrained(folder)
    (tokenizer or AutoTokenizer.from_pretrained(embedded.path("glass-tiny"))).save_pretrained(
        folder
    )
    return folder


def test_another_tokenizer_is_refused(run: Path, tmp_path: Path) -> None:
    lm = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
    saved(tmp_path, lm)
    file = tmp_path / "tokenizer.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = told["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has another tokenizer than model.name"):
        logits(tmp_path, settings_of(run))


@pytest.mark.parametrize("whose", ["policy", "reference"])
def test_rows_beyond_the_tokens_are_cut_from_both(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whose: str
) -> None:
    """As where a token for padding was added, or embeddings were padded to a multiple of 64."""
    lm = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
    expected = lm(IDS).logits.detach()
    lm.resize_token_embeddings(expected.shape[-1] + 64)
    tokenizer = AutoTokenizer.from_pretrained(embedded.path("glass-tiny"))
    tokenizer.add_tokens(["<pad-of-mine>"])
    longer = str(saved(tmp_path, lm, tokenizer))
    config, source = settings_of(run, lora=None), longer
    if whose == "reference":
        config, source = settings_of(run, lora=None, name=longer), str(embedded.path("glass-tiny"))
    with Session(settings_for(source, config)) as session:
        if whose == "reference":  # its tokenizer has a token that the policy's has not
            session.tokenizer = AutoTokenizer.from_pretrained(source)
        load_trained(session, source)
        with torch.no_grad(), session.policy.reference() as reference:
            torch.testing.assert_close(reference.lm(IDS).logits, expected)
        torch.testing.assert_close(session.policy.lm(IDS).logits, expected)
    assert "both are cut to 1024" in capsys.readouterr().err


def test_as_many_rows_are_taken_as_they_are_however_many_tokens(run: Path, tmp_path: Path) -> None:
    """A token for padding that has no row of its own, as where it was added after training."""
    lm = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
    tokenizer = AutoTokenizer.from_pretrained(embedded.path("glass-tiny"))
    tokenizer.add_tokens(["<pad-of-mine>"])
    source = saved(tmp_path, lm, tokenizer)
    torch.testing.assert_close(logits(source, settings_of(run, lora=None)), lm(IDS).logits.detach())
    logits(source, settings_of(run, lora=None, name=str(source)))


def test_a_model_that_ends_otherwise_is_refused(run: Path, tmp_path: Path) -> None:
    lm = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
    lm.generation_config.eos_token_id = 77
    with pytest.raises(ConfigError, match=r"ends a response with token 77 and the reference with"):
        logits(saved(tmp_path, lm), settings_of(run))


def test_a_model_of_too_short_a_context_is_refused(run: Path, tmp_path: Path) -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 9, "vocab_size": 1024}
    tokenizer = AutoTokenizer.from_pretrained(embedded.path("glass-tiny"))
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    source = saved(tmp_path, GPT2LMHeadModel(GPT2Config(**sizes, **ends)))
    with pytest.raises(ConfigError, match=r"reads prompts of at most 1 tokens beside sampling.max"):
        logits(source, settings_of(run))


def test_fewer_rows_than_tokens_are_refused(run: Path, tmp_path: Path) -> None:
    lm = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
    lm.resize_token_embeddings(1000)
    lm.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has 1000 rows of embeddings for the reference's"):
        logits(tmp_path, settings_of(run))


def test_another_architecture_of_the_same_tokens_is_measured(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128, "vocab_size": 1024}
    tokenizer = AutoTokenizer.from_pretrained(embedded.path("glass-tiny"))
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    lm = GPT2LMHeadModel(GPT2Config(**sizes, **ends))
    source = saved(tmp_path / "other", lm)
    config = f"--config={run.parent / 'a.yaml'}"
    found = measure(str(source), [config], str(tmp_path))
    gap = found["to_reference"]["kl_policy_reference"]
    assert gap["low"] > 1.0
    with Session(settings_for(str(source), settings_of(run))) as session, torch.no_grad():
        load_trained(session, str(source))
        own = session.policy.in_float32()
        assert isinstance(own.lm, GPT2LMHeadModel)
        torch.testing.assert_close(own.lm(IDS).logits, lm.eval()(IDS).logits)
        with own.reference() as reference:
            wanted = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
            torch.testing.assert_close(reference.lm(IDS).logits, wanted(IDS).logits)
    rows = [
        json.loads(line) for line in (tmp_path / "eval_samples.jsonl").read_text().split("\n")[:-1]
    ]
    row = next(row for row in rows if row["drawn_by"] == "policy" and not row["finished"]
               and len(tokenizer(row["response"]).input_ids) == row["length"])  # fmt: skip
    prompt, response = (tokenizer(row[of]).input_ids for of in ("prompt", "response"))
    with torch.no_grad():
        told = lm(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    own_log = float(told.gather(1, torch.tensor(response).unsqueeze(1)).sum())
    assert own_log == pytest.approx(row["log_policy"], abs=1e-3)
