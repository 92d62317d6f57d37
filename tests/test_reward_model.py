"""Preference pairs and the reward model that TRL's RewardTrainer makes of them."""

import importlib.util
import json
import math
import random
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rewards import RewardSet, parse_entries
from rlalign.algorithms.ppo import PPORun
from rlalign.config import ConfigError, from_mapping, load_config
from rlalign.pairs import Pair, read_pairs, report, split_pairs
from rlalign.reward_model import RewardModelRun, main, train

ROOT = Path(__file__).parent.parent
WORDS = ["<unk>", "</s>", "once", "the", "rain", "sun", "old", "user", "answer"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def language_model(folder, template=None):
    """A tiny random Llama on whole words, whose pad token is its EOS as SmolLM2's is."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("</s>", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("</s>", "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def pairs_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sunny_rows(count=48):
    """Pairs in which the text with `sun` is the better one, whatever its length."""
    draw = random.Random(0)

    def text(word):
        words = [*draw.choices(["the", "old", "once"], k=draw.randint(1, 5)), word]
        draw.shuffle(words)
        return " " + " ".join(words)

    starts = [f"{a} {b}" for a in WORDS[2:7] for b in WORDS[2:7]]
    return [
        {"prompt": starts[i % len(starts)], "chosen": text("sun"), "rejected": text("rain")}
        for i in range(count)
    ]


def messages(role, text):
    return [{"role": role, "content": text}]


def chat_rows():
    return [
        {
            "prompt": messages("user", row["prompt"]),
            "chosen": messages("assistant", row["chosen"].strip()),
            "rejected": messages("assistant", row["rejected"].strip()),
        }
        for row in sunny_rows()
    ]


@pytest.fixture
def settings(tmp_path):
    """Settings of a short run on the tiny model."""
    return {
        "model": {"name": language_model(tmp_path / "lm"), "lora": {"r": 4}},
        "pairs": {"path": pairs_file(tmp_path / "pairs.jsonl", sunny_rows()), "eval_fraction": 0.3},
        "train": {"epochs": 8, "batch_size": 8, "lr": 2e-2, "threads": 1},
        "run": {"name": "taste", "dir": str(tmp_path / "runs")},
    }


# -- training --------------------------------------------------------------------------------------


def test_it_learns_what_the_pairs_prefer_and_a_run_opens_it(settings, capsys):
    argv = [
        f"--{section}.{name}={json.dumps(value) if isinstance(value, dict) else value}"
        for section, values in settings.items()
        for name, value in values.items()
    ]
    assert main(argv) == 0
    folder = Path(settings["run"]["dir"]) / "taste"
    found = json.loads((folder / "report.json").read_text())
    assert found["accuracy"] > 0.9 and found["pairs"] > 8
    printed = capsys.readouterr().out
    assert f"{found['accuracy']:.3f} ± {found['accuracy_se']:.3f}" in printed
    entry = yaml.safe_load(printed[printed.rindex("rewards:\n") :])
    config = from_mapping(PPORun, entry)
    reward = RewardSet(parse_entries(config.rewards))
    output = reward(["once the", "once the"], [" the sun", " the rain"])
    assert output.values[0, 0] > output.values[1, 0]
    assert config.rewards["taste"]["scale"] == pytest.approx(1 / found["std"], rel=0.01)
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    assert f"{found['accuracy']:.3f}" in (folder / "model" / "README.md").read_text()


def test_the_saved_adapter_gives_the_values_that_plain_peft_gives(settings):
    config = from_mapping(RewardModelRun, settings)
    folder, is_chat, _ = train(config)
    assert not is_chat and not (folder.model / "model.safetensors").exists()
    base = AutoModelForSequenceClassification.from_pretrained(
        settings["model"]["name"], num_labels=1
    )
    plain = PeftModel.from_pretrained(base, folder.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder.model)
    assert tokenizer.pad_token == "<unk>" and tokenizer.chat_template is None
    plain.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        expected = plain(**tokenizer("once the the sun</s>", return_tensors="pt")).logits.item()
    entries = parse_entries({"taste": {"kind": "model.preference", "model": str(folder.model),
                                       "eos": True}})  # fmt: skip
    values = RewardSet(entries)(["once the"] * 2, [" the sun", " the old old rain"]).values
    assert values[0, 0] == pytest.approx(expected, abs=1e-4)


def test_all_weights_and_conversations_train_too(settings, tmp_path):
    settings["model"] = {"name": language_model(tmp_path / "chat", TEMPLATE), "lora": None}
    settings["pairs"]["path"] = pairs_file(tmp_path / "chat.jsonl", chat_rows())
    settings["train"]["lr"] = 5e-3
    folder, is_chat, found = train(from_mapping(RewardModelRun, settings))
    assert is_chat and found.accuracy > 0.9
    assert (folder.model / "model.safetensors").exists()
    assert AutoTokenizer.from_pretrained(folder.model).chat_template == TEMPLATE
    entries = parse_entries({"taste": {"kind": "model.preference", "model": str(folder.model)}})
    values = RewardSet(entries)(["the"] * 2, ["the sun", "the rain"]).values[:, 0]
    assert values[0] > values[1]


def test_the_same_seed_gives_the_same_model(settings):
    settings["train"]["epochs"] = 1
    first = train(from_mapping(RewardModelRun, settings))[2]
    settings["run"]["name"] = "again"
    assert train(from_mapping(RewardModelRun, settings))[2] == first
    settings["run"]["name"], settings["train"]["lr"] = "other", 1e-3
    assert train(from_mapping(RewardModelRun, settings))[2] != first


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "line 2 lacks 'rejected' (it has chosen, prompt)"),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "line 2: 'chosen' is 3; it must be text"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "line 2: 'chosen' and 'rejected' are"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "line 2: 'chosen' is empty"),
        (
            {"prompt": "a", "chosen": messages("assistant", "b"), "rejected": "c"},
            "line 2: 'chosen' is messages and 'prompt' is not",
        ),
        (chat_rows()[0], "line 2 holds messages and the lines before it text"),
        (
            {"prompt": [{"role": "user"}], "chosen": [], "rejected": []},
            "line 2: 'prompt' is [{'role': 'user'}]; it must be text, or messages",
        ),
    ],
)
def test_a_bad_pair_is_named_with_its_line(tmp_path, row, message):
    path = pairs_file(
        tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}, row]
    )
    with pytest.raises(ConfigError) as caught:
        read_pairs(path)
    assert message in str(caught.value) and str(caught.value).startswith(f"pairs.path={path}")


def test_lines_are_counted_with_the_empty_ones(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('\n\n{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    with pytest.raises(ConfigError, match="line 3: 'chosen' and 'rejected' are the same"):
        read_pairs(str(path))
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt":\n')
    with pytest.raises(ConfigError, match="line 2 is not JSON"):
        read_pairs(str(path))
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no pairs"):
        read_pairs(str(path))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--pairs.path=nope.jsonl", "pairs.path=nope.jsonl: there is no such file"),
        ("--train.micro_batch_size=6", "train.batch_size=8 is no multiple of train.micro_batch"),
        ("--run.resume=auto", "run.resume='auto': the training of a reward model is not resumed"),
        (
            "--model.quantization=4bit",
            "model.quantization=4bit: reward models are trained on whole",
        ),
        ("--train.epoch=3", "train.epoch"),
        ("--rewards.x.kind=lexical.contains", "rewards"),
    ],
)
def test_wrong_settings_end_with_code_2_before_any_folder_is_made(
    settings, override, message, capsys
):
    argv = [f"--pairs.path={settings['pairs']['path']}", f"--run.dir={settings['run']['dir']}",
            "--train.batch_size=8", "--train.micro_batch_size=8", override]  # fmt: skip
    assert main(argv) == 2
    assert message in capsys.readouterr().err
    assert not Path(settings["run"]["dir"]).exists()


def test_a_run_that_is_there_is_not_overwritten(settings):
    folder = Path(settings["run"]["dir"]) / "taste"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("x")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(from_mapping(RewardModelRun, settings))


def test_conversations_need_a_chat_template(settings, tmp_path):
    settings["pairs"]["path"] = pairs_file(tmp_path / "chat.jsonl", chat_rows())
    with pytest.raises(ConfigError, match="has no chat template; write prompt, chosen"):
        train(from_mapping(RewardModelRun, settings))


# -- the split and the report ----------------------------------------------------------------------


def test_no_prompt_is_on_both_sides():
    pairs = [Pair(f"p{i % 10}", f"good{i}", f"bad{i}") for i in range(40)]
    training, held_out = split_pairs(pairs, 0.2, seed=0)
    assert len(training) == 32 and len(held_out) == 8
    assert not {p.prompt for p in training} & {p.prompt for p in held_out}
    assert split_pairs(pairs, 0.2, seed=0)[1] == held_out != split_pairs(pairs, 0.2, seed=3)[1]
    with pytest.raises(ConfigError, match="a single prompt"):
        split_pairs(pairs[:1], 0.5, seed=0)


def test_the_report_by_hand():
    pairs = [Pair("", "aaaa", "b"), Pair("", "c", "dd"), Pair("", "ee", "ff"), Pair("", "g", "hh")]
    values = {"aaaa": 3.0, "b": 1.0, "c": 0.0, "dd": 1.0, "ee": 2.0, "ff": 2.0, "g": 4.0, "hh": 0.0}
    found = report(pairs, lambda prompts, texts: [values[t] for t in texts], len)
    assert found.pairs == 4
    assert found.accuracy == (1 + 0 + 0.5 + 1) / 4  # a tie is half
    assert found.accuracy_se == pytest.approx(math.sqrt(0.6875 / 3) / 2)
    assert found.margin == (2 - 1 + 0 + 4) / 4
    assert found.longer_wins == (1 + 0 + 0.5 + 0) / 4
    # the longer text has more in pairs 1 and 2, less in 4; pair 3 says nothing
    assert found.prefers_longer == (1 + 1 + 0.5 + 0) / 4
    assert found.mean == 13 / 8
    x, y = list(values.values()), [len(t) for t in values]
    assert found.length_correlation == pytest.approx(
        torch.corrcoef(torch.tensor([x, y]))[0, 1].item()
    )


def test_a_longer_text_shows_in_the_length_bias():
    pairs = [Pair("", "a" * n, "a" * (n + 1)) for n in range(1, 9)]
    found = report(pairs, lambda prompts, texts: [float(len(t)) for t in texts], len)
    assert (found.accuracy, found.longer_wins, found.prefers_longer) == (0.0, 0.0, 1.0)
    assert found.length_correlation == pytest.approx(1.0)


# -- what the project ships ------------------------------------------------------------------------


def experiment(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shipped_rows():
    file = ROOT / "experiments" / "data" / "preferences.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_the_projects_own_pairs_are_sound():
    pairs = read_pairs(str(ROOT / "experiments/data/preferences.jsonl"))
    rows = shipped_rows()
    assert 500 <= len(pairs) <= 600
    agree = sum(row["judge_chosen"] > row["judge_rejected"] for row in rows) / len(rows)
    assert 0.65 < agree < 0.9  # labels with noise, not the judge itself
    assert (ROOT / "experiments/data/preferences.jsonl").stat().st_size < 400_000


def test_the_judges_scores_in_the_file_are_the_judges():
    rows = shipped_rows()[:6]
    judge = experiment_judge()
    given = judge([row["prompt"] for row in rows], [row["chosen"] for row in rows])
    assert given == pytest.approx([row["judge_chosen"] for row in rows], abs=2e-3)


def experiment_judge():
    from rewards import registry

    path = ROOT / "experiments" / "judge.py"
    registry.load_file(path)
    judge = registry.get("experiment.judge").target()
    judge.load()
    return judge


def test_the_experiments_configurations_load(monkeypatch):
    monkeypatch.chdir(ROOT)
    load_config(RewardModelRun, [], default="experiments/reward_model.yaml")
    config = load_config(PPORun, ["--config=experiments/overoptimisation.yaml"])
    assert config.rewards["judge"]["weight"] == 0 and config.rewards["taste"]["weight"] == 1


def test_the_curve_is_means_in_standard_deviations_by_window(monkeypatch, tmp_path):
    curves = experiment("overoptimisation")
    rows = [
        {"iteration": i, "kl": float(i), "rewards": {"taste": 2.0 * i + k, "judge": 5.0 - i}}
        for i in range(1, 6)
        for k in (-1, 1)
    ]
    points = curves.curve(rows, {"taste": (2.0, 2.0), "judge": (0.0, 5.0)}, window=2)
    assert [(p["first"], p["last"]) for p in points] == [(1, 2), (3, 4), (5, 5)]
    assert [p["kl"] for p in points] == [1.5, 3.5, 5.0]
    assert [p["taste"] for p in points] == pytest.approx([0.5, 2.5, 4.0])
    assert [p["judge"] for p in points] == pytest.approx([0.7, 0.3, 0.0])
    assert points[2]["taste_se"] == pytest.approx(math.sqrt(0.5) / math.sqrt(2))
    assert "from its best, +0.70, to +0.00: a fall of 0.70" in curves.verdict(points)
    assert curves.draw(points, tmp_path / "curve.png").stat().st_size > 10_000


def test_the_fit_finds_the_coefficients_of_its_own_curve():
    curves = experiment("overoptimisation")
    points = [
        {"kl": kl, "judge": math.sqrt(kl) * (1.5 - 0.7 * math.log(math.sqrt(kl)))}
        for kl in (0.5, 2.0, 7.0, 20.0, 45.0)
    ]
    assert curves.fit(points, "judge") == pytest.approx((1.5, 0.7))
