"""Files of a run, read while they are written, cut, and replaced."""

import json
from pathlib import Path

import pytest

from rlalign.files import write_atomically
from rlalign.report import follow
from rlalign.report.follow import Lines, Metrics, reward_names, rows_in
from rlalign.runs import RunFolder
from rlalign.tracking import JsonlTracker


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_a_line_is_read_once_and_when_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = Lines(path)
    assert lines.read() == ([], False)  # not there yet
    append(path, "one\ntw")
    assert lines.read() == ([b"one"], True)
    append(path, "o\nthree\n")
    assert lines.read() == ([b"two", b"three"], False)
    assert lines.read() == ([], False)


def test_a_half_line_that_is_taken_back_was_never_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("one\nhalf a li")
    lines = Lines(path)
    assert lines.read() == ([b"one"], True)
    path.write_bytes(b"one\n")
    append(path, "two\n")
    assert lines.read() == ([b"two"], False)


def test_of_a_long_file_the_beginning_and_the_end_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "HEAD", 30)
    monkeypatch.setattr(follow, "TAIL", 35)
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(f"line {i:04}\n" for i in range(100)))
    lines = Lines(path, ends=True)
    numbers = [int(line.split()[1]) for line in lines.read()[0]]
    assert numbers == [0, 1, 2, 97, 98, 99]
    append(path, "line 0100\n")
    assert lines.read() == ([b"line 0100"], False)


def test_a_resume_that_takes_rows_back_is_seen_and_no_row_comes_twice(tmp_path):
    run = RunFolder(tmp_path)
    tracker, metrics = JsonlTracker(run), Metrics(run.metrics_jsonl)
    for step in range(1, 7):
        tracker.log(step, {"score": float(step)})
    assert [row["iteration"] for row in metrics.read()[0]] == [1, 2, 3, 4, 5, 6]
    tracker.truncate_after(4)
    tracker.log(5, {"score": 50.0})
    rows, back = metrics.read()
    assert ([row["score"] for row in rows], back) == ([50.0], 4)
    tracker.log(6, {"score": 60.0})
    assert metrics.read() == ([{"iteration": 6, "score": 60.0}], None)
    tracker.truncate_after(-1)
    assert metrics.read() == ([], 0)


def test_a_file_that_is_replaced_by_the_same_rows_and_more_is_no_step_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n')
    metrics = Metrics(path)
    metrics.read()
    write_atomically(path, '{"iteration": 1}\n{"iteration": 2}\n')
    assert metrics.read() == ([{"iteration": 2}], None)


@pytest.mark.parametrize(
    "damaged",
    ["{", "[1]", "null", '{"score": 1}', '{"iteration": "1"}', '{"iteration": NaN}', "[" * 10_000,
     '{"iteration": 1e99}', '{"iteration": -1}', "\x00", '{"iteration": [1]}'],
)  # fmt: skip
def test_a_damaged_row_is_passed_over(damaged):
    good = json.dumps({"iteration": 2})
    assert rows_in([damaged.encode(), b"\xff\xfe", good.encode()]) == [{"iteration": 2}]


def test_names_of_rewards_come_from_a_row():
    row = {"score": 1, "eval/reward/a": 1, "reward/b": 1, "reward/a/valid": 1, "reward/c/log/x": 1}
    assert reward_names(row) == ["a", "b", "c"]
