"""Runs side by side: what is marked, what is warned of, and that no text of a run is markup."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlalign.cli import main
from rlalign.compare import Measured, compare, labels_of, load, mismatches, rows_of, table
from rlalign.config import ConfigError
from rlalign.report.compare_page import compare_page
from rlalign.report.compare_pictures import final, frontier, sign, way
from rlalign.report.compare_readings import change, clear_least

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
        "perplexity_under_reference": 20.0, "length": 10.0, "length_std": 1.0, "unfinished": 0.0,
    }  # fmt: skip
    return {
        "format": 1,
        "reference_model": "tiny",
        "measured": "runs/x",
        "method": "dpg",
        "prompts": 2,
        "samples": 100,
        "seed": 0,
        "held_out": True,
        "target": {"formula": "P_T(y|x) ∝ a(y|x)", "hash": "h", "notes": [], "lambdas": {"m": 2}},
        "features": {
            "asked": feature("moment", known(0.5), known(0.1), known(0.5), [0.5, 0.5]),
            "kept": feature("metric", known(0.3), known(0.3), known(0.32)),
            "lost": feature("judge", known(0.1, 0.05), known(0.6, 0.05), known(0.6, 0.05)),
            # The target itself moves it, and the policy with it.
            "moved": feature("metric", known(0.9, 0.05), known(0.2, 0.05), known(0.9, 0.05)),
        },
        "to_target": {name: both for name in ("forward_kl", "reverse_kl", "tv", "js")},
        "to_reference": {
            "kl_policy_reference": known(distance),
            "kl_reference_policy": known(distance),
        },
        "support": {"ess": 80.0, "pareto_k": 0.2, "threshold": 0.6, "refusal": ""},
        "log_z": {"lower": known(-1.0), "upper": known(-0.9), "exact_samples": 9},
        "texts": {"policy": texts | {"distinct_2": 0.4, "unfinished": 0.25}, "reference": texts},
        "witnesses": {
            "too_often": [{"prompt": "p", "response": "again", "log_ratio": 2.0}],
            "too_seldom": [{"prompt": "p", "response": "never", "log_ratio": -3.0}],
        },
        "policy": {"eval/score": 2.0, "eval/score_se": 0.5},
        "reference": {"eval/score": 1.0, "eval/score_se": None},
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


def section_of(page: str, title: str) -> str:
    return next(part for part in page.split("<section>") if part.startswith(f"<h2>{title}</h2>"))


def row_of(page: str, title: str, start: str) -> str:
    """The row of a section's table that begins with `start`."""
    rows = re.findall(r"<tr>.*?</tr>", section_of(page, title))
    return next(row for row in rows if row.startswith(f"<tr><td>{start}</td>"))


# -- the page


def test_the_page_has_every_section_in_order_and_every_run():
    page = compare_page([run("one"), run("two")], [])
    titles = ["Reward against KL", "Distances", "Features", "What was forgotten", "Diversity",
              "Samples side by side", "Witnesses"]  # fmt: skip
    assert re.findall(r"<h2>(.*?)</h2>", page) == titles
    for shown in ("policy of one", "policy of two", "reference of one"):
        assert shown in section_of(page, "Samples side by side")
    assert "reference of two" not in page  # the same model's: one is enough
    witnesses = section_of(page, "Witnesses")
    assert witnesses.count("again") == witnesses.count("never") == 2
    assert "+2.0" in witnesses and "-3.0" in witnesses
    assert row_of(page, "Diversity", "one").count('class="n"') == 9


def test_the_page_needs_nothing_beside_it():
    page = compare_page([run("one")], [])
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[^\"]*", "", page))
    assert {source[:22] for source in re.findall(r'src(?:set)?="([^"]*)', page)} == {
        "data:image/png;base64,"
    }


def test_text_of_a_run_is_never_markup():
    hostile = run(HOSTILE)
    samples = [{"prompt": HOSTILE, "response": HOSTILE, "drawn_by": "policy"}]
    witness = [{"prompt": HOSTILE, "response": HOSTILE, "log_ratio": None}]
    everything = hostile.content | {
        "reference_model": HOSTILE,
        "measured": HOSTILE,
        "method": HOSTILE,
        "target": {"formula": HOSTILE, "hash": "h", "notes": [HOSTILE], "lambdas": {HOSTILE: 1.0}},
        "features": {
            HOSTILE: hostile.content["features"]["lost"],
            f"{HOSTILE} 2": hostile.content["features"]["asked"],
        },
        "witnesses": {"too_often": witness},
        "support": {"ess": 0.0, "pareto_k": None, "threshold": 0.5, "refusal": HOSTILE},
        "log_z": {"lower": known(1.0), "upper": NONE | {"note": f"{HOSTILE} 3"}},
    }
    page = compare_page([Measured(HOSTILE, everything, samples, [])], [HOSTILE])
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert set(re.findall(r"<(?!/)(\w+)", page)) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "section", "p", "pre", "div",
        "table", "tr", "th", "td", "span", "b", "figure", "figcaption", "picture", "source", "img",
        "details", "summary",
    }  # fmt: skip
    assert page.count("&lt;script&gt;") >= 25
    assert page.count('alt="') == 1 and 'alert("' not in page  # nor can it end an attribute


