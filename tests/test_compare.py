"""Runs side by side: what compares, what is warned of, and damaged files in words."""

import json
from pathlib import Path
from typing import Any

import pytest
from compared import NONE, content, run, support, written

from rlalign.cli import main
from rlalign.compare import compare, labels_of, load, mismatches, rows_of, table
from rlalign.config import ConfigError
from rlalign.report.compare_page import compare_page

# -- what does not compare


def test_runs_that_do_not_compare_are_warned_of():
    other = content()["target"] | {"hash": "another"}
    lines = mismatches([run("one"), run("two", target=other), run("three", samples=50)])
    assert lines == [
        "two was measured against another target than one: their distances to it do not compare; "
        "measure both with one --config",
        "number of samples: 50 in three, 100 in one: intervals, and what has none, depend on it",
    ]
    assert mismatches([run("one"), run("two")]) == []
    for key in ("reference_model", "prompts", "seed", "held_out", "dtype"):
        assert len(mismatches([run("one"), run("two", **{key: 7})])) == 1
    (line,) = mismatches([run("one"), run("two", prompts_hash="others")])
    assert line.startswith("prompts: those of two are others than those of one")
    page = compare_page([run("one")], [line])
    assert f'<p class="warn">{line}</p>' in page


# -- the command


def test_the_table_fits_the_terminal():
    names = ["a-name-that-is-longer-than-most-names-are-0", "a-name-that-is-longer-than-most-1"]
    refusal = support(ess=3.0, pareto_k=None, refusal="word " * 40)
    shown = table([run(names[0]), run(names[1]), run("three", support=refusal)])
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[:4] == ["reference", "3.0", "±", "0.1"]
    # Nothing of a name is lost: its end may be all that differs.
    assert all(name in "".join(line[:24].strip() for line in lines) for name in names)
    assert "three: no distance to P_T: word word" in shown


def test_the_command_writes_the_page(tmp_path, capsys):
    a, b = written(tmp_path / "a" / "run"), written(tmp_path / "b" / "run", distance=0.7)
    out = tmp_path / "page.html"
    assert main(["compare", str(a), str(b), "--out", str(out)]) == 0
    assert f"page  {out}" in capsys.readouterr().out
    # Two runs of one name are told apart by where they lie.
    assert "<h1>Comparison of a/run, b/run</h1>" in out.read_text(encoding="utf-8")


def test_labels_are_as_short_as_tells_them_apart():
    folders = map(Path, ["x/1/run", "y/1/run", "y/2/run", "other"])
    assert labels_of(list(folders)) == ["x/1/run", "y/1/run", "2/run", "other"]


def test_a_response_may_hold_any_line_separator(tmp_path):
    rows = [
        {"prompt": "p", "response": "a\u2028b\x85c", "drawn_by": "policy"},
        {"prompt": 1, "response": "r", "drawn_by": "policy"},
    ]
    file = tmp_path / "eval_samples.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join([*lines, '{"prompt": "half']), encoding="utf-8")
    assert rows_of(file) == rows[:1]


def test_what_cannot_be_compared_is_refused_in_words(tmp_path):
    good, bare = written(tmp_path / "good"), tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(ConfigError, match=r"has no eval.json; run `rlalign eval .*bare` first"):
        load([str(bare)])
    with pytest.raises(ConfigError, match="is named twice"):
        load([str(good), str(good / "..") + "/good"])
    with pytest.raises(ConfigError, match="name a run or more"):
        load([])
    with pytest.raises(ConfigError, match="there is no folder"):
        compare([str(good)], str(tmp_path / "no" / "page.html"))
    with pytest.raises(ConfigError, match="is a folder"):
        compare([str(good)], str(tmp_path))
    assert main(["compare", str(tmp_path / "nothing")]) == 2
    assert main(["compare"]) == 2


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in content().items() if name != key}


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1]", "is damaged: all of it"),
        ('{"reference": {}, "policy": {}}', "has format 'no number', and 2 is read here"),
        (json.dumps(content(format=1)), "has format 1, and 2 is read here"),
        (json.dumps(without("support")), "is damaged: support: Field required"),
        (json.dumps(content(prompts="2")), "is damaged: prompts: Input should be a valid integer"),
        (json.dumps(content(to_target={})), "is damaged: all of it: .*forward_kl, js, reverse_kl"),
        (json.dumps(content(texts={})), "is damaged: .* distinct_1, .* missing"),
        (
            json.dumps(content(log_z={"lower": NONE | {"low": 0.5}, "upper": NONE})),
            "is damaged: log_z.lower: .*an interval with one end",
        ),
    ],
)
def test_a_damaged_eval_json_is_refused_in_words(tmp_path, damaged, said, capsys):
    (tmp_path / "eval.json").write_text(damaged)
    with pytest.raises(ConfigError, match=said) as caught:
        load([str(tmp_path)])
    assert str(caught.value).endswith(f"run `rlalign eval {tmp_path}` again")
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 2
    assert "Traceback" not in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_metrics_that_are_no_text_are_refused_in_words(tmp_path):
    folder = written(tmp_path / "run")
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="metrics or samples cannot be read"):
        load([str(folder)])
