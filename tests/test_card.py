import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import oracle
import pytest
import yaml
from test_resume import run

from rlalign.evaluate import Evaluation
from rlalign.report.card import GIVEN_MODEL, GIVEN_PROMPTS, name_of_given, write_model_card
from rlalign.settings.sections import RunConfig

REWARDS = {
    "sky": {"kind": "lexical.contains", "words": ["sky", "a|b", "<img src=x>"], "weight": 0.5},
    "judge": {"kind": "style.sentiment", "weight": 0, "api_key": "canary"},
}


def config(**sections) -> RunConfig:
    return RunConfig(rewards=REWARDS, **sections)


def evaluation(scores: list[float], response: str) -> Evaluation:
    rows = [
        {
            "prompt": f"prompt {i}",
            "response": response,
            "score": score,
            "kl": 2 * score,
            "rewards": {"sky": score, "judge": None if i == 0 else 0.5},
        }
        for i, score in enumerate(scores)
    ]
    return Evaluation({}, rows)


def card(tmp_path: Path, cfg: RunConfig, response: str = "fine", **more: Any) -> tuple[dict, str]:
    before, after = evaluation([0.0, 1.0, 2.0], "plain"), evaluation([1.0, 2.0, 3.0], response)
    path = write_model_card(tmp_path, cfg, before, after, 40, **more)
    assert path == tmp_path / "README.md"
    text = path.read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def table_rows(body: str, first_cell: str) -> list[list[str]]:
    rows = [[c.strip() for c in line.strip("| ").split(" | ")] for line in body.splitlines()]
    return [row for row in rows if row[0] == first_cell]


def test_the_front_matter_tells_the_hub_what_it_is(tmp_path):
    front, _ = card(tmp_path, config(model={"name": "smollm2-135m", "lora": {"r": 4}}))
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["license"] == "apache-2.0" and front["library_name"] == "peft"
    assert {"rlalign", "lora"} <= set(front["tags"])
    front, _ = card(tmp_path, config(model={"name": "owner/model"}))
    assert front["base_model"] == "owner/model" and front["library_name"] == "transformers"
    assert "license" not in front


def test_a_local_models_path_is_not_published(tmp_path):
    front, body = card(tmp_path, config(model={"name": str(tmp_path / "my-model")}))
    assert "base_model" not in front and str(tmp_path) not in body and "my-model" in body


def test_the_rewards_stand_with_kind_parameters_and_weight(tmp_path):
    _, body = card(tmp_path, config())
    [sky, *_] = table_rows(body, "sky")
    assert sky[1] == "lexical.contains" and sky[3] == "0.5"
    assert "a\\|b" in sky[2] and "&lt;img src=x" in sky[2]
    assert "canary" not in body


def test_the_change_comes_with_its_interval_over_the_same_prompts(tmp_path):
    _, body = card(tmp_path, config())
    [score] = table_rows(body, "score")
    assert score[1].startswith("1.000 (") and score[2].startswith("2.000 (")
    assert score[3] == "+1.000 (1.000 … 1.000)"  # every prompt rose by one
    assert table_rows(body, "judge")[-1][3] == "+0.000 (0.000 … 0.000)"


@pytest.mark.parametrize(
    "response",
    ["<script>alert(1)</script>", "![x](http://e/x.png) [y](javascript:0)", "a | b\n\n# title `c`"],
)
def test_what_the_model_wrote_does_nothing_on_the_page(tmp_path, response):
    _, body = card(tmp_path, config(), response)
    [sample] = table_rows(body, "prompt 0")
    assert len(sample) == 3 and sample[1] == "plain"
    for active in ("<", "![", "](", " # ", " `c`"):
        assert active not in sample[2]


def test_the_target_says_what_was_asked_for(tmp_path):
    sections = {"kl": {"coef": 0.1}, "sampling": {"temperature": 0.7, "max_new_tokens": 24}}
    _, body = card(tmp_path, config(**sections))
    assert "β = 0.1" in body and "temperature 0.7 and at most 24 new tokens" in body
    assert "moved the optimum" not in body and "clipped" not in body
    sections["kl"] = {"coef": 0.1, "target": 6.0}
    sections["score"] = {"clip": (-1.0, 2.0), "missing_eos_penalty": 0.5}
    caveats = ["kl.target=6: beta moves", "ppo.gamma=0.9: late rewards count less"]
    _, body = card(tmp_path, config(**sections), kl_coef=0.25, caveats=caveats)
    assert "β = 0.25" in body and "away from it:\n\n- kl.target=6" in body
    assert body.count("late rewards count less") == 1
    assert "clipped to -1 … 2" in body and "less 0.5 where a response does not end" in body
    for given in ({}, {"kl_coef": 0.0}):  # a run hands over the coefficient that it ended with
        _, body = card(tmp_path, config(kl={"coef": 0.0}), **given)
        assert "no price on the KL" in body and "∝" not in body


