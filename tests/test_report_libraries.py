"""What is vendored is what its makers published, with its licence, and goes into the wheel."""

import hashlib
import re

import pytest

from rlalign.report.page.document import LIBRARIES, STATIC

# Of the files in `npm pack d3@7.9.0` and `npm pack @observablehq/plot@0.6.17`, under dist/.
PUBLISHED = {
    "d3.min.js": ("f2094bbf6141b359722c4fe454eb6c4b0f0e42cc10cc7af921fc158fceb86539", "v7.9.0"),
    "plot.umd.min.js": (
        "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb",
        "v0.6.17",
    ),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_is_as_published(name: str) -> None:
    digest, version = PUBLISHED[name]
    content = (STATIC / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    assert version.encode() in content[:80]
    assert b"</script" not in content.lower() and b"<!--" not in content


@pytest.mark.parametrize("name", ["d3.LICENSE", "plot.LICENSE"])
def test_a_library_has_its_licence_beside_it(name: str) -> None:
    text = (STATIC / name).read_text(encoding="utf-8")
    assert re.match(r"Copyright 20\d\d", text) and "Permission to use, copy, modify" in text
