"""docs/security.md and docs/reliability.md name tests that exist."""

import re
from pathlib import Path

import pytest
from test_correctness_page import cited, names_in

ROOT = Path(__file__).parent.parent
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("security", "reliability")
}
ROWS = [
    (name, line.split(" | "))
    for name, page in PAGES.items()
    for line in page.splitlines()
    if re.match(r"\| \d+ \|", line)
]


@pytest.mark.parametrize("row", ROWS, ids=[f"{name}: {row[1]}" for name, row in ROWS])
def test_every_line_of_the_tables_names_tests_that_exist(row):
    citations = cited(row[1][3])
    assert citations
    for file, name in citations:
        assert name in names_in(ROOT / "tests" / file), f"{file}: {name}"


def test_the_tests_of_secrets_exist():
    section = PAGES["security"].split("## Secrets")[1].split("\n## ")[0]
    found = [(file, name) for file, name in cited(section) if name.startswith("test_")]
    assert len(found) == 6
    for file, name in found:
        assert name in names_in(ROOT / "tests" / (file or "test_secrets.py")), f"{file}: {name}"


@pytest.mark.parametrize("name", PAGES)
def test_the_rows_are_numbered(name):
    numbers = [int(row[0].strip("| ")) for page, row in ROWS if page == name]
    assert numbers == list(range(1, len(numbers) + 1))
