"""`rlalign eval` on runs and on models that somebody else trained."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards import embedded
from rlalign.checkpoints.folder import CheckpointError
from rlalign.cli import main
from rlalign.config import ConfigError, from_mapping
from rlalign.dpg import main as dpg
from rlalign.measure import final_coef, measure
from rlalign.methods import METHODS

SETTINGS = {
    "model": {"name": "glass-tiny", "dtype": "float32"},
    "sampling": {"max_new_tokens": 12, "samples_per_prompt": 16},
    "rewards": {
        "woman": {"kind": "lexical.contains", "words": ["she", "her"], "moment": 0.5},
        "the": {"kind": "lexical.contains", "words": ["the"], "weight": 0},
    },
    "kl": {"coef": 1.0},
    "target": {"samples": 512, "samples_per_prompt": 256},
    "train": {"iterations": 3, "samples": 64, "threads": 1},
    "dpg": {"lr": 1e-3},
    "eval": {"every": 0, "target_samples": 256, "samples_per_prompt": 128},
    "trackers": [],
}
REFERENCE = {"model": {"name": "glass-tiny"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, its two prompts, and a run of it."""
    folder = tmp_path_factory.mktemp("measure")
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "Alice"}\n{"prompt": "The Queen"}\n')
    settings = SETTINGS | {
        "prompts": {"path": str(prompts), "eval_path": str(prompts)},
        "run": {"dir": str(folder), "name": "run"},
    }
    (folder / "a.yaml").write_text(yaml.safe_dump(settings))
    assert dpg([f"--config={folder / 'a.yaml'}"]) == 0
    return folder


@pytest.fixture(scope="module")
def of_run(place: Path) -> dict[str, Any]:
    assert main(["eval", str(place / "run")]) == 0
    found: dict[str, Any] = json.loads((place / "run" / "eval.json").read_text())
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "eval_samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_is_measured_by_its_own_settings(of_run: dict[str, Any], place: Path) -> None:
    assert (of_run["method"], of_run["samples"], of_run["prompts"]) == ("dpg", 256, 2)
    assert of_run["reference_model"] == "glass-tiny"
    assert of_run["reference"]["eval/kl"] == 0.0 < of_run["policy"]["eval/kl"]
    assert {name: each["role"] for name, each in of_run["features"].items()} == {
        "woman": "moment",
        "the": "metric",
    }
    assert (place / "run" / "eval.png").read_bytes()[:4] == b"\x89PNG"
    assert len(rows_of(place / "run")) == 512


def test_every_number_follows_from_the_samples(of_run: dict[str, Any], place: Path) -> None:
    """By other code: plain self-normalised sums over eval_samples.jsonl, one prompt at a time."""
    rows = rows_of(place / "run")
    found: dict[str, list[float]] = {"forward_kl": [], "tv": [], "woman": [], "policy_woman": []}
    for prompt in ("Alice", "The Queen"):
        some = [row for row in rows if row["prompt"] == prompt]
        mixture = [
            (math.exp(row["log_policy"]) + math.exp(row["log_reference"])) / 2 for row in some
        ]
        ratio = [math.exp(r["log_policy"]) / m for r, m in zip(some, mixture, strict=True)]
        weight = [
            math.exp(r["log_potential"] + r["log_reference"]) / m
            for r, m in zip(some, mixture, strict=True)
        ]
        z = sum(weight) / len(some)
        pairs = list(zip(weight, ratio, strict=True))
        kl = sum(w / z * math.log(w / z / r) for w, r in pairs) / len(some)
        found["forward_kl"].append(kl)
        found["tv"].append(sum(abs(r - w / z) for w, r in pairs) / 2 / len(some))
        women = [row["rewards"]["woman"] for row in some]
        found["woman"].append(sum(w * x for w, x in zip(weight, women, strict=True)) / sum(weight))
        own = [row["rewards"]["woman"] for row in some if row["drawn_by"] == "policy"]
        found["policy_woman"].append(sum(own) / len(own))
    mean = {name: sum(values) / 2 for name, values in found.items()}
    woman = of_run["features"]["woman"]
    assert woman["policy"]["value"] == pytest.approx(mean["policy_woman"])
    # Theirs has no correction of the bias and no calibration: as near as the error says.
    for name in ("forward_kl", "tv"):
        ours = of_run["to_target"][name]["policy"]
        assert abs(ours["value"] - mean[name]) < 2 * ours["se"]
    assert abs(woman["target"]["value"] - mean["woman"]) < 2 * woman["target"]["se"]
    # lambda was fitted to these samples, so the plain weighted mean is the wish.
    assert mean["woman"] == pytest.approx(0.5, abs=1e-6)


