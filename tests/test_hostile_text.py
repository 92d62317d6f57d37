"""Nothing that a model wrote acts on a terminal, a page, a card or a tracker."""

import ast
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from compared import content, hostile_run, support
from hostile import TEXTS
from markdown_it import MarkdownIt
from tracked_rows import lines

from rewards import RewardSet, parse_entries
from rewards.contract import RewardError
from rlalign.cli import main
from rlalign.compare import table
from rlalign.evaluate import Evaluation
from rlalign.exits import run_safely
from rlalign.files import encodable
from rlalign.report.card import write_model_card
from rlalign.report.compare_page import compare_page
from rlalign.report.live import LiveView
from rlalign.report.visible import visible
from rlalign.report.yardstick_table import yardstick_table
from rlalign.runs import RunFolder
from rlalign.settings.sections import RunConfig
from rlalign.startup import Printable, say
from rlalign.tracking import JsonlTracker, TensorBoardTracker
from rlalign.wandb_tracker import sample_table

ROOT = Path(__file__).parent.parent
# Control characters but the line break, marks of direction, and what is not seen.
ACTS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(params=TEXTS.values(), ids=TEXTS)
def text(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def row(response: str, **more: object) -> dict[str, object]:
    shown = {"prompt": f"p {response}", "response": response, "score": 1.0, "kl": 2.0}
    return {**shown, "rewards": {"r": 0.5}, "reference_response": response, **more}


def evaluation(response: str) -> Evaluation:
    return Evaluation({"eval/score": 1.0, "eval/kl": 2.0}, [row(response)])


# -- terminals


def live(text: str) -> str:
    out = io.StringIO()
    view = LiveView(4, [text], quiet=False, stream=out)
    view.samples([row(text)])
    view.samples([row(text)])
    view.iteration({"iteration": 1, "score": 1.0, f"reward/{text}": 1.0})
    view.final(RunFolder(Path("runs/x")), evaluation(text), evaluation(text), [text])
    return out.getvalue()


def compared(text: str) -> str:
    return table([hostile_run(text)])


def measured(text: str) -> str:
    refused = content(support=support(refusal=text))
    target = {**refused["target"], "notes": [text], "formula": "P"}
    return yardstick_table(refused | {"target": target})


def logged(text: str) -> str:
    record = logging.LogRecord("rewards", logging.WARNING, "f", 1, "it said %s", (text,), None)
    return Printable("%(name)s: %(message)s").format(record)


@pytest.mark.parametrize("view", [live, compared, measured, logged])
def test_no_view_of_the_terminal_passes_on_what_acts_there(
    text: str, view: Callable[[str], str]
) -> None:
    shown = view(text)
    assert not ACTS.search(shown), repr(ACTS.search(shown))
    if text.startswith("[/red]"):
        assert "[/red] [bold]x[/]" in shown  # markup is text, and no error


def test_no_message_passes_on_what_acts_on_a_terminal(text: str, capsys: Capture) -> None:
    def fail(error: Exception) -> Callable[[], None]:
        def job() -> None:
            raise error

        return job

    say(text)
    assert run_safely(fail(RewardError(f"it said {text}"))) == 5
    assert run_safely(fail(ZeroDivisionError(f"it said {text}"))) == 1  # with its traceback
    assert main([f"rewards{text}", text]) == 2
    shown = capsys.readouterr()
    assert "Traceback" in shown.err and not ACTS.search(shown.err + shown.out)


@pytest.mark.parametrize("colour", [False, True])
def test_probing_a_text_does_not_pass_it_on(
    text: str, colour: bool, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if colour:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
    reward = "rewards: {x: {kind: lexical.contains, words: [a, e, x]}}"
    (tmp_path / "a.yaml").write_text(reward)
    given = ["--config", str(tmp_path / "a.yaml"), "--", f"a {encodable(text)}"]
    assert main(["rewards", "probe", *given]) == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert not ACTS.search(shown), repr(ACTS.search(shown))


# -- pages


class Tags(HTMLParser):
    """Counts tags with their attributes, and gathers the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # What a picture shows is drawn, and its words are told by the caption.
        names = sorted(f"{name}={value}" for name, value in attrs if name in ("href", "rel"))
        self.tags[" ".join([tag, *(name for name, _ in attrs), *names])] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


@cache
def page_of(text: str) -> Tags:
    return Tags(compare_page([hostile_run(text)], [text]))


def test_the_page_of_compare_has_no_tag_of_a_text(text: str) -> None:
    page = page_of(text)
    assert page.tags == page_of("plain").tags
    assert visible(text)[:600] in page.text
    assert not ACTS.search(page.text)


def rendered(folder: Path, response: str) -> Tags:
    config = RunConfig(rewards={"r": {"kind": "lexical.contains", "words": [response]}})
    both = evaluation(response), evaluation(response)
    card = write_model_card(folder, config, *both, 1, caveats=[response], audit=[response])
    _, front, body = card.read_text(encoding="utf-8").split("---\n", 2)
    assert "evil" not in front
    return Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))


def test_a_model_card_has_no_markup_of_a_text(text: str, tmp_path: Path) -> None:
    card, plain = rendered(tmp_path, encodable(text)), rendered(tmp_path, "plain")
    assert card.tags == plain.tags
    assert visible(encodable(text)).split("\\")[0][:80].strip() in card.text
    assert not ACTS.search(card.text)


CODE = ["__import__('os').mkdir('TRACE')", "eval('__import__(\"os\").mkdir(\"TRACE\")')",
        "(lambda: open('TRACE', 'w'))()", "\\text{__import__('os').mkdir('TRACE')}"]  # fmt: skip


AROUND = ["{}", "$ {} $", r"\boxed{{{}}}", r"It is $\boxed{{{}}}$.", r"\[ {} \]", "= {}"]


@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("around", AROUND)
def test_code_in_a_mathematical_answer_is_not_run(code: str, around: str, tmp_path: Path) -> None:
    """sympy, which compares answers, evaluates what it is given as an expression."""
    pytest.importorskip("math_verify")
    trace = tmp_path / "trace"
    answer = around.format(code.replace("TRACE", str(trace)))
    score = RewardSet(parse_entries({"right": {"kind": "trl.accuracy_reward"}}))
    for solution in ("$2$", answer):
        score(["1 + 1"], [answer], {"solution": [solution]})
    assert not trace.exists()


def test_sympy_alone_would_run_it(tmp_path: Path) -> None:
    sympy = pytest.importorskip("sympy")
    with suppress(sympy.SympifyError, TypeError):
        sympy.parse_expr(CODE[0].replace("TRACE", str(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


# -- files and trackers


def test_samples_are_kept_as_they_were_a_line_each(text: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    JsonlTracker(run).samples(1, [row(text), row("b")])
    kept = run.samples_jsonl.read_bytes().decode()
    assert kept.count("\n") == 2
    assert [each["response"] for each in lines(run.samples_jsonl)] == [text, "b"]


def test_a_table_of_wandb_holds_texts_and_numbers_alone(text: str) -> None:
    found = sample_table(1, [row(text)])
    assert found.data[0][1:4] == [encodable(f"p {text}"), encodable(text), encodable(text)]
    assert {type(cell) for cell in found.data[0]} == {int, float, str}


def test_tensorboard_gets_literal_text(text: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html

    tracker = TensorBoardTracker(tmp_path)
    tracker.samples(1, [row(text)])
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    kept = events.Tensors("samples/train/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in kept.split("\n"))
    assert json.loads(kept)["response"] == text
    assert set(Tags(markdown_to_safe_html(kept)).tags) == {"pre", "code"}  # what its page shows


def test_one_file_writes_a_spreadsheet() -> None:
    """That of a sweep, whose cells are kept from being formulas; others' would have to be, too."""
    paths = {*(ROOT / "rlalign").rglob("*.py"), *(ROOT / "rewards").rglob("*.py")}
    for path in paths - {ROOT / "rlalign" / "sweeps" / "outcome.py"}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", getattr(node, "id", ""))
            assert name not in ("to_csv", "to_excel", "DictWriter", "to_clipboard"), path
            is_writer = isinstance(node, ast.Attribute) and node.attr == "writer"
            assert not (is_writer and getattr(node.value, "id", "") == "csv"), path
