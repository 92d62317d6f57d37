"""Copies the site's pages and what they link to into build/docs, in the places they have here.

`make docs` runs it before mkdocs. Links are left as they are written, so what works in a checkout
works on the site, and a link to a file that is not there fails the build.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def site() -> dict[str, Any]:
    """What mkdocs.yml says."""
    return dict(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8")))


def pages(nav: Any) -> Iterator[Path]:
    """The files of mkdocs' `nav`, in its order."""
    if isinstance(nav, str):
        yield ROOT / nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(item)


def links(page: Path) -> list[str]:
    """Targets of a page's links as they are written; those of code blocks are none."""
    return LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def files(page: Path) -> set[Path]:
    """What a page's links name in the repository, other pages and folders left out."""
    local = {link.partition("#")[0] for link in links(page) if "://" not in link}
    named = {Path(os.path.normpath(page.parent / link)) for link in local if link}
    return {path for path in named if path.suffix != ".md" and path.is_file()}


def stage(folder: Path) -> None:
    """Fill a folder with what mkdocs reads; what was in it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    wanted = [ROOT / name for name in site()["extra_css"]]
    for page in pages(site()["nav"]):
        wanted += [page, *files(page)]
    for path in wanted:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


if __name__ == "__main__":
    stage(ROOT / site()["docs_dir"])
