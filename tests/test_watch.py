"""`rlalign watch`: what it shows of a run that others write, and how it ends."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from terminals import ROOT, run_on_terminal

from rlalign import watch
from rlalign.cli import main
from rlalign.problems import ConfigError
from rlalign.runs import MEANINGS, RunFolder
from rlalign.tracking import JsonlTracker
from rlalign.watch import Watch, find

CONFIG = "train: {iterations: 6}\neval: {every: 3}\nrewards: {space: {kind: x}, said: {kind: y}}\n"


def row(step: int, **more: float) -> dict[str, float]:
    base = {"score": step / 4, "kl/ref": 0.1, "tokens_per_second": 99.0, "time/total": 2.0}
    return {"iteration": step, **base, "reward/space": step / 8, "reward/said": 0.5, **more}


def sample(step: int, response: str) -> dict:
    rewards = {"space": 0.5, "said": 0.25}
    about = {"split": "eval", "prompt": "Once", "score": 1.0, "kl": 0.5, "rewards": rewards}
    return {**about, "response": f"{response} at {step}"}


class Run:
    """A run as its process writes it."""

    def __init__(self, path) -> None:
        path.mkdir(parents=True)
        self.folder = RunFolder(path)
        self.folder.config_yaml.write_text(CONFIG)
        self.folder.write_run_json({"name": path.name, "status": "running"})
        self.tracker = JsonlTracker(self.folder)
        evaluated = {"eval/score": 0.0, "eval/kl": 0.0, "eval/reward/space": 0.0}
        self.tracker.log(0, {"samples": 0, **evaluated})
        self.tracker.samples(0, [sample(0, "dull words")])

    def to(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            evaluated = {"eval/score": step / 2, "eval/kl": 1.0} if step % 3 == 0 else {}
            self.tracker.log(step, row(step, **evaluated))
            if evaluated:
                self.tracker.samples(step, [sample(step, "bright words")])

    def end(self, status: str, code: int, message: str | None = None, where: str = "") -> None:
        where_at = (0, where) if where else None
        self.folder.finish(status, code, message, where_at)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.02)
    return Run(tmp_path / "runs" / "mine")


def numbers(text: str) -> list[str]:
    return re.findall(r"^ +(\d+/6|eval) ", text, re.MULTILINE)


def test_a_finished_run_is_shown_with_its_end_and_its_exit_code(run, capsys):
    run.to(1, 6)
    run.end("done", 0)
    assert main(["watch", "runs/mine"]) == 0
    shown = capsys.readouterr().out
    assert numbers(shown) == ["eval", "1/6", "2/6", "3/6", "eval", "4/6", "5/6", "6/6", "eval"]
    assert "iteration   score      space       said     KL" in shown
    assert re.search(r"dull words at 0 +bright words at 6", shown)
    assert re.search(r"score +0\.000 +3\.000 +\+3\.000", shown)
    assert "99.00 tokens/s (median), 12s in all" in shown
    assert re.search(r"metrics +runs/mine/metrics.jsonl\n", shown)
    assert re.search(r"status +done\nexit code +0: done\n$", shown)


def test_a_run_that_goes_on_is_followed_to_its_end(run):
    run.to(1, 2)
    out = io.StringIO()
    followed = Watch(run.folder, rows=20, stream=out)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(followed.follow()))
    thread.start()
    wait_for(lambda: "2/6" in out.getvalue())
    with run.folder.metrics_jsonl.open("ab") as file:
        half = json.dumps(row(3)).encode()
        file.write(half[:20])
        file.flush()
        time.sleep(0.1)
        file.write(half[20:] + b"\n")
    run.tracker.samples(3, [sample(3, "bright words")])
    wait_for(lambda: "bright words at 3" in out.getvalue())
    run.to(4, 6)
    run.end("failed", 5, "reward 'said' raised", "iteration 6, score")
    thread.join(10)
    shown = out.getvalue()
    assert codes == [5]
    assert numbers(shown) == ["eval", *(f"{i}/6" for i in range(1, 7)), "eval"]
    assert re.search(r"dull words at 0 +bright words at 3", shown)
    assert re.search(r"exit code +5: a reward failed\nmessage +reward 'said' raised\n", shown)
    assert "where        iteration 6, score" in shown and "on held-out" not in shown


def test_a_resume_that_takes_rows_back_is_said_and_followed(run):
    run.to(1, 5)
    out = io.StringIO()
    followed = Watch(run.folder, rows=20, stream=out)
    thread = threading.Thread(target=followed.follow)
    thread.start()
    wait_for(lambda: "5/6" in out.getvalue())
    run.tracker.truncate_after(3)
    wait_for(lambda: "goes on after iteration 3" in out.getvalue())
    run.to(4, 6)
    run.end("done", 0)
    thread.join(10)
    after = out.getvalue().split("goes on after iteration 3")[1]
    assert numbers(after) == ["4/6", "5/6", "6/6", "eval"]


def test_once_says_how_it_is_and_ends(run, capsys):
    run.to(1, 5)
    assert main(["watch", "mine", "--once", "--rows", "2"]) == 0
    shown = capsys.readouterr().out
    assert numbers(shown) == ["4/6", "5/6"] and "(4 earlier rows in metrics.jsonl)" in shown
    assert re.search(r"5/6 .* 2s\n", shown)  # one iteration of 2 s is left
    assert re.search(r"status +running, iteration 5 of 6\nlast row +\d+s ago\n$", shown)


def test_a_preempted_run_says_how_it_goes_on(run, capsys):
    run.to(1, 4)
    (run.folder.checkpoints / "step-000003").mkdir(parents=True)
    run.end("preempted", 143, "stopped after iteration 4 of 6")
    assert main(["watch"]) == 143  # the newest
    shown = capsys.readouterr().out
    assert "143: pre-empted after a clean save" in shown
    assert "go on with   --run.name=mine --run.resume=auto" in shown


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("runs/mien", "runs/mien: no such run (no run.json in it); did you mean runs/mine?"),
        ("mien", "mien: no such run (no run.json in it); did you mean runs/mine?"),
        ("runs", "runs is a folder of runs; name one, as runs/mine"),
        ("x", "x: no such run (no run.json in it); --wait waits for it"),
        (".", ".: a folder without a run (no run.json in it); --wait waits for it"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(run, capsys, named, said):
    assert main(["watch", named]) == 2
    assert capsys.readouterr().err == said + "\n"


def test_no_run_at_all_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="there is no run in runs"):
        find(None)


def test_wait_waits_for_a_run_that_is_not_there(run, capsys):
    def begin() -> None:
        time.sleep(0.2)
        later = Run(run.folder.path.parent / "later")
        later.to(1, 1)
        later.end("done", 0)

    thread = threading.Thread(target=begin)
    thread.start()
    assert main(["watch", "runs/later", "--wait"]) == 0
    thread.join()
    said = capsys.readouterr()
    assert said.err == "rlalign: waiting for runs/later\n" and "1/6" in said.out


def test_wait_without_a_name_waits_for_a_run_that_is_not_over(run, capsys):
    run.end("done", 0)

    def begin() -> None:
        time.sleep(0.2)
        later = Run(run.folder.path.parent / "later")
        later.to(1, 1)
        later.end("stopped", 6)

    thread = threading.Thread(target=begin)
    thread.start()
    assert main(["watch", "--wait"]) == 6
    thread.join()
    assert capsys.readouterr().err == "rlalign: waiting for a run in runs\n"


def test_wait_without_a_name_takes_an_old_run_that_goes_on(run, capsys):
    run.end("preempted", 143)

    def go_on() -> None:
        time.sleep(0.2)
        run.folder.write_run_json({"status": "running"})
        time.sleep(0.2)
        run.end("done", 0)

    thread = threading.Thread(target=go_on)
    thread.start()
    assert main(["watch", "--wait"]) == 0
    thread.join()


def test_a_damaged_folder_is_shown_as_far_as_it_can_be(run, capsys):
    run.folder.config_yaml.write_text("train: [\n")
    with run.folder.metrics_jsonl.open("ab") as file:
        file.write(b'{"iter\n\xff\n' + json.dumps(row(2) | {"score": "\x1b[2J"}).encode() + b"\n")
    with run.folder.samples_jsonl.open("ab") as file:
        file.write(b'{"iteration": 3, "split": "eval"}\n[]\n')
    run.folder.write_run_json({"status": "failed", "exit_code": 99, "message": "\x1b[2Jx",
                               "where": {"at": "\x1b]0;t\x07"}, "warnings": [3]})  # fmt: skip
    assert main(["watch", "mine"]) == 99
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "99: not one of ours" in shown and "␛[2Jx" in shown


def test_on_a_terminal_it_has_the_bar_and_ctrl_c_leaves_it(run):
    run.to(1, 2)
    bars = []

    def interrupt(pid, seen):
        if re.search("2/6 ━+.* left", "\n".join(seen.screen.display)) and not bars:
            bars.append(True)
            os.kill(pid, signal.SIGINT)

    program = "import sys; from rlalign.cli import main; sys.exit(main(['watch', 'mine']))"
    seen = run_on_terminal(program, meanwhile=interrupt)
    assert seen.code == 130 and bars
    assert seen.lines[-1] == "rlalign: no longer watching; the run goes on"
    assert not any("━" in line for line in seen.lines) and b"\x1b[?25l" not in seen.raw


def test_a_run_without_a_row_for_long_is_said(run):
    run.to(1, 2)
    followed = Watch(run.folder, rows=20, stream=io.StringIO())
    followed._catch_up()
    assert followed._now() == ""
    then = time.time() - 300
    for path in (run.folder.metrics_jsonl, run.folder.run_json):
        os.utime(path, (then, then))
    assert followed._now() == "no row for 5m00s"
    run.folder.write_run_json({"status": "running"})  # it goes on, after days
    assert followed._now() == ""


def test_a_run_that_is_lost_is_said_once_in_a_pipe_and_given_up(run, capsys):
    run.to(1, 2)
    then = time.time() - 300
    for path in (run.folder.metrics_jsonl, run.folder.run_json):
        os.utime(path, (then, then))
    assert main(["watch", "mine", "--give-up", "301"]) == 7
    said = capsys.readouterr()
    assert said.out.count("no row for 5m00s\n") == 1
    assert said.err == ("rlalign: gave up after 5m01s without a row; its machine may be lost\n")
    assert main(["watch", "mine", "--give-up", "0"]) == 2


def test_watching_needs_no_torch():
    code = "import sys, rlalign.watch; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_readme_explains_the_same_exit_codes():
    table = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {int(code) for code, _ in table} == set(MEANINGS)
    for code, meaning in table:
        assert meaning.replace("`", "").startswith(MEANINGS[int(code)])


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
