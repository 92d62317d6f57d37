"""Links and paths of the pages lead somewhere, in a checkout and on the site alike."""

import re
from itertools import pairwise
from urllib.parse import urlparse

import pytest
from markdown.extensions.toc import slugify
from pages import NAMES, ROOT, page_named, stage

HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
MADE = ["benchmarks/results/2026-11-26.md"]  # tables alone, as `make bench` writes them
PATH = re.compile(r"`((?:docs|experiments|launch|rlalign|rewards|tests|benchmarks)/[\w./-]+)`")


def text_of(page):
    return stage.FENCE.sub("", page.read_text("utf-8"))


def anchors(page):
    """What a heading is called behind #, where GitHub and mkdocs give it the same name."""
    titles = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in HEADING.findall(text_of(page))]
    on_github = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return on_github & {slugify(title, "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = page_named(name)
    for link in stage.links(page):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.is_file() and ROOT in file.parents, link
        if anchor:
            assert anchor in anchors(file), link


@pytest.mark.parametrize("name", NAMES)
def test_links_to_the_outside_are_addresses(name):
    """Their form alone: no test asks a network."""
    for link in stage.links(page_named(name)):
        if "://" in link:
            parts = urlparse(link)
            assert parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), (
                link
            )


@pytest.mark.parametrize("name", NAMES)
def test_paths_in_running_text_exist(name):
    absent = [
        path for path in PATH.findall(text_of(page_named(name))) if not (ROOT / path).exists()
    ]
    assert not absent


def test_every_page_is_in_the_navigation_once():
    expected = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    for folder in ("docs", "experiments", "benchmarks"):
        files = sorted((ROOT / folder).rglob("*.md"))
        expected |= {str(file.relative_to(ROOT)) for file in files if ".trl-" not in str(file)}
    assert sorted(NAMES) == sorted(expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MADE])
def test_a_page_begins_by_saying_what_it_is_for(name):
    """A heading, then a sentence: no command, no table, no list."""
    title, _, rest = page_named(name).read_text("utf-8").partition("\n")
    first = rest.strip().split("\n")[0]
    assert title.startswith("# ") and re.match(r"[A-Za-z`[*].{30,}", first), first


@pytest.mark.parametrize("name", NAMES)
def test_what_is_within_a_list_is_indented_as_every_reader_wants_it(name):
    """By four spaces: with fewer, Python-Markdown ends the list."""
    page = page_named(name)
    for indent, _, _ in stage.FENCE.findall(page.read_text("utf-8")):
        assert len(indent) % 4 == 0
    assert not re.findall(r"^ {1,3}[^\s|-].*", "\n".join(after_blank(text_of(page))), re.MULTILINE)


def after_blank(text):
    """Lines that stand behind an empty one: those that begin a paragraph."""
    lines = text.split("\n")
    return [line for before, line in pairwise(lines) if not before.strip()]
