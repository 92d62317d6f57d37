"""`rlalign report`, and the report that a run writes of itself."""

import json
import logging
from pathlib import Path

import pytest
from reported import written_run
from test_resume import run

from rewards.contract import Score, Span
from rlalign import cli
from rlalign.report.page import at_end


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_is_put_into_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = written_run(tmp_path / "run")
    assert cli.main(["report", str(folder)]) == 0
    assert f"report  {folder / 'report.html'}" in capsys.readouterr().out
    assert "<title>run · rlalign</title>" in (folder / "report.html").read_text(encoding="utf-8")


def test_several_runs_go_where_out_says(tmp_path: Path) -> None:
    runs = [str(written_run(tmp_path / name)) for name in ("a", "b")]
    assert cli.main(["report", *runs, "--out", str(tmp_path / "both.html")]) == 0
    assert "<title>a, b · rlalign</title>" in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    folder, pages = written_run(tmp_path / "run"), []
    for name in ("1.html", "2.html"):
        assert cli.main(["report", str(folder), "--out", str(tmp_path / name)]) == 0
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["a", "b"], "2 runs on one page: say by --out where it goes"),
        (["a", "a"], "a is named twice"),
        (["none"], "none holds no run: there is no metrics.jsonl in it"),
        (["a", "--out", "no/where.html"], "--out no/where.html: there is no folder no"),
        (["a", "--out", "b"], "--out b is a folder; name a file in it"),
    ],
)
def test_what_cannot_be_done_is_told(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    for name in ("a", "b"):
        written_run(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *arguments]) == 2
    assert line in last_line(capsys)


# -- of itself


def first_a(completions: list[str]) -> list[float]:
    """1 for an `a`, with its span."""
    at = [text.find("a") for text in completions]
    return [Score(1.0, [Span(i, i + 1, 1.0)]) if i >= 0 else Score(0.0) for i in at]


def test_a_run_writes_its_report_and_the_spans_in_it(tmp_path: Path) -> None:
    folder = run(tmp_path, reward=first_a, iterations=2)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "done" in page and "Before is the reference, after the policy at iteration 2" in page
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if row["split"] == "eval"]
    hits = [row for row in evaluated if "a" in row["response"]]
    assert hits and all(
        row["spans"] == {"first_a": [[i := row["response"].find("a"), i + 1, 1.0]]} for row in hits
    )
    assert not any("spans" in row for row in evaluated if "a" not in row["response"])
    training = [row for row in rows if row["split"] == "train"]
    assert any("spans" in row for row in training)
    assert all("top" in row for row in training if "spans" in row)


def test_a_report_that_fails_takes_nothing_from_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("no room")

    monkeypatch.setattr(at_end, "document", broken)
    with caplog.at_level(logging.WARNING):
        folder = run(tmp_path, reward=first_a, iterations=2)
    assert "no report.html was written: no room" in caplog.text
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    assert not (folder / "report.html").exists()
