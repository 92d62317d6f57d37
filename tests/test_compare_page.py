"""The page of `rlalign compare`: what is marked, what is drawn, and that no text is markup."""

import re
from dataclasses import replace

import numpy as np
import pytest
from compared import (
    NONE,
    content,
    feature,
    hostile_run,
    known,
    row_of,
    run,
    section_of,
    support,
)  # fmt: skip

from rlalign.report import compare_pictures
from rlalign.report.compare_page import compare_page
from rlalign.report.compare_pictures import final, frontier, sign, way
from rlalign.report.compare_readings import change, clear_least

HOSTILE = '<script>alert("1")</script>&\x1b[31m\u202e'

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
    page = compare_page([hostile_run(HOSTILE)], [HOSTILE])
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
    refused = support(ess=3.0, pareto_k=None, refusal="the tail is too heavy")
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


def test_a_shaped_reward_has_no_way_there_in_its_panel(monkeypatch):
    drawn = []
    monkeypatch.setattr(compare_pictures, "draw_way", lambda ax, run, key, _: drawn.append(key))
    shaped = feature("moment", known(0.5), known(0.1), known(0.5), [0.5, 0.5]) | {"shaped": True}
    for features, expected in (
        ({"asked": shaped}, []),
        ({"asked": shaped | {"shaped": False}}, ["reward/asked"]),
    ):
        drawn.clear()
        list(frontier([run("one", features=features)]))
        assert list(dict.fromkeys(drawn)) == expected
