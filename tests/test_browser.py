"""The page of `rlalign compare` in a real browser: no script runs, no request leaves."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from compared import hostile_run
from devtools import CHROMIUM, NO_BROWSER
from hostile import MARKUP, REFRESH
from listener import Listener

from rlalign.report.compare_page import compare_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)


@pytest.fixture
def listener() -> Iterator[Listener]:
    heard = Listener()
    yield heard
    heard.close()


def opened(page: str, folder: Path) -> str:
    """The page as the browser has it once everything on it was loaded and run."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8", errors="backslashreplace")
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--virtual-time-budget=3000",
        f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "<html" in done.stdout, done.stderr
    return done.stdout


def has_run(dom: str) -> bool:
    return re.search(r"<html[^>]*data-pwned", dom) is not None


def raw(payloads: dict[str, str], policy: str, server: str) -> str:
    """A page that takes texts for markup, under a policy."""
    body = "".join(f"<div>{text}</div>" for text in payloads.values())
    return f"<!DOCTYPE html><html><head>{policy}</head><body>{body}</body></html>".replace(
        "SERVER", server
    )


def policy_of(page: str) -> str:
    found = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', page)
    assert found is not None
    return found[0]


@pytest.mark.parametrize("name", ["script", "event", "svg", "srcdoc"])
def test_the_payloads_do_act_on_a_page_without_protection(
    name: str, listener: Listener, tmp_path: Path
) -> None:
    """Or the tests below could not fail."""
    dom = opened(raw({name: MARKUP[name]}, "", listener.url), tmp_path)
    assert has_run(dom) and "/js" in listener.paths


def test_every_kind_of_request_is_heard_without_protection(
    listener: Listener, tmp_path: Path
) -> None:
    opened(raw(MARKUP, "", listener.url), tmp_path)
    expected = {"/js", "/img", "/frame", "/css", "/bg", "/link", "/object", "/embed", "/video"}
    assert expected <= {*listener.paths}


def test_the_policy_alone_would_hold(listener: Listener, tmp_path: Path) -> None:
    """The second wall: texts are escaped, and if they were not, nothing of theirs would run."""
    policy = policy_of(compare_page([hostile_run("plain")], []))
    dom = opened(raw(MARKUP, policy, listener.url), tmp_path)
    assert not has_run(dom) and listener.paths == []


def test_the_page_runs_and_asks_nothing_whatever_the_texts(
    listener: Listener, tmp_path: Path
) -> None:
    texts = [text.replace("SERVER", listener.url) for text in [*MARKUP.values(), REFRESH]]
    page = compare_page([hostile_run(text) for text in texts], texts)
    dom = opened(page, tmp_path)
    assert not has_run(dom) and listener.paths == []
    assert dom.count("&lt;script&gt;") > 50  # they are shown, as text
    without_policy = opened(page.replace(policy_of(page), ""), tmp_path)
    assert not has_run(without_policy) and listener.paths == []  # nor is it the policy alone
