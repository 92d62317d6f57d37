"""docs/correctness.md names functions and tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "correctness.md").read_text(encoding="utf-8")


def names_in(path: Path) -> set[str]:
    """Functions, classes and `Class.method`s that a file defines."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    names |= {item.name, f"{node.name}.{item.name}"}
    return names


def cited(cell: str) -> set[tuple[str, str]]:
    """(file, name) of each citation; a name without a file is in the file named before it."""
    found, file = set(), ""
    for quoted in re.findall(r"`([^`]+)`", cell):
        path, colon, name = quoted.partition(":")
        if path.endswith(".py"):
            file, quoted = path, name if colon else ""
        if quoted and re.fullmatch(r"[A-Za-z_][\w.]*", quoted):
            found.add((file, quoted))
    return found


def test_every_rule_names_what_keeps_it_and_a_test_that_exists():
    rows = [line.split(" | ") for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0].strip("| ")) for row in rows] == list(range(1, 27))
    for row in rows:
        keepers, tests = cited(row[3]), cited(row[4])
        for folder, citations in (("rlalign", keepers), ("tests", tests)):
            for file, name in citations:
                assert name in names_in(ROOT / folder / file), f"{folder}/{file}: {name}"
        files = re.findall(r"`(?:rlalign/)?([\w/]+\.py)", row[3]) + re.findall(
            r"`(test_\w+\.py)", row[4]
        )
        assert len(files) >= 2, row[0]


def test_all_cited_files_exist():
    for file in re.findall(r"`(test_\w+\.py)", PAGE):
        assert (ROOT / "tests" / file).is_file(), file