def test_log_likelihoods_are_those_of_the_models(of_run: dict[str, Any], place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "run" / "model")
    trained = AutoModelForCausalLM.from_pretrained(place / "run" / "model")
    reference = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
    checked = 0
    for row in rows_of(place / "run")[:40]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        if row["finished"] or len(response) != row["length"]:
            continue  # other tokens may spell the same text
        ids = torch.tensor([prompt + response])
        agrees = []
        for lm, key in ((trained, "log_policy"), (reference, "log_reference")):
            with torch.no_grad():
                logits = lm(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            own = float(logits.gather(1, torch.tensor(response).unsqueeze(1)).sum())
            agrees.append(own == pytest.approx(row[key], abs=1e-3))
        assert agrees[0] == agrees[1]  # other tokens of the same number may spell it, for both
        checked += all(agrees)
    assert checked >= 20


def test_the_reference_itself_is_at_no_distance_from_itself(place: Path, tmp_path: Path) -> None:
    config = f"--config={place / 'a.yaml'}"
    assert main(["eval", "glass-tiny", config, "--out", str(tmp_path / "new")]) == 0
    found = json.loads((tmp_path / "new" / "eval.json").read_text())
    assert found["to_reference"]["kl_policy_reference"]["value"] == pytest.approx(0.0, abs=1e-6)
    both = found["to_target"]["forward_kl"]
    assert both["policy"]["value"] == pytest.approx(both["reference"]["value"], abs=1e-6)


def test_a_checkpoint_is_measured_like_the_model_of_the_same_moment(
    of_run: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    checkpoint = place / "run" / "checkpoints" / "step-000003"
    found = measure(str(checkpoint), [], str(tmp_path))
    assert found["to_target"] == of_run["to_target"]
    assert found["method"] == "dpg"


def test_a_model_that_somebody_else_trained_is_measured(place: Path, tmp_path: Path) -> None:
    lm = AutoModelForCausalLM.from_pretrained(embedded.path("glass-tiny"))
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(embedded.path("glass-tiny"))
    batch = tokenizer("Alice looked at her sister, and she said nothing.", return_tensors="pt")
    for _ in range(5):
        lm(**batch, labels=batch.input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = measure(str(tmp_path), [f"--config={place / 'a.yaml'}"])
    assert found["method"] is None
    woman = found["features"]["woman"]
    assert woman["policy"]["low"] > woman["reference"]["value"]
    assert found["to_reference"]["kl_policy_reference"]["low"] > 0.1


def test_what_cannot_be_measured_is_refused_in_words(place: Path, tmp_path: Path) -> None:
    config = f"--config={place / 'a.yaml'}"
    with pytest.raises(ConfigError, match=r"has no config.yaml; say by --config FILE"):
        measure(str(tmp_path), [])
    with pytest.raises(ConfigError, match="glass-tiny is no folder here, so --out must say"):
        measure("glass-tiny", [config])
    with pytest.raises(CheckpointError, match=r"holds no weights that fit model.name=glass-tiny"):
        measure(str(tmp_path), [config])


def test_too_few_samples_refuse_the_distance_and_say_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--eval.target_samples=8", "--eval.samples_per_prompt=4"]
    found = measure("glass-tiny", [f"--config={place / 'a.yaml'}", *few], str(tmp_path))
    assert found["to_target"]["forward_kl"]["policy"]["value"] is None
    assert "16 samples do not show the tail" in found["support"]["refusal"]
    shown = capsys.readouterr().out
    assert "no distance to P_T: 16 samples do not show" in shown
    assert max(len(line) for line in shown.splitlines() if "eval" not in line) <= 80


def test_what_the_reference_never_shows_is_measured_all_the_same(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hard = "--rewards.never={kind: lexical.contains, words: [zebra], hard: true}"
    found = measure("glass-tiny", [f"--config={place / 'a.yaml'}", hard], str(tmp_path))
    assert found["support"]["refusal"].startswith("rewards.never.hard=true")
    assert "none of 512 responses of the reference satisfies it" in found["target"]["notes"][0]
    assert found["features"]["never"]["policy"]["value"] == 0.0
    assert found["to_reference"]["kl_policy_reference"]["value"] is not None
    assert "no distance to P_T: rewards.never.hard=true: none of" in capsys.readouterr().out


def test_a_run_is_measured_by_settings_that_its_method_could_not_train_with(
    of_run: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    bare = ["--kl.coef=0", "--rewards.woman.moment=null", "--rewards.woman.weight=1"]
    few = ["--sampling.samples_per_prompt=1", "--eval.target_samples=128"]
    found = measure(str(place / "run"), [*bare, *few], str(tmp_path))
    assert found["support"]["refusal"].startswith("kl.coef=0")
    assert found["log_z"]["lower"]["value"] is None
    assert found["features"]["woman"]["policy"]["value"] > 0


def test_under_an_adaptive_coefficient_the_target_is_that_of_its_last_value(
    place: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {
        "prompts": {"path": str(place / "prompts.jsonl")},
        "rewards": {"the": {"kind": "lexical.contains", "words": ["the"]}},
        "kl": {"coef": 0.5, "target": 0.1, "horizon": 100},
        "run": {"dir": str(tmp_path), "name": "run"},
        "reinforce": {"lr": 1e-3},
    }
    del settings["dpg"]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings))
    assert main(["reinforce", f"--config={tmp_path / 'a.yaml'}"]) == 0
    run = tmp_path / "run"
    config = from_mapping(METHODS["reinforce"].run_model, settings)
    coef = final_coef(run, config)
    assert coef != 0.5
    assert final_coef(run / "checkpoints" / "step-000003", config) == coef
    found = measure(str(run), [])
    assert found["target"]["beta"] == coef
    shutil.rmtree(run / "checkpoints")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    begun = [row["kl/coef"] for row in rows if "kl/coef" in row]
    assert final_coef(run, config) == begun[-1] != begun[0]
    fixed = from_mapping(METHODS["reinforce"].run_model, settings | {"kl": {"coef": 0.5}})
    assert final_coef(run, fixed) == 0.5
