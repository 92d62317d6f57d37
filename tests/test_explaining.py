"""`rlalign config --explain` and `--diff`."""

from pathlib import Path

import pytest

from rlalign.cli import main
from rlalign.explaining import ABSENT, difference, explain, in_words
from rlalign.settings.method_sections import AnyRun
from rlalign.settings.schema import settings

FILE = "rewards:\n  sun: {kind: lexical.contains, words: [sun], weight: 2}\nkl: {coef: 0.3}\n"
A = ["--config", "a.yaml"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(FILE)


def one(name, argv=A):
    (found,) = explain(name, argv, "a.yaml")
    return found


def test_a_value_is_told_with_where_it_was_written():
    assert (one("kl.coef").value, one("kl.coef").source) == (0.3, "a.yaml")
    assert one("kl.coef", [*A, "--kl.coef=0.5"]).source == "the command line"
    assert one("--kl.coef", []).value == 0.3  # the default's file, with or without the dashes
    assert one("train.iterations").source == "the defaults"
    group = [*A, "--model.lora={r: 4}"]
    assert (one("model.lora.r", group).value, one("model.lora.r", group).source) == (
        4,
        "the command line",
    )


def test_a_setting_of_a_group_that_is_null_is_not_read():
    assert one("model.lora.r").value is ABSENT
    assert "not read" in in_words(one("model.lora.r"), 80)


def test_the_meaning_range_and_default_are_the_schemas():
    words = in_words(one("kl.coef"), 60)
    known = next(s for s in settings(AnyRun.model_json_schema()) if s.path == "kl.coef")
    assert words.startswith("kl.coef = 0.3\n") and max(map(len, words.splitlines())) <= 60
    text = " ".join(words.split())
    assert known.description in text and "A number of at least 0. The default: 0.1." in text


def test_a_section_is_explained_whole_and_every_setting_alone():
    names = [found.setting.path for found in explain("kl", A, "a.yaml")]
    assert names == [s.path for s in settings(AnyRun.model_json_schema()) if s.path[:3] == "kl."]
    for setting in settings(AnyRun.model_json_schema()):
        if setting.path != "rewards":
            told = explain(setting.path, A, "a.yaml")[0].setting
            assert (told.path, told.default) == (setting.path, setting.default)
            assert told.description == setting.description


def test_a_reward_is_explained_by_its_kind():
    assert one("rewards.sun.weight").value == 2.0 and one("rewards.sun.weight").source == "a.yaml"
    assert one("rewards.sun.mode").source == "the defaults"
    assert "words and phrases" in one("rewards.sun.words").setting.description
    whole = [found.setting.path for found in explain("rewards", A, "a.yaml")]
    assert "rewards.sun.words" in whole and "rewards.sun.scale" in whole


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("kl.cof", "kl.cof is unknown; did you mean kl.coef?"),
        ("sampling.temp", "sampling.temp is unknown; did you mean sampling.temperature?"),
        ("rewards.sn", "no reward named sn; did you mean sun?"),
        ("rewards.sun.wrds", "rewards.sun.wrds is unknown; did you mean rewards.sun.words?"),
        ("rewards.sun.zzz", "rewards.sun.zzz is unknown; lexical.contains has kind, "),
        ("zzz", "zzz is unknown; the sections are model, "),
    ],
)
def test_an_unknown_name_gives_the_nearest(name, line, capsys):
    assert main(["config", *A, "--explain", name]) == 2
    assert capsys.readouterr().err.startswith(line)


def test_two_files_or_runs_are_compared(capsys):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(FILE.replace("0.3", "0.4").replace("sun]", "sun, moon]"))
    assert difference("a.yaml", "run") == [
        ("rewards.sun.words", '["sun"]', '["sun", "moon"]'),
        ("kl.coef", "0.3", "0.4"),
    ]
    assert main(["config", "--diff", "a.yaml", "run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["kl.coef", "0.3", "0.4"] in rows and len(rows) == 3
    assert main(["config", "--diff", "a.yaml", "a.yaml"]) == 0
    assert capsys.readouterr().out == "no setting differs\n"


def test_a_runs_folder_stands_for_its_configuration(capsys):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(FILE)
    assert main(["config", "--config=run", "--explain", "kl.coef"]) == 0
    assert capsys.readouterr().out.startswith("kl.coef = 0.3\n")
