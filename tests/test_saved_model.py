"""What a run saves loads in a plain transformers or peft session, and is the policy that learnt."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards import embedded
from rlalign import train
from rlalign.loop import Result

SETTINGS = {
    "model": {"name": "glass-tiny", "dtype": "float32"},
    "sampling": {"max_new_tokens": 6, "temperature": 0.7},
    "train": {"iterations": 2, "samples": 8, "threads": 1},
    "ppo": {"minibatches": 2, "lr": 1e-2},
    "eval": {"every": 0},
    "trackers": [],
}


def vowels(completions: list[str]) -> list[float]:
    return [float(sum(c in "aeiou" for c in text)) for text in completions]


def trained(folder: Path, lora: bool) -> Result:
    model = SETTINGS["model"] | ({"lora": {"r": 4}} if lora else {})
    settings = SETTINGS | {"model": model, "run": {"dir": str(folder), "name": "a"}}
    prompts = ["The cat", "Alice was", "A little", "Once"]
    return train(settings, rewards=[vowels], prompts=prompts, quiet=True)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_plain_session_loads_the_policy_that_learnt(tmp_path: Path, lora: bool) -> None:
    result = trained(tmp_path, lora)
    folder = result.folder / "model"
    if lora:
        base = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
        loaded = PeftModel.from_pretrained(base, folder)
    else:
        base = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Alice was", return_tensors="pt").input_ids
    ours = result.trainer.session.policy.lm
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, ours(ids).logits)
        if not lora:
            assert not torch.equal(loaded(ids).logits, base(ids).logits)
    head = load_file(folder / "value_head.safetensors")
    assert torch.equal(head["weight"], result.trainer.session.policy.value_head.weight)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_fresh_process_without_rlalign_generates(tmp_path: Path, lora: bool) -> None:
    folder = trained(tmp_path, lora).folder / "model"
    code = (
        "import sys\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})\n"
        f"model.generation_config = GenerationConfig.from_pretrained({str(folder)!r})\n"
        "out = model.generate(**tokenizer('Alice was', return_tensors='pt'))\n"
        "g = model.generation_config\n"
        "assert not any(m.startswith('rlalign') for m in sys.modules)\n"
        "print(out.shape[1] > 0, g.do_sample, g.temperature, g.top_k, g.top_p, g.max_new_tokens)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "True True 0.7 0 1.0 6"


def test_the_model_card_names_rewards_and_base(tmp_path: Path) -> None:
    card = (trained(tmp_path, True).folder / "model/README.md").read_text()
    assert "vowels" in card
    assert "glass-tiny" in card
