"""`rlalign rewards test | bench | probe`: what they print, and how they end."""

import json

import pytest

from rewards import bench, registry
from rewards.bench import Cost, NotMeasured
from rlalign.cli import main

SOUND = """
from rewards import reward

@reward("tools.{name}", bounds=(0, 1))
def f(completions: list[str]) -> list[float]:
    "A summary."
    return [{value} for text in completions]
"""
CONFIG = """
rewards:
  sun: {kind: lexical.contains, words: [sun], weight: 2}
  rate: {kind: lexical.word_rate, words: [moon], weight: 0}
  brief: {kind: structure.word_count, max: 3}
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setattr(registry, "_files", dict(registry._files))
    (tmp_path / "a.yaml").write_text(CONFIG)
    return tmp_path


def own_file(directory, name, value):
    (directory / "my.py").write_text(SOUND.format(name=name, value=value))


# -- test


def test_a_sound_file_ends_with_0_and_a_line_a_check(directory, capsys):
    own_file(directory, "sound", "0.5")
    assert main(["rewards", "test", "my.py"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1:3] for line in lines if line[0] == "tools.sound"] == [
        [check, "skipped" if check in ("state", "causal") else "pass"]
        for check in ("load", "length", "finite", "bounds", "determinism", "order", "state",
                      "causal", "empty", "emoji", "long")
    ]  # fmt: skip
    assert lines[-1] == ["rewards:", "1,", "checks:", "11,", "failed:", "0"]


def test_a_faulty_file_ends_with_5_and_the_reason(directory, capsys):
    own_file(directory, "faulty", "float(len(text))")
    assert main(["rewards", "test", "my.py"]) == 5
    out = capsys.readouterr().out
    failed = [line.split()[1] for line in out.splitlines() if " fail " in line]
    assert failed == ["bounds", "emoji", "long"]
    assert "tools.faulty (my.py:4) gives 10000.0 for 'She looked" in out


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (None, "my.py: no such file in DIRECTORY"),
        ("x = 1\n", "reward file 'my.py' defines no reward; put @reward(\"my.name\") above a fu"),
        ("x = \n", "reward file 'my.py' is no valid Python: DIRECTORY/my.py:1: "),
    ],
)
def test_a_file_without_rewards_ends_with_2(directory, capsys, code, line):
    if code is not None:
        (directory / "my.py").write_text(code)
    assert main(["rewards", "test", "my.py"]) == 2
    assert capsys.readouterr().err.startswith(line.replace("DIRECTORY", str(directory)))


def test_only_the_files_own_rewards_are_tested(directory, capsys):
    own_file(directory, "one", "0.5")
    assert main(["rewards", "test", "my.py"]) == 0
    (directory / "my.py").rename(directory / "other.py")
    own_file(directory, "two", "0.5")
    capsys.readouterr()
    assert main(["rewards", "test", "my.py"]) == 0
    out = capsys.readouterr().out
    assert "tools.two" in out and "tools.one" not in out and "lexical." not in out


# -- bench


@pytest.fixture
def measured(monkeypatch):
    """What `bench` asks to be measured, and gets."""
    asked, found = [], []

    def measure_apart(kinds, count, files):
        asked.append((kinds, count, files))
        return iter(found)

    monkeypatch.setattr(bench, "measure_apart", measure_apart)
    return asked, found


def test_bench_prints_a_row_a_reward_and_why_one_was_skipped(directory, measured, capsys):
    asked, found = measured
    found += [
        Cost("lexical.contains", 12345.6, 0.254, 2.6),
        Cost("style.readability", 10.0, 0.0, None),
        NotMeasured("style.classifier", "no model [/x] \x1b[31m", has_failed=False),
    ]
    kinds = ["lexical.contains", "style.readability", "style.classifier"]
    assert main(["rewards", "bench", *kinds, "--texts", "8"]) == 0
    assert asked == [(kinds, 8, ())]
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert rows[0][:4] == ["8", "texts", "of", "24"]
    assert ["lexical.contains", "12,346", "0.25", "3"] in rows
    assert ["style.readability", "10", "0.00", "-"] in rows
    assert "skipped: no model [/x] \\x1b[31m" in out


def test_bench_measures_every_kind_by_default_and_ends_with_5_where_one_fails(
    directory, measured, capsys
):
    asked, found = measured
    found.append(NotMeasured("lexical.contains", "returned nan", has_failed=True))
    assert main(["rewards", "bench"]) == 5
    assert asked == [(registry.kinds(), 64, ())]
    assert "failed: returned nan" in capsys.readouterr().out


def test_bench_refuses_an_unknown_kind_before_it_measures(directory, measured, capsys):
    assert main(["rewards", "bench", "lexical.contain"]) == 2
    assert "did you mean 'lexical.contains'?" in capsys.readouterr().err and measured[0] == []


# -- probe


def test_probe_lists_spans_where_there_is_no_colour(directory, capsys):
    assert main(["rewards", "probe", "--config=a.yaml", "The sun rose.", "A moon."]) == 0
    out = capsys.readouterr().out
    assert out[out.index("sun: [") :].splitlines() == [
        "sun: [start:end] credit",
        '  "The sun rose."',
        '    [4:7] +1.000 "sun"',  # of the reward itself, not times its weight of 2
        "",
        "rate: [start:end] credit",  # a weight of 0 does not hide what was measured
        '  "A moon."',
        '    [2:6] +0.500 "moon"',
    ]


def test_hostile_text_stays_harmless_in_the_spans(directory, capsys):
    assert main(["rewards", "probe", "--config=a.yaml", "[/x]\x1b[31m sun\n\u202emoon"]) == 0
    listed = capsys.readouterr().out.split("credit")[1]
    assert '"[/x]␛[31m sun⏎ \\u202emoon"' in listed and "\x1b" not in listed


@pytest.fixture
def terminal(monkeypatch):
    """As on a terminal with colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return monkeypatch


