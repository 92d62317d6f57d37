"""`rlalign rewards train`: reading, splitting, choosing, measuring, writing, and what it prints."""

import json
import math
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from rewards import RewardSet, parse_entries, trained
from rewards.trained import read_classifier
from rlalign.cli import main
from rlalign.problems import ConfigError
from rlalign.reward_training import command, linear, measure, training
from rlalign.reward_training.examples import Example, Examples, read_examples, split
from rlalign.reward_training.settings import Settings
from rlalign.reward_training.training import train_classifier

ROOT = Path(__file__).parent.parent
DATA = ROOT / "experiments" / "data" / "labelled.jsonl"
WORDS = {
    "sea": ["ship", "wave", "harbour", "sail", "tide"],
    "farm": ["cow", "barn", "field", "plough", "hay"],
}


def rows(each=8, labels=("sea", "farm")):
    """Texts of their label's words alone, all different."""
    return [
        {"text": " ".join(WORDS[label][(i + k) % 5] for k in range(2 + i // 5)), "label": label}
        for label in labels
        for i in range(each)
    ]


def write(folder, content, name="data.jsonl"):
    path = folder / name
    if not isinstance(content, str | bytes):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def examples(*pairs):
    made = [Example(i, text, label) for i, (text, label) in enumerate(pairs, 1)]
    return Examples(made, "data.jsonl", "0" * 64)


# -- reading --------------------------------------------------------------------------------------

SOUND = '{"text": "a ship", "label": "sea"}\n'


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (SOUND + '\n{"txt": "a", "label": "x"}', "line 3 has no column 'text' (--text text); did"),
        (SOUND + '{"text": "a"}', "line 2 has no column 'label' (--label label); its columns: tex"),
        (SOUND + '{"text": "a"', "line 2 is not JSON: Expecting ',' delimiter"),
        (SOUND + '["a", "b"]', "line 2 is not an object with named columns"),
        (SOUND + '"text label"', "line 2 is not an object with named columns"),
        ('{"text": 3, "label": "x"}', "line 1: text=3 must be text that is not blank"),
        ('{"text": " ", "label": "x"}', "line 1: text=' ' must be text that is not blank"),
        ('{"text": "a", "label": 0.5}', "line 1: label=0.5 must be text, a whole number or true"),
        ('{"text": "a", "label": null}', "line 1: label=None must be text, a whole number or tr"),
        ('{"text": "a", "label": ""}', "line 1: label='' must be text, a whole number or true"),
        (SOUND.encode() + b'{"text": "\xff"}', "line 2: not UTF-8 text (invalid start byte)"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, content, fault):
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        read_examples(path, "text", "label")
    assert f"--data {path}, {fault}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('text,label\n"two\nlines",sea\na,b,c\n', "line 4 has 3 cells; the first line names 2"),
        ("text,label,text\n", "line 1 names a column twice: text, label, text"),
        ("text,tag\na,b\n", "line 2 has no column 'label' (--label label); its columns: text, tag"),
        ('text,label\n"two\nlines",sea\n,sea\n', "line 4: text='' must be text"),
    ],
)
def test_a_faulty_line_of_a_table_is_named(tmp_path, content, fault):
    path = write(tmp_path, content, "data.csv")
    with pytest.raises(ConfigError) as caught:
        read_examples(path, "text", "label")
    assert f"--data {path}, {fault}" in str(caught.value)


def test_many_faults_are_told_together_and_counted(tmp_path):
    path = write(tmp_path, '{"text": "a"}\n' * 8)
    with pytest.raises(ConfigError) as caught:
        read_examples(path, "text", "label")
    lines = str(caught.value).splitlines()
    assert len(lines) == 6 and "line 5 has" in lines[4] and lines[5] == "… and 3 more"


@pytest.mark.parametrize(
    ("pairs", "fault"),
    [
        ([], "the column 'label' holds no example; a classifier needs two labels or more"),
        ([(f"t{i}", "sea") for i in range(9)], "the column 'label' holds only 'sea'; a classif"),
        (
            [(f"t{i}", "sea") for i in range(9)] + [("b", "farm")],
            "every label needs 5 different texts or more, but 'farm' has 1; add some",
        ),
        (
            [(f"t{i}", "sea") for i in range(9)] + [("b", "farm"), ("B ", "farm")] * 5,
            "every label needs 5 different texts or more, but 'farm' has 1; add some",
        ),
        (
            [(f"t{i}", f"id{i}") for i in range(9)],
            "'id4' has 1 and 4 other labels; add some or leave these labels out (or is 'label' no",
        ),
        (
            [("a", "Sea"), ("b", "farm"), ("c", "sea ")],
            "the labels 'Sea' (line 1) and 'sea ' (line 3) differ in case or spaces alone",
        ),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(tmp_path, pairs, fault):
    path = write(tmp_path, [{"text": text, "label": label} for text, label in pairs])
    with pytest.raises(ConfigError) as caught:
        read_examples(path, "text", "label")
    assert fault in str(caught.value)


@pytest.mark.parametrize("name", ["none.jsonl", "data.txt", "folder.jsonl"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "data.txt").write_text("a")
    with pytest.raises(ConfigError, match=r"there is no such file|not a \.jsonl|cannot be read"):
        read_examples(tmp_path / name, "text", "label")


def test_tables_and_lines_give_the_same_examples(tmp_path):
    data = [{"text": row["text"] + ', "so"\nit is\u2028', "label": row["label"]} for row in rows()]
    lines = read_examples(write(tmp_path, data), "text", "label").rows
    quoted = ['"' + row["text"].replace('"', '""') + f'",{row["label"]}' for row in data]
    tabs = ['"' + row["text"].replace('"', '""') + f'"\t{row["label"]}' for row in data]
    csv = write(tmp_path, b"\xef\xbb\xbf" + "\r\n".join(["text,label", *quoted]).encode(), "d.csv")
    tsv = write(tmp_path, "\n".join(["text\tlabel", *tabs]), "d.tsv")
    for path in (csv, tsv):
        found = read_examples(path, "text", "label").rows
        assert [(row.text, row.label) for row in found] == [(r.text, r.label) for r in lines]
        assert [row.line for row in found][:3] == [2, 4, 6]


def test_numbers_and_truth_values_are_labels_as_json_writes_them(tmp_path):
    data = [{"text": f"t{i}", "label": label} for label in (0, 1, True, False) for i in range(5)]
    assert read_examples(write(tmp_path, data), "text", "label").labels == [
        "0", "1", "false", "true",
    ]  # fmt: skip


# -- splitting ------------------------------------------------------------------------------------


def test_every_label_is_held_out_in_its_share_and_at_least_once():
    many = examples(*[(f"a{i}", "a") for i in range(40)], *[(f"b{i}", "b") for i in range(5)])
    for fraction, expected in ((0.2, {"a": 8, "b": 1}), (0.05, {"a": 2, "b": 1})):
        parts = split(many, fraction, seed=0)
        assert training.counts(parts.held_out) == expected
        assert len(parts.train) + len(parts.held_out) == 45
        assert not {row.text for row in parts.train} & {row.text for row in parts.held_out}


def test_equal_texts_are_on_one_side():
    pairs = [(f"Text  {i}", "a") for i in range(20)] + [(f"text {i} ", "a") for i in range(20)]
    pairs += [(f"other {i}", "b") for i in range(20)] + [("Text 3", "b")]
    for seed in range(5):
        parts = split(examples(*pairs), 0.3, seed)
        assert not {row.key for row in parts.train} & {row.key for row in parts.held_out}
        assert (parts.repeated, parts.conflicting) == (21, 1)


def test_the_split_depends_on_the_seed_alone():
    many = examples(*[(f"{label}{i}", label) for label in "ab" for i in range(30)])
    assert split(many, 0.2, 1) == split(many, 0.2, 1)
    assert split(many, 0.2, 1).held_out != split(many, 0.2, 2).held_out


# -- choosing -------------------------------------------------------------------------------------


def test_the_penalty_is_strong_where_there_is_nothing_to_learn_and_weak_where_all_is_clear():
    rng = np.random.default_rng(0)
    made = examples(*[(f"t{i}", "ab"[i % 2]) for i in range(80)]).rows
    noise = rng.normal(size=(80, 20))
    clear = np.array([[1.0 if i % 2 else -1.0] for i in range(80)])
    for features, strength in ((noise, linear.STRENGTHS[0]), (clear, linear.STRENGTHS[-1])):
        head = linear.fit_head(
            lambda seen, unseen, x=features: (x[seen], x[unseen]), made, ["a", "b"], False, 0
        )
        assert head.strength == strength
        assert head.log_losses[f"{strength:g}"] == min(head.log_losses.values())


def test_a_word_that_only_an_unseen_text_has_is_unknown_in_validation():
    texts = ["a ship", "a cow", "a ship elsewhere"]
    seen, unseen = linear.tfidf_parts(texts, "words")(np.array([0, 1]), np.array([2]))
    assert seen.shape[1] == unseen.shape[1] == 5  # a, ship, cow, a ship, a cow
    assert unseen.multiply(unseen).sum() == pytest.approx(1.0)


def test_equal_texts_are_in_one_fold():
    made = examples(*[(f"t{i % 10}", "ab"[i % 2]) for i in range(40)]).rows
    targets = np.array([i % 2 for i in range(40)])
    places = list(linear._folds(made, targets, seed=0))
    assert sorted(i for _, kept in places for i in kept) == list(range(40))
    for learnt, kept in places:
        assert not {made[i].key for i in learnt} & {made[i].key for i in kept}


def test_balanced_answers_a_half_where_the_text_says_nothing():
    made = examples(*[(f"t{i}", "a" if i % 5 else "b") for i in range(100)]).rows
    nothing = np.zeros((100, 1))
    for balanced, expected in ((False, math.log(20 / 80)), (True, 0.0)):
        head = linear.fit_head(
            lambda seen, unseen: (nothing[seen], nothing[unseen]), made, ["a", "b"], balanced, 0
        )
        assert head.intercept[0] == pytest.approx(expected, abs=1e-3)


# -- measuring ------------------------------------------------------------------------------------


def test_the_numbers_are_those_computed_by_hand():
    held_out = examples(("1", "a"), ("2", "a"), ("3", "b"), ("4", "b")).rows
    p_b = np.array([0.1, 0.6, 0.6, 0.9])
    found = measure.evaluate(np.stack([1 - p_b, p_b], axis=1), held_out, ["a", "b"], False)
    numbers = found["held_out"]
    assert numbers["accuracy"] == 0.75 and numbers["auc"] == pytest.approx(3.5 / 4)
    assert numbers["brier"] == pytest.approx((0.01 + 0.36 + 0.16 + 0.01) / 4)
    assert numbers["log_loss"] == pytest.approx(-(2 * math.log(0.9) + math.log(0.24)) / 4)
    # of the predicted label: 0.9 twice, always right; 0.6 twice, right once
    assert numbers["ece"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert numbers["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["confusion"] == [[1, 1], [0, 2]]
    assert found["labels"]["b"]["ece"] == pytest.approx(0.25 * 0.1 + 0.5 * 0.1 + 0.25 * 0.1)
    assert found["labels"]["b"]["precision"] == pytest.approx(2 / 3)
    assert [(one["count"], one["share"]) for one in found["reliability"]] == [(2, 0.5), (2, 1.0)]


def test_of_several_labels_auc_is_one_against_the_rest_and_brier_a_sum():
    held_out = examples(("1", "a"), ("2", "b"), ("3", "c")).rows
    values = np.array([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    found = measure.evaluate(values, held_out, ["a", "b", "c"], False)
    numbers = found["held_out"]
    assert numbers["auc"] == pytest.approx(1.0)
    assert numbers["ece"] == pytest.approx((0.2 + 0.5 + 0.4) / 3)  # 0.8, 0.5 (wrong), 0.6
    assert found["labels"]["a"]["ece"] == pytest.approx((0.2 + 0.5 + 0.2) / 3)  # 0.8, 0.5, 0.2
    assert numbers["brier"] == pytest.approx((0.06 + 0.25 + 0.49 + 0.04 + 0.04 + 0.04 + 0.16) / 3)


def test_balanced_calibration_counts_labels_alike():
    held_out = examples(("1", "a"), ("2", "a"), ("3", "a"), ("4", "b")).rows
    values = np.array([[0.9, 0.1]] * 3 + [[0.6, 0.4]])
    numbers = measure.evaluate(values, held_out, ["a", "b"], True)["held_out"]
    assert numbers["brier"] == pytest.approx((0.01 + 0.36) / 2)
    assert numbers["ece"] == pytest.approx(0.5 * 0.1 + 0.5 * 0.6)
    assert numbers["accuracy"] == 0.75


def test_the_interval_is_wilsons():
    low, high = measure.wilson(np.array([0.0, 0.5, 1.0]), np.array([10, 10, 10]))
    assert low == pytest.approx([0, 0.2366, 0.7225], abs=1e-4)
    assert high == pytest.approx([0.2775, 0.7634, 1.0], abs=1e-4)


def test_the_speed_is_the_batch_over_the_median_of_the_timed_calls(monkeypatch):
    now, naps = [0.0], iter([9.0, 0.5, 0.25, 9.0, 0.25, 0.5])  # the first is the warm-up
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def probabilities(texts):
        assert len(texts) == 64
        now[0] += next(naps)

    found = measure.speed(SimpleNamespace(probabilities=probabilities), ["a b", "c d"])
    assert found["texts_per_second"] == 128 and found["words_per_text"] == 2


# -- training and writing -------------------------------------------------------------------------


def settings(folder, content=None, **options):
    return Settings(
        write(folder, rows() if content is None else content), folder / "out", **options
    )


def test_a_folder_holds_the_classifier_its_report_and_its_picture(tmp_path):
    made = train_classifier(settings(tmp_path))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "classifier.json", "weights.safetensors", "vocabulary.json", "report.json", "report.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == made.report
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "out"}
    assert made.report["held_out"]["texts"] == 4 and made.report["held_out"]["accuracy"] == 1.0
    assert made.report["labels"]["sea"]["train"] == 6


def test_the_same_seed_gives_the_same_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        train_classifier(settings(tmp_path / name))
    for name in ("classifier.json", "weights.safetensors", "vocabulary.json"):
        one, two = (tmp_path / side / "out" / name for side in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_what_is_there_is_replaced_only_when_asked_and_only_a_classifier(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    train_classifier(settings(tmp_path))  # an empty folder is no loss
    with pytest.raises(ConfigError, match="holds a classifier already; name another folder, or re"):
        train_classifier(settings(tmp_path))
    train_classifier(settings(tmp_path, kind="style", overwrite=True))
    assert read_classifier(str(out)).about.kind == "style"
    (out / "classifier.json").unlink()
    with pytest.raises(ConfigError, match="is there and is no classifier"):
        train_classifier(settings(tmp_path, overwrite=True))
    assert (out / "report.json").exists()


def test_a_training_that_fails_leaves_nothing_and_harms_nothing(tmp_path, monkeypatch):
    train_classifier(settings(tmp_path))
    before = (tmp_path / "out" / "classifier.json").read_bytes()

    def broken(*arguments):
        raise RuntimeError("no picture")

    monkeypatch.setattr(training.picture, "draw", broken)
    with pytest.raises(RuntimeError, match="no picture"):
        train_classifier(settings(tmp_path, kind="style", overwrite=True))
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "out"}
    assert (tmp_path / "out" / "classifier.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"model": "x"}, "--model x belongs to --method embedding or encoder, and the method is"),
        ({"method": "embedding", "features": "words"}, "--features words belongs to --method tfid"),
        ({"method": "embedding", "max_length": 9}, "--max-length 9 belongs to --method encoder,"),
        ({"method": "encoder", "lr": 0.0}, "--lr 0 must lie between 0 and 1; 5e-05 is usual"),
        ({"held_out": 0.9}, "--held-out 0.9 is the share of texts to measure on; give 0.05 to"),
        ({"label": "text"}, "--text text and --label text are the same column; name two"),
        ({"method": "embedding", "model": "./none"}, "--model='./none': there is no such directo"),
        ({"method": "encoder", "model": "./none"}, "--model ./none: there is no such directory"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, options, fault):
    with pytest.raises(ConfigError) as caught:
        train_classifier(settings(tmp_path, **options))
    assert str(caught.value).startswith(fault)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_noise_uneven_labels_and_contradictions_are_remarked_on(tmp_path):
    rng = np.random.default_rng(0)
    vocabulary = [word for words in WORDS.values() for word in words]
    noise = [
        {"text": " ".join(rng.choice(vocabulary, 6)), "label": "farm" if i % 5 else "sea"}
        for i in range(100)
    ]
    noise += [{"text": noise[0]["text"], "label": "farm"}]
    told = "\n".join(train_classifier(settings(tmp_path, noise)).notes)
    assert "only 20 texts were held out" in told
    assert "hardly better than answering without reading (accuracy 0.8" in told
    assert "the labels are uneven (farm 6" in told and "--balanced" in told
    assert "1 texts stand in the data with several labels" in told
    (tmp_path / "more").mkdir()
    balanced = settings(tmp_path / "more", noise, balanced=True)
    assert "uneven" not in "\n".join(train_classifier(balanced).notes)


# -- the command ----------------------------------------------------------------------------------


def test_the_example_of_the_command_works_and_its_lines_can_be_pasted(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command.EXAMPLE)[1:]) == 0
    out = capsys.readouterr().out
    numbers = json.loads(Path("runs/classifiers/style/report.json").read_text())["held_out"]
    assert (
        f"accuracy     {numbers['accuracy']:.3f}   (always the most frequent label: 0.500)" in out
    )
    pasted = yaml.safe_load(out[out.index("To reward a label") :].split("\n", 1)[1])
    assert list(pasted) == ["casual", "formal"]
    rewards = RewardSet(parse_entries(pasted))
    texts = ["omg that's so cool lol!!", "The committee approved the annual report."]
    casual, formal = rewards([""] * 2, texts).values.T
    assert casual[0] > 0.9 and formal[1] > 0.9 and casual + formal == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("label", ["yes", "1", "C#: §1", "naïve", "null", "a: b", "-"])
def test_any_label_makes_a_line_that_reads_back(tmp_path, label):
    line = command.entry_line(Settings(tmp_path, Path("runs/x: y")), label)
    (entry,) = parse_entries(yaml.safe_load(line))
    assert entry.params["label"] == label and entry.params["path"] == "runs/x: y"
    assert "\n" not in line


def test_a_wrong_choice_ends_with_2(tmp_path, capsys):
    path = write(tmp_path, rows())
    argv = ["rewards", "train", "--data", str(path), "--out", str(tmp_path / "out")]
    assert main([*argv, "--method", "tfid"]) == 2
    assert "'tfid' is not one of" in capsys.readouterr().err
    assert main([*argv, "--label", "lable"]) == 2
    assert "line 1 has no column 'lable'" in capsys.readouterr().err


# -- what the project ships -----------------------------------------------------------------------


def test_the_labelled_set_is_even_and_without_repetition():
    data = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    pairs = [(row["topic"], row["style"]) for row in data]
    assert len(data) == 224 and {pairs.count(pair) for pair in pairs} == {28}
    assert len({row["text"].casefold() for row in data}) == 224
    assert {name for row in data for name in row} == {"text", "topic", "style"}


def test_the_example_that_comes_with_the_package_is_what_the_command_makes(tmp_path):
    made = Settings(DATA, tmp_path / "styles", label="style", kind="style")
    train_classifier(made)
    ours, shipped = read_classifier(str(tmp_path / "styles")), read_classifier("example-styles")
    assert ours.probabilities(trained.PROBES) == pytest.approx(
        shipped.probabilities(trained.PROBES), abs=1e-4
    )
    sha256 = ours.about.training["data"]["sha256"]
    for name in trained.EXAMPLES:
        about = json.loads((trained.EXAMPLES[name] / "classifier.json").read_text())
        assert about["training"]["data"]["sha256"] == sha256
