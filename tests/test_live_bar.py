"""The bar below a run's lines, seen on a terminal."""

import os
import re
import signal
import subprocess
import sys

import pytest
from rich.console import Console
from terminals import ROOT, run_on_terminal

from rlalign.report.live_bar import Progress, _Above

VIEW = """
import logging, os, sys, time, warnings
from rlalign.report.live import LiveView
logging.basicConfig(level=logging.INFO, format="%(message)s",
                    handlers=[logging.StreamHandler(sys.stderr)])
def row(step):
    return {"iteration": step, "score": step / 3, "kl/ref": 0.125, "tokens_per_second": 131.7,
            "time/total": 2.0, "reward/space": step / 7, "reward/said": 0.5}
view = LiveView(40, ["space", "said"], quiet=False, now=lambda: "generate")
"""


def test_lines_scroll_and_the_bar_stays_at_the_bottom_until_the_end():
    # Long enough at 12 and 22 to be read then, on a machine that does other work as well.
    program = VIEW + (
        "with view:\n for i in range(1, 31):\n"
        "  view.iteration(row(i)); time.sleep(1 if i % 10 == 2 and i > 2 else 0.02)\n"
    )
    bars = []

    def look(_pid, seen):
        if re.search(r"\d2/40", seen.screen.display[seen.screen.cursor.y]):
            bars.append(seen.screen.display[seen.screen.cursor.y])

    seen = run_on_terminal(program, meanwhile=look)
    numbers = [line.split()[0] for line in seen.lines if re.match(r" +\d+/40 ", line)]
    assert numbers == [f"{i}/40" for i in range(1, 31)]
    assert not any("generate" in line for line in seen.lines)  # it is gone at the end
    assert len({len(bar) for bar in bars}) == 1 and "━" in bars[-1]
    bar = r"\d2/40 generate +━+.* score \d+\.\d+ KL 0\.125 131\.7 tok/s \w+ left"
    assert all(re.search(bar, line) for line in bars)
    assert b"\x1b[?25l" not in seen.raw  # the cursor is never hidden


PRINTED = {
    "print('from', 'print')": "from print",
    "sys.stderr.write('a'); sys.stderr.write('b\\n')": "ab",
    "logging.getLogger('x').warning('a handler made before')": "a handler made before",
    "logging.getLogger('y').addHandler(logging.StreamHandler()); "
    "logging.getLogger('y').info('one made within')": "one made within",
    "warnings.warn('a library')": "<string>:1: UserWarning: a library",
    "sys.stderr.write('\\r10% of it'); sys.stderr.write('\\r100%\\n')": "100%",
    "print('w' * 100)": "w" * 80,
    "print('\\x1b[31mred\\x1b[0m \\x1b[2Jcleared')": "red cleared",
}


def test_what_others_print_stands_above_the_bar_on_lines_of_its_own():
    program = (
        VIEW
        + f"""
with view:
    for i, code in enumerate({list(PRINTED)!r}, 1):
        view.iteration(row(i))
        time.sleep(0.3)
        exec(code)
        time.sleep(0.3)
print("after", file=sys.stderr)
"""
    )
    seen = run_on_terminal(program)
    for i, shown in enumerate(PRINTED.values(), 1):
        [where] = [k for k, line in enumerate(seen.lines) if line.split()[:1] == [f"{i}/40"]]
        assert seen.lines[where + 1] == shown
    assert seen.last == "after" and not any("generate" in line for line in seen.lines)


def test_an_error_leaves_its_last_line_last_and_the_streams_as_they_were():
    program = (
        VIEW
        + """
before = sys.stdout, sys.stderr, logging.getLogger().handlers[0].stream
try:
    with view:
        view.iteration(row(1))
        print("half a line", end="")
        time.sleep(0.3)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    assert before == (sys.stdout, sys.stderr, logging.getLogger().handlers[0].stream)
    print("\\nrlalign: interrupted", file=sys.stderr)
    sys.exit(130)
"""
    )
    seen = run_on_terminal(program)
    assert seen.code == 130
    assert seen.lines[-2:] == ["half a line", "rlalign: interrupted"]


def test_a_bar_of_others_that_never_ends_its_line_is_not_kept_whole():
    shown = []
    above = _Above("stdout", shown.append)
    try:
        for step in range(1000):
            sys.stdout.write(f"\r{step} of 1000")
        kept = above._rest
    finally:
        above.end()
    assert len(kept) < 40


