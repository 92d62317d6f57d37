"""What the report reads of a run's folder: which samples, and what of damaged files."""

import json
from pathlib import Path

import pytest
from reported import written_run

from rlalign.problems import ConfigError
from rlalign.report.page.document import document
from rlalign.report.page.record import choose, read_run, row_of, spread


def test_the_ends_are_whole_and_the_rest_is_spread_evenly() -> None:
    counted = {(step, "train"): 100 for step in range(1, 101)}
    counted |= {(step, "eval"): 50 for step in range(0, 101, 10)}
    chosen = choose(counted, 1000)
    assert chosen[0, "eval"] == chosen[100, "eval"] == 50
    assert chosen[1, "train"] == chosen[100, "train"] == 100
    evaluations = [step for step, of in chosen if of == "eval"]
    assert len(evaluations) == 11  # all of those between fit into half of what is left
    # The reference's stand beside the others', so they take no room.
    room = sum(chosen.values()) - 50
    assert 900 <= room <= 1000
    training = sorted(step for step, of in chosen if of == "train")
    assert len(training) == 5 and training[2] in range(40, 61)


def test_a_page_of_few_samples_still_has_what_its_numbers_are_of() -> None:
    counted = {(0, "eval"): 64, (5, "eval"): 64, (1, "train"): 8}
    assert choose(counted, 10) == {(0, "eval"): 64, (5, "eval"): 64}


def test_spread_is_even() -> None:
    assert spread(list(range(10)), 2) == [2, 7] and spread([1, 2, 3], 3) == [1, 2, 3]
    assert spread([], 0) == []


def test_numbers_are_of_all_responses_of_an_evaluation(tmp_path: Path) -> None:
    run = read_run(written_run(tmp_path / "run", responses=40), "run", most=10)
    assert len(run.before) == len(run.after) == 40
    assert "40 responses of each" in document([run], 10)


def test_without_evaluations_the_first_and_last_iteration_are_compared(tmp_path: Path) -> None:
    folder = written_run(tmp_path / "run")
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(x for x in lines if '"train"' in x))
    run = read_run(folder, "run", 100)
    assert run.ends == ((1, "train"), (4, "train")) and not run.is_evaluated
    assert "no evaluation of the reference, so before is the iteration at 1" in document([run], 100)


def test_a_run_that_has_barely_begun_has_a_page(tmp_path: Path) -> None:
    folder = written_run(tmp_path / "run", iterations=1)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (folder / name).write_text("")
    page = document([read_run(folder, "run", 100)], 100)
    assert "There is nothing to compare yet" in page


HUGE = b'{"iteration": 1, "score": 1%s}\n' % (b"0" * 400)


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("content", [b"\xff\xfe{", b"[1, 2]\n", b'{"a": *b}', b"", b"null\n", HUGE])
def test_a_damaged_file_is_said_and_the_rest_is_shown(
    tmp_path: Path, name: str, content: bytes
) -> None:
    folder = written_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    run = read_run(folder, "run", 100)
    page = document([run], 100)
    assert "What came out" in page
    if name in ("config.yaml", "run.json") and content != HUGE:  # YAML and JSON can hold it
        assert len(run.problems) == 1 and name in run.problems[0] and 'class="warn"' in page


def test_fields_of_other_types_harm_nothing(tmp_path: Path) -> None:
    odd = [None, 3, "x", [1], {"a": {"b": []}}]
    for i, value in enumerate(odd):
        names = ("status", "method", "command", "versions", "seeds", "target", "warnings", "git")
        config = {"model": value, "rewards": {"a": {"kind": value, "weight": value}}, "kl": value}
        told = dict.fromkeys(names, value)
        folder = written_run(tmp_path / str(i), config=config, **told)
        assert "<h2>Samples</h2>" in document([read_run(folder, "run", 100)], 100)


def test_rows_are_read_as_what_they_should_be() -> None:
    given = {
        "iteration": 3, "split": "eval", "prompt": "p", "response": "r", "score": float("nan"),
        "kl": "1", "length": True, "finished": 1, "rewards": {"a": 0.5, "b": None, "c": 10**400},
        "spans": {"a": [[0, 1, 0.5], [0, 1], ["x", 1, 1], [0, 1, float("inf")]], "b": 3},
        "top": "a", "columns": [1],
    }  # fmt: skip
    row = row_of(json.dumps(given).encode())
    assert row["score"] is row["kl"] is row["length"] is None and row["finished"] is False
    assert row["rewards"] == {"a": 0.5, "b": None, "c": None}
    assert row["spans"] == {"a": [[0, 1, 0.5]]} and row["top"] == [] and row["columns"] == {}
    assert row_of(b'{"iteration": 3, "split": "eval", "prompt": 3}') is None
    assert row_of(b'{"iteration": 3') is None


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no run: there is no metrics\.jsonl"):
        read_run(tmp_path, "x", 10)


def test_a_line_that_no_reader_can_take_is_left_out(tmp_path: Path) -> None:
    folder = written_run(tmp_path / "a")
    deep = '{"iteration": 3, "split": "eval", "prompt": ' + "[" * 100_000 + "\n"
    twice = '{"iteration": 3, "split": "eval", "prompt": "p", "response": "r", "iteration": "x"}\n'
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (folder / name).open("a") as file:
            file.write(deep + twice)
    before = read_run(written_run(tmp_path / "b"), "b", 5000)
    after = read_run(folder, "a", 5000)
    assert len(after.rows) == len(before.rows) and len(after.metrics) == len(before.metrics)
