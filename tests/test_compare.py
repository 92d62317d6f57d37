"""Runs side by side: what is marked, what is warned of, and that no text of a run is markup."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlalign.cli import main
from rlalign.compare import Measured, compare, load, mismatches, table
from rlalign.config import ConfigError
from rlalign.report.compare_page import clear_winner, compare_page

HOSTILE = '<script>alert("1")</script>&\x1b[31m\u202e'


def known(value: float, half: float = 0.1) -> dict[str, Any]:
    return {"value": value, "se": half / 1.96, "low": value - half, "high": value + half}


NONE = {"value": None, "se": None, "low": None, "high": None, "note": "refused"}


def feature(role: str, policy: dict, reference: dict, target: dict, wish=None) -> dict[str, Any]:
    means = {"policy": policy, "reference": reference, "target": target}
    return {"role": role, "kind": "k", "wish": wish} | means


def content(distance: float = 0.5, **changes: Any) -> dict[str, Any]:
    """What `rlalign eval` writes, the distances all the same."""
    both = {"policy": known(distance), "reference": known(3.0)}
    texts = {
        "texts": 100, "distinct_1": 0.2, "distinct_2": 0.5, "distinct_3": 0.8,
        "self_bleu_5_words": 0.1, "self_bleu_5_characters": 0.8,
        "perplexity_under_reference": 20.0, "length": 10.0, "length_std": 1.0, "unfinished": 0.5,
    }  # fmt: skip
    return {
        "format": 1,
        "reference_model": "tiny",
        "prompts": 2,
        "samples": 100,
        "seed": 0,
        "held_out": True,
        "target": {"formula": "P_T(y|x) ∝ a(y|x)", "hash": "h", "notes": []},
        "features": {
            "asked": feature("moment", known(0.5), known(0.1), known(0.5), [0.5, 0.5]),
            "kept": feature("metric", known(0.3), known(0.3), known(0.32)),
            "lost": feature("judge", known(0.1, 0.05), known(0.6, 0.05), known(0.6, 0.05)),
            # The target itself moves it, and the policy with it.
            "moved": feature("metric", known(0.9, 0.05), known(0.2, 0.05), known(0.9, 0.05)),
        },
        "to_target": {name: both for name in ("forward_kl", "reverse_kl", "tv", "js")},
        "to_reference": {
            "kl_policy_reference": known(1.0),
            "kl_reference_policy": known(1.5),
        },
        "support": {"ess": 80.0, "pareto_k": 0.2, "threshold": 0.6, "refusal": ""},
        "log_z": {"lower": known(-1.0), "upper": known(-0.9), "exact_samples": 9},
        "texts": {"policy": texts | {"distinct_2": 0.4}, "reference": texts},
        "witnesses": {
            "too_often": [{"prompt": "p", "response": "again", "log_ratio": 2.0}],
            "too_seldom": [{"prompt": "p", "response": "never", "log_ratio": -3.0}],
        },
    } | changes


def run(label: str, distance: float = 0.5, **changes: Any) -> Measured:
    samples = [
        {"prompt": "p", "response": f"{by} of {label}", "drawn_by": by}
        for by in ("policy", "reference")
    ]
    metrics = [{"iteration": i, "kl/ref": 0.1 * i, "reward/asked": 0.1 * i} for i in range(5)]
    return Measured(label, content(distance, **changes), samples, metrics)


def written(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(json.dumps(content(**changes)))
    return folder


def row_of(page: str, start: str) -> str:
    return next(row for row in re.findall(r"<tr>.*?</tr>", page) if row.startswith(start))


def test_the_page_has_every_section_and_every_run():
    page = compare_page([run("one"), run("two")], [])
    for title in ("Reward against KL", "Distances", "What was asked for", "What was forgotten",
                  "Diversity and language", "Samples side by side", "Witnesses"):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    for shown in ("policy of one", "policy of two", "reference of one", "again", "never"):
        assert shown in page
    assert page.count("data:image/png;base64,") == 1
    assert "http" not in page.replace("http-equiv", "")  # nothing comes from elsewhere


def test_text_of_a_run_is_never_markup():
    hostile = run(HOSTILE)
    samples = [{"prompt": HOSTILE, "response": HOSTILE, "drawn_by": "policy"}]
    witness = [{"prompt": HOSTILE, "response": HOSTILE, "log_ratio": None}]
    everything = hostile.content | {
        "reference_model": HOSTILE,
        "target": {"formula": HOSTILE, "hash": "h", "notes": [HOSTILE]},
        "features": {HOSTILE: hostile.content["features"]["lost"]},
        "witnesses": {"too_often": witness},
        "support": {"ess": 0.0, "pareto_k": None, "threshold": 0.5, "refusal": HOSTILE},
    }
    page = compare_page([Measured(HOSTILE, everything, samples, [])], [HOSTILE])
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert page.count("&lt;script&gt;") >= 9


def test_the_smallest_is_marked_where_its_interval_is_below_all_others():
    assert clear_winner([known(0.5), known(0.2), known(0.9)]) == 1
    assert clear_winner([known(0.5), known(0.35), known(0.9)]) is None
    assert clear_winner([known(0.5), NONE]) is None
    near, far = run("near", 0.2), run("far", 0.9)
    page = compare_page([far, near], [])
    assert row_of(page, "<tr><td>near</td>").count('class="n best"') == 4
    assert "best" not in row_of(page, "<tr><td>far</td>")


def test_forgotten_is_what_moved_beyond_the_target():
    page = compare_page([run("one")], [])
    assert 'class="n moved"' in row_of(page, "<tr><td>lost (judge)</td>")
    assert "moved" not in row_of(page, "<tr><td>kept (metric)</td>")
    assert 'class="n moved"' not in row_of(page, "<tr><td>moved (metric)</td>")
    assert "0.400 (-20%)" in row_of(page, "<tr><td>distinct-2</td>")


def test_refusals_stand_below_the_table():
    refused = {"ess": 3.0, "pareto_k": 1.2, "threshold": 0.6, "refusal": "the tail is too heavy"}
    nowhere = {name: {"policy": NONE, "reference": NONE} for name in content()["to_target"]}
    page = compare_page([run("one", support=refused, to_target=nowhere)], [])
    assert "one: the tail is too heavy" in page


def test_runs_that_do_not_compare_are_warned_of():
    other = content()["target"] | {"hash": "another"}
    lines = mismatches([run("one"), run("two", target=other), run("three", samples=50)])
    assert lines == [
        "two was measured against another target than one: their distances to it do not compare; "
        "measure both with one --config",
        "number of samples: 50 in three, 100 in one",
    ]
    assert mismatches([run("one"), run("two")]) == []


def test_the_table_fits_the_terminal():
    lines = table([run("a-name-that-is-longer-than-most-names-are"), run("two")]).splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= 80
    assert lines[1].split()[:2] == ["reference", "3.0"]


def test_the_command_writes_the_page(tmp_path, capsys):
    a, b = written(tmp_path / "a" / "run"), written(tmp_path / "b" / "run", distance=0.7)
    out = tmp_path / "page.html"
    assert main(["compare", str(a), str(b), "--out", str(out)]) == 0
    assert f"page  {out}" in capsys.readouterr().out
    # Two runs of one name are told apart by their paths.
    assert str(a) in out.read_text() and str(b) in out.read_text()


def test_what_cannot_be_compared_is_refused_in_words(tmp_path, capsys):
    good, bare = written(tmp_path / "good"), tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(ConfigError, match=r"has no eval.json; run `rlalign eval .*bare` first"):
        load([str(bare)])
    with pytest.raises(ConfigError, match="is named twice"):
        load([str(good), str(good / "..") + "/good"])
    (bare / "eval.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load([str(bare)])
    (bare / "eval.json").write_text('{"reference": {}, "policy": {}}')
    with pytest.raises(ConfigError, match="was not written by this version"):
        load([str(bare)])
    with pytest.raises(ConfigError, match="there is no folder"):
        compare([str(good)], str(tmp_path / "no" / "page.html"))
    with pytest.raises(ConfigError, match="is a folder"):
        compare([str(good)], str(tmp_path))
    assert main(["compare", str(tmp_path / "nothing")]) == 2