def test_a_long_text_is_cut():
    rows = [{"prompt": "p", "response": "x" * 700, "drawn_by": "policy"}]
    page = compare_page([replace(run("one"), samples=rows)], [])
    assert "x" * 600 + " …" in page and "x" * 601 not in page


@pytest.mark.parametrize("name", ["$\\frac$", "_hidden", "日本 🙂", "a" * 300])
def test_any_name_can_be_drawn(name):
    """What matplotlib would take for mathematics, or has no glyph for, stands in the HTML."""
    odd = run(name, features={name: content()["features"]["asked"]})
    assert f"</b> {name}</span>" in compare_page([odd], [])


def test_the_first_draws_are_shown_to_prompts_that_every_run_answered():
    def answered(*prompts: str) -> list[dict[str, str]]:
        return [{"prompt": p, "response": f"{p} {i}", "drawn_by": "policy"}
                for p in prompts for i in range(9)]  # fmt: skip

    one = replace(run("one"), samples=answered("alone", *map(str, range(20))))
    two = replace(run("two"), samples=answered(*map(str, range(20))))
    bare = replace(run("bare"), samples=[])
    shown = section_of(compare_page([one, two, bare], []), "Samples side by side")
    assert "alone" not in shown and ">0 0<" in shown and ">0 2<" in shown and ">0 3<" not in shown
    assert len(set(re.findall(r'<td class="text">(\d+)</td>', shown))) == 6
    assert "not chosen" in shown


# -- what is marked


def test_the_smallest_is_marked_where_its_interval_is_below_all_others():
    assert clear_least([known(0.5), known(0.2), known(0.9)]) == 1
    assert clear_least([known(0.5), known(0.35), known(0.9)]) is None
    assert clear_least([known(0.5), NONE]) is None
    # Without an interval nothing is known to be larger than the other.
    assert clear_least([known(0.5), known(0.2), NONE | {"value": 0.1}]) is None
    near, far = run("near", 0.2), run("far", 0.9)
    page = compare_page([far, near], [])
    assert row_of(page, "Distances", "near").count('class="n least"') == 6
    assert "least" not in row_of(page, "Distances", "far")
    assert "least" not in row_of(page, "Distances", "reference")


def test_a_reference_nearer_than_every_run_takes_the_mark():
    closest = {"policy": known(0.9), "reference": known(0.1)}
    runs = [run("one"), run("two")]
    runs[0].content["to_target"]["tv"] = closest
    runs[1].content["to_target"]["tv"] = closest
    page = compare_page(runs, [])
    assert row_of(page, "Distances", "reference").count("least") == 1
    assert "least" not in row_of(page, "Distances", "one") + row_of(page, "Distances", "two")


def test_nothing_is_marked_across_targets_and_each_has_its_reference():
    other = content()["target"] | {"hash": "another", "formula": "P_T(y|x) ∝ other"}
    page = compare_page([run("near", 0.2), run("far", 0.9, target=other)], [])
    distances = section_of(page, "Distances")
    assert "least" not in distances and "Nothing is marked" in distances
    assert "reference of near" in distances and "reference of far" in distances
    assert "P_T(y|x) ∝ a(y|x)" in page and "P_T(y|x) ∝ other" in page


def test_forgotten_is_what_moved_beyond_the_target():
    page = compare_page([run("one")], [])
    title = "What was forgotten"
    assert '<td class="n moved">0.100 ± 0.050 ↓</td>' in row_of(page, title, "lost (judge)")
    assert "n moved" not in row_of(page, title, "kept (metric)")
    assert "n moved" not in row_of(page, title, "moved (metric)")
    assert "asked" not in section_of(page, title)  # what was asked for is not forgotten


def test_what_was_asked_for_and_missed_is_not_forgotten():
    missed = feature("moment", known(0.2), known(0.1), known(0.5), [0.5, 0.5])
    page = compare_page([run("one", features={"missed": missed})], [])
    assert "n moved" not in row_of(page, "Features", "missed (0.5 asked)")


def test_what_moved_is_told_by_the_reference_where_the_target_is_unknown():
    moved = feature("metric", known(0.9, 0.05), known(0.2, 0.05), NONE)
    kept = feature("metric", known(0.25, 0.05), known(0.2, 0.05), NONE)
    page = compare_page([run("one", features={"moved": moved, "kept": kept})], [])
    assert "n moved" in row_of(page, "What was forgotten", "moved (metric)")
    assert "↑" in row_of(page, "What was forgotten", "moved (metric)")
    assert "n moved" not in row_of(page, "What was forgotten", "kept (metric)")


