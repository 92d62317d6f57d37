import contextlib
import dataclasses
import io
import math
import os
import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from rlalign.evaluate import Evaluation
from rlalign.report.live import LiveView, duration
from rlalign.report.live_text import columns_in
from rlalign.report.visible import escape_markdown, visible
from rlalign.runs import RunFolder

HOSTILE = [
    "[/red] [bold]not markup[/] :smile:",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J \r\x08 back",
    "lines\n\n\nand\ttabs\u2028and\x00nul",
    "中文字符测试" * 30,
    "🎉👨\u200d👩\u200d👧🇩🇪" * 20,
    "x" * 500,
    "\u202eevil\u202c \u200bhidden \ufeff \udc80",
    "",
]
NAMES = ["space", "\x1b[2J", "中文字符测试中文", "a_reward_with_a_long_name"]


def stats(step: int, **more: float) -> dict[str, float]:
    rewards = {f"reward/{name}": step / 7 for name in NAMES}
    base = {"score": step / 3, "kl/ref": 0.1, "tokens_per_second": 131.7, "time/total": 2.0}
    return {"iteration": step, **base, **rewards, **more}


def row(prompt: str, response: str) -> dict:
    rewards = {name: 0.5 for name in NAMES[:-1]} | {NAMES[-1]: None}
    return {"prompt": prompt, "response": response, "score": 1.0, "kl": 2.0, "rewards": rewards}


def evaluation(score: float, responses: list[str]) -> Evaluation:
    numbers = {"eval/score": score, "eval/score_se": 0.07, "eval/kl": 2 * score, "eval/kl_se": 0.3}
    numbers |= {"eval/length": 28.0, "eval/distinct2": 0.93, "eval/reward/space": score / 2}
    return Evaluation(numbers, [row(f"{i} {text}", text) for i, text in enumerate(responses)])


def shown(view_of, names=NAMES, **stream) -> str:
    out = io.StringIO()
    view_of(LiveView(40, names, quiet=False, stream=out))
    return out.getvalue()


def everything(view: LiveView) -> None:
    folder = RunFolder(Path("runs/x"))
    for text in HOSTILE:
        view.samples([row("p", "before")])
        view.samples([row("p", text)])
    for step in range(1, 41):
        view.iteration(stats(step, **({"eval/score": 123456.0} if step % 10 == 0 else {})))
    view.iteration(stats(41) | {"score": math.nan, "kl/ref": 1e9, "reward/space": None})
    for start in range(0, len(HOSTILE), 3):
        chosen = HOSTILE[start : start + 3]
        view.final(folder, evaluation(1, chosen), evaluation(2, chosen[::-1]))
        view.final(folder, evaluation(1, chosen), evaluation(2, chosen))


def test_no_line_is_wider_than_80_columns_whatever_the_model_wrote():
    text = shown(everything)
    for line in text.splitlines():
        assert cell_len(line) <= 80, line
        assert line == line.rstrip()
    assert "[/red] [bold]not markup[/] :smile:" in text
    assert "␛[31mred" in text and "\\u202eevil" in text and "\\x9b2J" in text


def test_nothing_that_is_not_a_terminal_gets_control_codes():
    text = shown(everything)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028]", text)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_only_codes_are_our_own_colours(monkeypatch):
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    everything(LiveView(40, NAMES, quiet=False, stream=out))
    text = out.getvalue()
    assert "\x1b[1m" in text
    left = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", left)
    assert all(cell_len(line) <= 80 for line in left.splitlines())


def test_each_iteration_is_a_line_and_the_header_comes_every_twenty():
    def go(view):
        for step in range(1, 41):
            view.iteration(stats(step))

    lines = shown(go).splitlines()
    assert len(lines) == 40 + 2 + 1  # and an empty line before the second header
    assert [i for i, line in enumerate(lines) if "iteration" in line] == [0, 22]
    assert lines[1].split()[:4] == ["1/40", "0.333", "0.143", "0.143"]
    assert lines[1].split()[6:8] == ["0.100", "131.7"]


def test_rewards_that_do_not_fit_are_counted():
    names = [f"reward{i}" for i in range(9)]
    text = shown(lambda view: view.iteration(stats(1)), names)
    assert "(3 more rewards in metrics.jsonl)" in text
    assert all(cell_len(line) <= 80 for line in text.splitlines())


def test_an_evaluations_numbers_have_a_line_of_their_own():
    evaluated = {"eval/score": 7.5, "eval/kl": 3.25, "eval/reward/space": 0.75}
    lines = shown(lambda view: view.iteration(stats(10, **evaluated))).splitlines()
    assert lines[2].split() == ["eval", "7.500", "0.750", "–", "–", "–", "3.250"]  # noqa: RUF001
    first = shown(lambda view: view.iteration({"iteration": 0, "samples": 0, **evaluated}))
    assert first.splitlines()[1].split()[0] == "eval" and "0/40" not in first