def test_a_signals_handler_may_print_while_a_line_is_written():
    program = (
        VIEW
        + """
import signal
told = 0
def tell(*_):
    global told
    told += 1
    logging.getLogger().warning("told")
signal.signal(signal.SIGALRM, tell)
steps = 0
with view:
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    while told < 50:
        steps += 1
        view.iteration(row(steps))
    signal.setitimer(signal.ITIMER_REAL, 0)
print(steps, "steps")
"""
    )
    seen = run_on_terminal(program)
    assert seen.code == 0 and "Traceback" not in "".join(seen.lines)
    rows = {line.split()[0] for line in seen.lines if "/40 " in line}
    steps = int(seen.last.split()[0])
    assert rows >= {f"{i}/40" for i in range(1, steps + 1)}


def test_a_forked_process_prints_by_itself_and_draws_no_bar():
    program = (
        VIEW
        + """
with view:
    view.iteration(row(1))
    time.sleep(0.3)
    if os.fork() == 0:
        assert type(sys.stdout).__name__ == "TextIOWrapper"
        print("\\nfrom the child", flush=True)
        os._exit(0)
    os.wait()
"""
    )
    seen = run_on_terminal(program)
    assert seen.code == 0 and "from the child" in seen.lines


def test_a_killed_run_leaves_a_terminal_that_shows_its_cursor():
    def kill(pid, seen):
        if b"1/40 generate" in seen.raw:
            os.kill(pid, signal.SIGKILL)

    seen = run_on_terminal(
        VIEW + "with view: view.iteration(row(1)); time.sleep(50)", meanwhile=kill
    )
    assert seen.code == -signal.SIGKILL
    assert not seen.screen.cursor.hidden


def test_standard_error_in_a_file_stays_there(tmp_path):
    program = VIEW + "with view:\n view.iteration(row(1)); print('x' * 200, file=sys.stderr)\n"
    seen = run_on_terminal(program, stderr=tmp_path / "err")
    assert (tmp_path / "err").read_text() == "x" * 200 + "\n"
    assert "xxx" not in "".join(seen.lines)


RESIZED = """
import fcntl, struct, termios
with view:
    view.iteration(row(1)); view.iteration(row(2)); time.sleep(0.4)
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 45, 0, 0))
    time.sleep(0.4)
    view.iteration(row(3)); time.sleep(0.4)
"""


def test_a_terminal_that_is_made_narrower_gets_a_table_and_a_bar_that_fit():
    seen = run_on_terminal(VIEW + RESIZED)
    header = [line for line in seen.lines if line.startswith("iteration")]
    assert [line.split() for line in header] == [
        ["iteration", "score", "space", "said", "KL", "tok/s", "left"],
        ["iteration", "score", "space", "KL", "tok/s", "left"],
    ]
    narrow = seen.raw.decode().split("more rewards")[1]
    assert all(
        len(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", part)) < 46 for part in re.split(r"[\r\n]", narrow)
    )


@pytest.mark.parametrize(("width", "has"), [
    (80, "12/40 generate ━ score 1.500 KL 0.250 131.7 tok/s 3m10s left"),
    (60, "12/40 ━ score 1.500 KL 0.250 131.7 tok/s 3m10s left"),
    (50, "12/40 ━ score 1.500 KL 0.250 3m10s left"),
    (30, "12/40 ━ 3m10s left"),
    (16, "12/40 ━"),
    (4, "12/"),
])  # fmt: skip
def test_the_bar_says_what_there_is_room_for(width, has):
    progress = Progress(12, 40, "generate", 1.5, 0.25, 131.7, "3m10s")
    console = Console(width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(progress)
    [line] = capture.get().split("\n")
    assert re.sub("[━╸╺ ]+", " ", line).strip() == has.replace("━ ", "").replace(" ━", "")
    assert len(line) < width


def test_no_color_and_dumb_terminals_are_respected():
    program = VIEW + "with view:\n view.iteration(row(1)); time.sleep(0.4)\n"
    plain = run_on_terminal(program, NO_COLOR="1")
    assert b"generate" in plain.raw and not re.search(rb"\x1b\[[0-9;]*3[0-9]", plain.raw)
    dumb = run_on_terminal(program, TERM="dumb")
    assert b"1/40" in dumb.raw and b"\x1b" not in dumb.raw and b"generate" not in dumb.raw


@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1"}])
def test_what_is_no_terminal_gets_lines_and_nothing_that_moves(env):
    program = VIEW + "with view:\n view.iteration(row(1)); time.sleep(0.4); print('p')\n"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, **env}, check=True,
    )  # fmt: skip
    plain = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout)
    lines = [" ".join(line.split()) for line in plain.splitlines()]
    assert lines == [
        "iteration score space said KL tok/s left",
        "1/40 0.333 0.143 0.500 0.125 131.7 1m18s",
        "p",
    ]