def test_probe_colours_what_earns_and_what_costs(directory, terminal, capsys):
    assert main(["rewards", "probe", "--config=a.yaml", "moon [b] \x1b[31m"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    green, red, end = "\x1b[1;32m", "\x1b[1;31m", "\x1b[0m"
    faint = "\x1b[31m"  # what costs little
    assert last == f"  {green}moon{end} [{red}b{end}] ␛[{faint}31m{end}"


def test_probe_without_colour_where_no_color_is_set(directory, terminal, capsys):
    terminal.setenv("NO_COLOR", "1")
    assert main(["rewards", "probe", "--config=a.yaml", "sun"]) == 0
    out = capsys.readouterr().out
    assert '[0:3] +1.000 "sun"' in out and "\x1b[1;32m" not in out


COLUMN = """
from rewards import reward

@reward("tools.starts")
def starts(completions: list[str], opening: list[str], more: list[int] = ()) -> list[float]:
    return [float(c.startswith(o)) for c, o in zip(completions, opening, strict=True)]
"""


@pytest.fixture
def with_column(directory):
    (directory / "my.py").write_text(COLUMN)
    (directory / "c.yaml").write_text("reward_files: [my.py]\nrewards: {it: {kind: tools.starts}}")
    return ["rewards", "probe", "--config=c.yaml", "Once.", "Twice."]


def test_probe_gives_a_column_the_same_value_for_every_text(with_column, capsys):
    assert main([*with_column, "--columns", json.dumps({"opening": "On", "more": 1})]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[1], row[3]) for row in rows if "Once." in row or "Twice." in row] == [
        ("Once.", "1.000"), ("Twice.", "0.000"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ("{}", "rewards.it reads the data's column 'opening'; give it a value: --columns '{\"ope"),
        (
            '{"openin": 1}',
            "--columns openin: no reward of the configuration reads it; did you mean ",
        ),
        ('{"x": 1}', "--columns x: no reward of the configuration reads it; they read: more, open"),
        ('["a"]', '--columns ["a"]: it is no object; give a JSON object such as \'{"opening": '),
        ("{opening: a}", "--columns {opening: a}: Expecting property name enclosed in double quot"),
        ('{"prompts": "a"}', "--columns prompts='a': this is no further column; use --prompt\n"),
        ('{"completions": 1}', "--columns completions=1: this is no further column; give the tex"),
    ],
)
def test_wrong_columns_are_refused_with_the_fix(with_column, capsys, columns, line):
    assert main([*with_column, "--columns", columns]) == 2
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ("{}", "rewards.rate reads the data's column 'topic'; give it a value: "),
        ('{"topic": "sea"}', "rewards.both reads the data's column 'words'; give it a value: "),
        ('{"topik": "sea"}', "--columns topik: no reward of the configuration reads it; did you "),
        (
            '{"topic": "sea", "words": 5}',
            "rewards.both.parts.a.words=5: input should be a valid list (from the column 'words')",
        ),
    ],
)
def test_probe_knows_columns_that_only_a_parameter_or_a_part_reads(
    directory, capsys, columns, line
):
    (directory / "c.yaml").write_text(
        """
rewards:
  rate: {kind: lexical.word_rate, words: {column: topic}}
  both:
    kind: combine.min
    parts: {a: {kind: lexical.contains, words: {column: words}}, b: {kind: structure.ends_cleanly}}
"""
    )
    argv = ["rewards", "probe", "--config=c.yaml", "The ship at sea.", "--columns"]
    assert main([*argv, columns]) == 2
    assert capsys.readouterr().err.startswith(line)
    assert main([*argv, '{"topic": "sea", "words": ["ship"]}']) == 0
    row = next(r.split() for r in capsys.readouterr().out.splitlines() if "The ship" in r)
    assert row[6:12:2] == ["0.250", "1.000", "1.250"]


# -- list


def test_list_prints_the_page(capsys):
    from rlalign.report.rewards_page import rewards_page

    assert main(["rewards", "list", "--markdown"]) == 0
    assert capsys.readouterr().out == rewards_page()
