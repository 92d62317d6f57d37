"""docs/security.md names tests that exist."""

import re
from pathlib import Path

import pytest
from test_correctness_page import cited, names_in

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line.split(" | ") for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]


@pytest.mark.parametrize("row", ROWS, ids=[row[1] for row in ROWS])
def test_every_line_of_the_table_names_tests_that_exist(row):
    citations = cited(row[3])
    assert citations
    for file, name in citations:
        assert name in names_in(ROOT / "tests" / file), f"{file}: {name}"


def test_the_tests_of_secrets_exist():
    section = PAGE.split("## Secrets")[1].split("\n## ")[0]
    found = {name for file, name in cited(section) if name.startswith("test_")}
    assert len(found) == 5 and found <= names_in(ROOT / "tests" / "test_secrets.py")
    assert [int(row[0].strip("| ")) for row in ROWS] == list(range(1, len(ROWS) + 1))