def test_time_left_is_what_the_iterations_so_far_took(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("rlalign.report.live.time.monotonic", lambda: now[0])

    def go(view):
        for step in (11, 12):  # resumed after 10
            view.iteration(stats(step, **{"time/total": 5.0}))
            now[0] += 5.0

    lines = shown(go).splitlines()
    assert lines[1].split()[-1] == "2m25s"  # 29 iterations of 5 s
    assert lines[2].split()[-1] == "2m20s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (190, "3m10s"), (3599.9, "1h00m"), (7500, "2h05m")],
)
def test_durations_are_written_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_the_end_shows_change_samples_and_where_everything_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("runs") / "mine")
    folder.model.mkdir(parents=True)
    folder.metrics_jsonl.touch()
    before, after = evaluation(1.0, ["dull words"]), evaluation(2.5, ["dull words"])
    after.rows[0]["response"] = "bright words"

    def go(view):
        view.iteration(stats(1))
        view.final(folder, before, after)

    text = shown(go)
    assert re.search(r"dull words +bright words", text)
    assert "score 1.000, KL 2.000, space 0.500" in text
    assert re.search(r"score +1\.000 ± 0\.070 +2\.500 ± 0\.070 +\+1\.500", text)
    assert re.search(r"space +0\.500 +1\.250 +\+0\.750", text)
    assert "131.7 tokens/s" in text
    assert re.search(r"model +runs/mine/model\n", text)
    assert re.search(r"metrics +runs/mine/metrics\.jsonl\n", text)
    assert "checkpoints" not in text  # there are none


@pytest.mark.parametrize(
    "is_held_out, said, unsaid", [(True, "held-out", "training"), (False, "training", "held-out")]
)
def test_the_end_says_which_prompts_were_measured(tmp_path, is_held_out, said, unsaid):
    before, after = (
        dataclasses.replace(evaluation(score, ["words"]), is_held_out=is_held_out)
        for score in (1.0, 2.0)
    )
    text = shown(lambda view: view.final(RunFolder(tmp_path), before, after))
    assert f"on {said} prompts" in text and unsaid not in text


def test_without_evaluations_the_end_tells_the_training_numbers(tmp_path):
    def go(view):
        view.iteration(stats(3))
        view.iteration(stats(6))
        view.final(RunFolder(tmp_path), None, None)

    assert re.search(r"score +1\.000 +2\.000 +\+1\.000", shown(go))
    shown(lambda view: view.final(RunFolder(tmp_path), None, None))  # not one iteration


def test_a_terminal_that_went_away_or_cannot_write_a_letter_stops_nothing():
    closed = io.StringIO()
    closed.close()
    view = LiveView(40, NAMES, quiet=False, stream=closed)
    everything(view)
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    everything(LiveView(40, NAMES, quiet=False, stream=ascii_only))
    read, write = os.pipe()
    os.close(read)
    broken = os.fdopen(write, "w", buffering=1)
    everything(LiveView(40, NAMES, quiet=False, stream=broken))
    with contextlib.suppress(BrokenPipeError):
        broken.close()


def test_a_line_that_a_signals_handler_cuts_in_on_is_lost_and_no_more():
    class Busy(io.StringIO):
        busy = True

        def write(self, text: str) -> int:
            if self.busy:
                raise RuntimeError("reentrant call inside <_io.BufferedWriter>")
            return super().write(text)

    out = Busy()
    view = LiveView(40, [], quiet=False, stream=out)
    view.iteration(stats(1))
    out.busy = False
    view.iteration(stats(2))
    assert out.getvalue().split()[:2] == ["2/40", "0.667"]


def test_samples_are_of_another_prompt_each_time_and_not_too_often():
    def go(view):
        view.samples([row("p", "before p"), row("q", "before q")])
        for step in range(1, 13):
            view.iteration(stats(step))
            view.samples([row("p", f"p{step}"), row("new", "n"), row("q", f"q{step}")])

    text = shown(go)
    assert re.findall(r"▸ (\w+)", text) == ["p", "new", "q"]
    assert re.search(r"before p +p1\n", text) and re.search(r"before q +q11\n", text)


def test_the_last_iteration_leaves_samples_to_the_end():
    def go(view):
        view.samples([row("p", "before")])
        view.iteration(stats(40))
        view.samples([row("p", "after")])

    assert "before" not in shown(go)


@pytest.mark.parametrize(("width", "titles"), [
    (100, "iteration score a b c d e f g KL tok/s left"),
    (60, "iteration score a b c KL tok/s left"),
    (40, "iteration score KL tok/s left"), (30, "iteration score KL"), (17, "iteration score"),
])  # fmt: skip
def test_a_table_has_the_columns_that_there_is_room_for(width, titles):
    columns = columns_in(width, list("abcdefg"), 20)
    assert columns.titles == titles.split()
    assert len(columns.line(["1"] * len(columns.titles))) <= width
    assert columns.hidden == 7 - len(columns.rewards)


def test_a_long_run_has_room_for_its_numbers():
    assert columns_in(80, [], 20_000).line(["19999/20000", *[""] * 4]).startswith("19999/20000 ")


def test_a_quiet_view_writes_nothing():
    out = io.StringIO()
    everything(LiveView(40, NAMES, quiet=True, stream=out))
    assert out.getvalue() == ""


def test_unseen_characters_become_visible():
    assert visible("a\nb\tc\x1b\x00\x7f\x85\u202e\udc80") == "a⏎ b⇥ c␛␀\\x7f\\x85\\u202e\\udc80"
    assert visible("ä 中 🎉 👨\u200d👩 a\u200cb") == "ä 中 🎉 👨\u200d👩 a\u200cb"


def test_escaped_markdown_has_no_active_character():
    text = "# [x](javascript:1) <img src=x> **b** `c` | $a$ &amp; \n---\n@me http://a.b www.c.d"
    escaped = escape_markdown(text)
    assert "\n" not in escaped and "<" not in escaped
    assert "http://" not in escaped and "www." not in escaped
    for character in "#[](`|$*@":
        assert not re.search(rf"(?<!\\){re.escape(character)}", escaped), character
