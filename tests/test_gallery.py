"""docs/gallery.md: its numbers are those of the results, and its pictures are there."""

import json
import re
from statistics import mean

import pytest
from pages import ROOT, page_named, stage

PAGE = page_named("docs/gallery.md")
SECTIONS = stage.FENCE.sub("", PAGE.read_text("utf-8")).split("\n## ")[1:]
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?![\d.])")


def section_of(link):
    """What a link from the gallery leads to: a page, or the part of it behind #."""
    path, _, anchor = link.partition("#")
    text = (PAGE.parent / path).read_text("utf-8")
    parts = re.split(r"^(?=#+ )", text, flags=re.MULTILINE)
    slug = {
        re.sub(r"[^\w\- ]", "", p.split("\n")[0].lower()).strip().replace(" ", "-"): p
        for p in parts
    }
    return slug[anchor] if anchor else text


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.split("\n")[0])
def test_its_numbers_stand_where_it_links(section):
    links = [link for link in stage.LINK.findall(section) if ".md" in link]
    sources = "\n".join(section_of(link) for link in links)
    assert links and set(NUMBER.findall(section)) <= set(NUMBER.findall(sources))


def test_nearly_every_section_has_a_picture_with_words_for_who_does_not_see_it():
    pictures = [re.findall(r"!\[[^]]{20,}\]\((images/[\w.]+)\)", section) for section in SECTIONS]
    assert sum(map(bool, pictures)) >= len(SECTIONS) - 2
    assert all((PAGE.parent / name).is_file() for found in pictures for name in found)


ROWS = {  # the table's rows: the runs of experiments/results/grid.jsonl
    "DPG, forward KL": "kl-dpg", "DPG, Jensen\N{EN DASH}Shannon": "js-dpg",
    "DPG, reverse KL": "rkl-dpg",
    "RLOO": "rloo", "PPO": "ppo",
}  # fmt: skip


@pytest.mark.parametrize(("row", "method"), ROWS.items())
def test_the_table_of_methods_is_the_mean_of_the_runs(row, method):
    runs = [json.loads(line) for line in (ROOT / "experiments/results/grid.jsonl").open()]
    runs = [run for run in runs if run["job"][:2] == ["word_all", method]]
    assert len(runs) == 5
    cells = next(line for s in SECTIONS for line in s.split("\n") if line.startswith(f"| {row} |"))
    has, distance = (float(cell) for cell in cells.split("|")[2:4])
    assert has == pytest.approx(mean(r["features"]["queen"]["policy"][0] for r in runs), abs=6e-4)
    wanted = mean(run["to_target"]["forward_kl"]["policy"][0] for run in runs)
    assert distance == pytest.approx(wanted, abs=6e-4)
