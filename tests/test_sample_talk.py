"""`rlalign sample` where prompts are typed: every line is answered, no error ends it."""

import errno
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from tried_run import trained

from rlalign.config import from_mapping, read_file
from rlalign.methods import METHODS
from rlalign.session import Session
from rlalign.trained import load_trained, settings_for
from rlalign.trying import shown
from rlalign.trying.asked import for_trying
from rlalign.trying.drawing import Trial
from rlalign.trying.talking import talk


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("talk"), eval={"every": 0})


@pytest.fixture(scope="module")
def trial(run: Path) -> Iterator[Trial]:
    config = from_mapping(METHODS["ppo"].run_model, read_file(run / "config.yaml"))
    source = str(run / "model")
    with Session(settings_for(source, for_trying(config, None)), prompts=["Once"]) as session:
        load_trained(session, source)
        yield Trial(session, run)


def typing(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """Somebody who types these lines, and then Ctrl-D."""
    waiting = iter(lines)

    def ask(_: str) -> str:
        line = next(waiting, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return ask


@pytest.fixture
def said(trial: Trial, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """What a conversation prints, and what it says on stderr."""

    def conversation(*lines: Any, columns: dict[str, Any] | None = None) -> tuple[str, str]:
        trial.seed = 0
        capsys.readouterr()
        talk(trial, shown.console(), Text("about"), 1, columns or {}, typing(*lines))
        told = capsys.readouterr()
        return told.out, told.err

    return conversation


def policys(out: str) -> list[str]:
    lines = out.splitlines()
    return [lines[i + 1] for i, line in enumerate(lines) if line.startswith("policy")]


def test_a_prompt_is_answered_and_an_empty_line_draws_anew(said: Callable[..., Any]) -> None:
    out, err = said("Alice", "", "", "Alice")
    assert len(set(policys(out))) == 4 and not err
    again, _ = said("Alice", "", "", "Alice")
    assert again == out
    assert policys(said("The Queen", "Alice")[0])[1] == policys(out)[0]


def test_errors_are_told_and_the_conversation_goes_on(said: Callable[..., Any]) -> None:
    out, err = said("", ":foo", ":samples x", ":columns {", "word " * 200, "\ud83d", "Alice")
    told = err.splitlines()
    assert [
        words in line
        for words, line in zip(
            ("type a prompt first", ":foo is unknown", "give a whole number", "--columns {",
             "more than the 120", "is not UTF-8 text"),
            told, strict=True,
        )
    ] == [True] * 6  # fmt: skip
    assert len(policys(out)) == 1


def test_commands_change_samples_and_seed(said: Callable[..., Any]) -> None:
    out, _ = said(":samples 3", "Alice", ":samples 1", ":seed 5", "", ":seed 0", ":help", ":quit")
    assert len(policys(out)) == 4 and "policy 3 of 3" in out and ":columns {…}" in out
    assert policys(out)[3] not in policys(out)[:3]


def test_line_breaks_and_colons_can_be_typed(
    said: Callable[..., Any], trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    own = trial.pairs
    monkeypatch.setattr(
        trial, "pairs", lambda rows, *more: asked.append(rows[0]["prompt"]) or own(rows, *more)
    )
    said(r"Alice\nsaid\\n", r"\:quit")
    assert asked == ["Alice\nsaid\\n", ":quit"]


def test_ctrl_c_stops_an_answer_and_at_the_prompt_the_conversation(
    said: Callable[..., Any], trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "pairs", interrupted)
    out, err = said("Alice", "Alice", KeyboardInterrupt, "never")
    assert out.count("stopped") == 2 and not err


def test_in_a_terminal_lines_can_be_fetched_back_and_ctrl_d_ends_with_0(run: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rlalign", "sample", str(run)]
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": root}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    text, to_type = b"", [b"Alice\n", b"\x1b[A\n", b":nothing\n", b"\x04"]
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            text += os.read(ours, 65536)
        except OSError as error:
            assert error.errno == errno.EIO  # the other end is closed
            break
        if to_type and text.endswith(b"> "):
            text += b"\n"
            os.write(ours, to_type.pop(0))
    assert child.wait(30) == 0
    os.close(ours)
    shown = text.decode()
    assert shown.count("policy") == 2 and shown.count("> Alice") + shown.count("\nAlice") >= 2
    assert ":nothing is unknown" in shown and "Traceback" not in shown