def test_texts_are_changes_in_percent_of_the_reference():
    page = compare_page([run("one")], [])
    assert ">-20%<" in row_of(page, "What was forgotten", "distinct-2")
    assert ">+0%<" in row_of(page, "What was forgotten", "distinct-1")
    # There is no percent of 0.
    assert ">0.250<" in row_of(page, "What was forgotten", "share unfinished")
    assert (change(0.9999, 1.0), change(None, 1.0)) == ("+0%", "–")  # noqa: RUF001
    assert ">0.400<" in row_of(page, "Diversity", "one")


def test_a_feature_that_only_one_run_has_is_shown():
    late = run("late", features={"own": feature("metric", known(0.7), known(0.1), known(0.1))})
    page = compare_page([run("one"), late], [])
    cells = re.findall(r"<td.*?>(.*?)</td>", row_of(page, "Features", "own (metric)"))
    assert cells == ["own (metric)", "–", "–", "0.70 ± 0.10 ↑", "–"]  # noqa: RUF001


def test_refusals_stand_below_the_table():
    refused = {"ess": 3.0, "pareto_k": None, "threshold": 0.6, "refusal": "the tail is too heavy"}
    none = NONE | {"note": "the tail is too heavy"}
    nowhere = {name: {"policy": none, "reference": none} for name in content()["to_target"]}
    one = run("one", support=refused, to_target=nowhere)
    two = run("two", log_z={"lower": known(-1.0), "upper": NONE | {"note": "one-sided"}})
    shown = section_of(compare_page([one, two], []), "Distances")
    assert shown.index("</table>") < shown.index("one: no distance to P_T: the tail is too heavy")
    assert shown.count("the tail is too heavy") == 1  # not once more for each divergence
    assert "two: log Z, upper bound: one-sided" in shown
    assert "no tail" not in shown


# -- the picture


def test_the_score_is_drawn_where_everything_is_weighted():
    weighted = {"w": feature("weight", known(0.5), known(0.1), known(0.5))}
    assert [p.title for p in frontier([run("one", features=weighted)])] == [
        "score, the weighted sum of rewards", "mean of w (weight)"
    ]  # fmt: skip
    assert [p.title for p in frontier([run("one")])] == ["mean of asked (moment)"]
    hard = weighted | {"h": feature("hard", known(0.5), known(0.1), known(1.0))}
    assert [p.title for p in frontier([run("one", features=hard)])] == [
        "mean of w (weight)", "mean of h (hard)"
    ]  # fmt: skip


def test_the_way_is_of_iterations_that_have_both_numbers():
    rows = [
        {"iteration": 1, "kl/ref": 0.5, "score": 1.0, "eval/kl": 0.4, "eval/score": 0.9},
        {"iteration": 2, "kl/ref": 0.7},
        {"iteration": 3, "kl/ref": 0.9, "score": 2.0},
        {"iteration": 4, "score": 3.0},
    ]
    one = replace(run("one"), metrics=rows)
    assert np.array_equal(way(one, "kl/ref", "score"), [[0.5, 0.9], [1.0, 2.0]])
    assert np.array_equal(way(one, "eval/kl", "eval/score"), [[0.4], [0.9]])
    end = final(one, "policy", "score")
    assert (end["low"], end["high"]) == pytest.approx((1.02, 2.98), abs=1e-4)
    assert final(one, "reference", "score")["low"] is None


def test_thirty_five_runs_look_different():
    assert len({sign(i) for i in range(35)}) == 35


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
    for key in ("reference_model", "prompts", "seed", "held_out"):
        assert len(mismatches([run("one"), run("two", **{key: 7})])) == 1
    elsewhere = [{"prompt": "q", "response": "r", "drawn_by": "policy"}]
    (line,) = mismatches([run("one"), replace(run("two"), samples=elsewhere)])
    assert line.startswith("prompts: those of two are others than those of one")
    page = compare_page([run("one")], [line])
    assert f'<p class="warn">{line}</p>' in page


# -- the command


def test_the_table_fits_the_terminal():
    names = ["a-name-that-is-longer-than-most-names-are-0", "a-name-that-is-longer-than-most-1"]
    refusal = {"ess": 3.0, "pareto_k": None, "threshold": 0.6, "refusal": "word " * 40}
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


def test_the_first_of_format_1_did_not_name_its_reference(tmp_path):
    folder = written(tmp_path / "run")
    old = content()
    del old["reference_model"]
    (folder / "eval.json").write_text(json.dumps(old))
    assert "its reference (not named)" in compare_page(load([str(folder)]), [])


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
        ('{"reference": {}, "policy": {}}', "has format 'no number', and 1 is read here"),
        (json.dumps(content(format=2)), "has format 2, and 1 is read here"),
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
