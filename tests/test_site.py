"""The site builds without a warning, and holds what its pages link to."""

import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser

import pytest
import yaml
from pages import NAMES, ROOT, stage


class Links(HTMLParser):
    """Where a page's links and pictures point, and what in it can be pointed at."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.ids = [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given.get("id"), given.get("name")} - {None}
        if tag in ("a", "img", "script", "link"):
            self.targets += [given[key] for key in ("href", "src") if given.get(key)]


def built(folder, mutate=lambda pages: None):
    """A site built as `make docs` does, in a folder; `mutate` may spoil its pages before."""
    staged, site = folder / "pages", folder / "site"
    stage.stage(staged)
    mutate(staged)
    file = folder / "mkdocs.yml"
    file.write_text(yaml.safe_dump(stage.site() | {"docs_dir": str(staged), "site_dir": str(site)}))
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    return site, done


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder, done = built(tmp_path_factory.mktemp("site"))
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built(site):
    pages = {name.replace("README.md", "index.md") for name in NAMES}
    assert not [name for name in pages if not (site / name).with_suffix(".html").is_file()]


def test_links_within_the_site_lead_to_a_file_and_an_anchor(site):
    parsed = {page: Links(page.read_text("utf-8")) for page in site.rglob("*.html")}
    broken = []
    for page, links in parsed.items():
        for target in links.targets:
            path, _, anchor = target.partition("#")
            if "://" in target or page.name == "404.html":
                continue
            file = (page.parent / path).resolve() if path else page
            lands = file.is_file() and (file not in parsed or anchor in parsed[file].ids)
            broken += [] if lands else [f"{page.relative_to(site)}: {target}"]
    assert not broken


def test_the_pages_load_nothing_from_a_server(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="https?:', text
        )


@pytest.mark.parametrize("text", ["[x](nowhere.md)", "[x](target.md#no-such-part)"])
def test_a_link_that_leads_nowhere_stops_the_build(text, tmp_path):
    def spoil(pages):
        (pages / "docs" / "eval.md").write_text(f"# Eval\n\n{text}\n")

    _, done = built(tmp_path, spoil)
    assert done.returncode != 0 and text[4:-1].partition("#")[0] in done.stderr


def test_its_tools_are_an_extra_and_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = [re.split(r"[<>=]", need)[0] for need in project["optional-dependencies"]["docs"]]
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").open()}
    assert names and set(names) <= pinned