def test_the_table_of_rewards_shows_what_is_part_of_the_target(tmp_path):
    entry = {"kind": "lexical.contains", "words": ["x"], "scale": 2.0, "clip": [0, 1]}
    _, body = card(tmp_path, RunConfig(rewards={"a": entry}))
    [row] = table_rows(body, "a")
    assert "scale = 2.0" in row[2] and "clip = \\[0, 1\\]" in row[2]


def test_a_run_without_evaluations_has_a_card_too(tmp_path):
    text = write_model_card(tmp_path, config(), None, None, 40).read_text()
    assert "## Target" in text and "## Samples" not in text


def code(body: str) -> str:
    [block] = re.findall(r"```python\n(.*?)\n```", body, re.DOTALL)
    ast.parse(block)
    return block


def test_a_given_model_is_not_called_by_the_configurations_name(tmp_path):
    front, body = card(tmp_path, config(model={"name": "smollm2-135m"}), base=GIVEN_MODEL)
    assert "base_model" not in front and "license" not in front
    assert "smollm2" not in body.lower() and "A full fine-tuning of a model given" in body
    front, body = card(tmp_path, config(model={"name": "smollm2-135m"}), base="owner/other")
    assert front["base_model"] == "owner/other" and "license" not in front
    assert "# owner/other, steered" in body


def test_a_given_model_is_named_by_its_hub_id_alone(tmp_path):
    lm = oracle.language_model()
    assert name_of_given(lm) == GIVEN_MODEL
    lm.config._name_or_path = "owner/model"
    assert name_of_given(lm) == "owner/model"
    lm.config._name_or_path = str(tmp_path)
    assert name_of_given(lm) == GIVEN_MODEL


def test_given_prompts_are_not_called_by_the_configurations_file(tmp_path):
    _, body = card(tmp_path, config())
    assert "to prompts of openings.jsonl." in body
    _, body = card(tmp_path, config(), prompts=GIVEN_PROMPTS)
    assert "to prompts given from Python." in body and "openings" not in body


def test_a_run_on_a_given_model_and_prompts_says_so(tmp_path):
    text = (run(tmp_path, iterations=1, model={"lora": {"r": 2}}) / "model/README.md").read_text()
    assert "A LoRA adapter of a model given from Python" in text
    assert "to prompts given from Python." in text
    assert "base_model:" not in text and "license:" not in text


def test_what_was_saved_decides_whether_the_card_is_of_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    front, body = card(tmp_path, config(model={"lora": None}), base=GIVEN_MODEL)
    assert front["library_name"] == "peft" and "lora" not in front["tags"]
    assert "An adapter of a model given from Python" in body
    assert "PeftModel.from_pretrained(base, folder)" in code(body)


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_the_code_to_load_it_samples_as_in_training(tmp_path, lora):
    settings = config(model={"lora": lora}, sampling={"stop": ["\n", '"end"']})
    block = code(card(tmp_path, settings)[1])
    assert ("GenerationConfig.from_pretrained(folder)" in block) == (lora is not None)
    assert "stop_strings=['\\n', '\"end\"'], tokenizer=tokenizer" in block
    assert "stop_strings" not in code(card(tmp_path, config(model={"lora": lora}))[1])


def test_samples_of_one_prompt_widen_the_interval(tmp_path):
    def rows(rise: float) -> Evaluation:
        scores = [rise * (i // 10) for i in range(40)]  # 4 prompts, 10 samples of each
        made = evaluation(scores, "fine")
        return Evaluation({}, [r | {"prompt": f"p{i // 10}"} for i, r in enumerate(made.rows)])

    text = write_model_card(tmp_path, config(), rows(0.0), rows(1.0), 40).read_text()
    [score] = table_rows(text, "score")
    alone = "+1.500 (0.500 … 2.500)"  # the interval of the four rises 0, 1, 2, 3
    assert score[3] == alone and score[2] == alone.removeprefix("+")


def test_the_card_says_which_prompts_were_measured(tmp_path):
    after = evaluation([1.0], "fine")
    text = write_model_card(tmp_path, config(), after, after, 40).read_text()
    assert "responses to held-out prompts" in text
    trained = dataclasses.replace(after, is_held_out=False)
    text = write_model_card(tmp_path, config(), after, trained, 40).read_text()
    assert "responses to training prompts" in text and "to held-out" not in text


def test_a_secret_in_a_path_or_a_warning_is_no_part_of_the_card(tmp_path, monkeypatch):
    secret = "canary_in_the_environment"  # whose dashes Markdown escapes
    monkeypatch.setenv("MY_TOKEN", secret)
    given = config(prompts={"path": f"{secret}.jsonl"}, model={"name": f"/models/{secret}"})
    front, body = card(tmp_path, given, caveats=[secret], audit=[secret])
    assert "canary" not in body + str(front) and body.count("hidden") >= 5
