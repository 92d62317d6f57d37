"""`rlalign sample`: reference and policy side by side, with what each reward says of them."""

import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer
from tried_run import REWARD, trained

from rewards import embedded
from rewards.contract import Span
from rlalign.cli import main
from rlalign.trying import shown
from rlalign.trying.drawing import Pair, Tried


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("sample"))


Rows = list[dict[str, Any]]


def sampled(capsys: pytest.CaptureFixture[str], run: Path, *more: str) -> Rows:
    capsys.readouterr()
    assert main(["sample", str(run), "--json", *more]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def texts(rows: Rows, drawn_by: str = "policy", prompt: str = "Alice") -> list[str]:
    return [r["response"] for r in rows if (r["drawn_by"], r["prompt"]) == (drawn_by, prompt)]


def test_both_are_scored_by_the_runs_own_rewards(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sampled(capsys, run, "--prompt=Alice", "--prompt=The Queen", "--samples=20")
    assert [r["drawn_by"] for r in rows[:4]] == ["reference", "policy"] * 2
    assert {(r["prompt"], r["sample"]) for r in rows} == {
        (prompt, i) for prompt in ("Alice", "The Queen") for i in range(20)
    }
    for row in rows:
        words = set(re.findall(r"\w+", row["response"].lower()))
        assert row["rewards"]["she"] == float(bool(words & {"she", "the", "a"}))
        assert row["score"] == 2 * row["rewards"]["she"]
        assert row["kl"] == pytest.approx(row["log_policy"] - row["log_reference"], abs=1e-4)
        for start, end, credit in row["spans"].get("she", []):
            assert row["response"][start:end].lower() in ("she", "the", "a") and credit == 1.0
        assert bool(row["spans"].get("she")) == bool(row["rewards"]["she"])
    of_policy = [r["rewards"]["she"] for r in rows if r["drawn_by"] == "policy"]
    of_reference = [r["rewards"]["she"] for r in rows if r["drawn_by"] == "reference"]
    assert sum(of_policy) > sum(of_reference)  # it has learnt


def test_a_text_is_a_function_of_seed_prompt_and_number(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = sampled(capsys, run, "--prompt=Alice", "--samples=3")
    among = sampled(capsys, run, "--prompt=Once upon a", "--prompt=Alice", "--samples=5")
    for drawn_by in ("reference", "policy"):
        assert texts(alone, drawn_by) == texts(among, drawn_by)[:3]
        assert len(set(texts(among, drawn_by))) > 2
    other = sampled(capsys, run, "--prompt=Alice", "--samples=3", "--seed=1")
    assert texts(other) != texts(alone)
    again = sampled(capsys, run, "--prompt=Alice", "--samples=3", "--seed=0")
    assert again == alone  # the run's own seed


def test_a_policy_that_is_its_reference_writes_the_same_text(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sampled(
        capsys, Path("glass-tiny"), f"--config={run / 'config.yaml'}", "--prompt=Alice",
        "--samples=4",
    )  # fmt: skip
    assert texts(rows, "reference") == texts(rows, "policy")
    assert {row["kl"] for row in rows} == {0.0}


def test_the_runs_sampling_is_kept_unless_it_is_changed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = [row["length"] for row in sampled(capsys, run, "--prompt=Alice", "--samples=9")]
    assert max(longest) == 8
    cold = ["--sampling.temperature=0.01", "--sampling.max_new_tokens=3"]
    rows = sampled(capsys, run, "--prompt=Alice", "--samples=9", *cold)
    assert {row["length"] for row in rows} == {3} and len(set(texts(rows))) == 1


def test_files_of_prompts_bring_their_columns_and_the_command_line_the_rest(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    config = tmp_path / "c.yaml"
    config.write_text(
        json.dumps(
            {
                "model": {"name": "glass-tiny"},
                "sampling": {"max_new_tokens": 4},
                "reward_files": [str(tmp_path / "mine.py")],
                "rewards": {
                    "starts": {"kind": "tried.starts"},
                    "own": {"kind": "lexical.contains", "words": {"column": "words"}},
                },
            }
        )
    )
    file = tmp_path / "p.jsonl"
    lines = [
        {"prompt": "Alice", "opening": "", "words": ["the"]},
        {"prompt": "The Queen", "words": ["said"]},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = [f"--config={config}", f"--prompts={file}", "--samples=8"]
    rows = sampled(capsys, Path("glass-tiny"), *common, '--columns={"opening": "zzz"}')
    for row in rows:
        word = {"Alice": "the", "The Queen": "said"}[row["prompt"]]
        has_it = word in re.findall(r"\w+", row["response"].lower())
        assert row["columns"]["words"] == [word] and row["rewards"]["own"] == float(has_it)
        # The file's own value is kept; a row without one has that of the command line.
        starts = {"Alice": 1.0, "The Queen": 0.0}[row["prompt"]]
        assert row["rewards"]["starts"] == starts
    (tmp_path / "p.txt").write_text("Alice\n\nThe Queen\n")
    columns = '--columns={"opening": "", "words": ["a"]}'
    rows = sampled(
        capsys, Path("glass-tiny"), f"--config={config}", f"--prompts={tmp_path / 'p.txt'}", columns
    )
    assert [row["prompt"] for row in rows[::2]] == ["Alice", "The Queen"]


def test_conversations_go_through_the_chat_template_as_in_training(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chatty = tmp_path / "chatty"
    shutil.copytree(embedded.path("glass-tiny"), chatty)
    special = AutoTokenizer.from_pretrained(chatty)("").input_ids  # what plain text begins with
    start = "{{ bos_token }}" if special else ""
    template = "{% for m in messages %}" + start + "Said {{ m['content'] }}: {% endfor %}"
    (chatty / "chat_template.jinja").write_text(template)
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": [{"role": "user", "content": "Alice"}]}) + "\n")
    common = [f"--config={run / 'config.yaml'}", f"--model.name={chatty}", "--samples=2"]
    as_text = sampled(capsys, chatty, *common, "--prompt=Said Alice: ")
    for more in (["--prompt=Alice", "--prompts.chat"], [f"--prompts={file}"]):
        rows = sampled(capsys, chatty, *common, *more)
        assert texts(rows) == texts(as_text, prompt="Said Alice: ") and len(texts(rows)) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "say --prompt TEXT, --prompts FILE, or --interactive"),
        (["--interactive", "--prompt=x"], "--interactive and --prompt: prompts are typed"),
        (["--interactive", "--json"], "one is for people, the other for scripts"),
        (["--prompt="], "the prompt in row 1 of --prompt is empty"),
        (["--prompt=x", '--columns={"opning": 1}'], "--columns opning: no reward"),
        (["--prompt=x", "--columns=[1]"], "it is no object"),
        (["--prompts=nowhere.jsonl"], "--prompts=nowhere.jsonl: there is no such file"),
        (["--prompts=nowhere.txt"], "--prompts nowhere.txt cannot be read: No such file"),
        (["--prompt=x", "--sampling.temprature=1"], "did you mean sampling.temperature?"),
        (["--prompt=x", "--samples=0"], "Invalid value"),
        (["--prompt=" + "word " * 200], "more than the 120"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_what_to_do(
    run: Path, capsys: pytest.CaptureFixture[str], more: Sequence[str], words: str
) -> None:
    assert main(["sample", str(run), *more]) == 2
    assert words in capsys.readouterr().err


def test_a_run_that_runs_code_waits_for_trust(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    (tmp_path / "mine.py").write_text(REWARD)
    config = (mine / "config.yaml").read_text()
    files = f"reward_files: [{tmp_path / 'mine.py'}]"
    (mine / "config.yaml").write_text(config.replace("reward_files: []", files))
    assert main(["sample", str(mine), "--prompt=x"]) == 2
    assert f"as in `rlalign sample {mine} --trust`" in capsys.readouterr().err
    assert main(["sample", str(mine), "--prompt=x", "--trust"]) == 0


def test_an_unfinished_run_is_sampled_from_its_checkpoint_and_a_wrong_name_has_a_hint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = texts(sampled(capsys, run, "--prompt=Alice", "--samples=3"))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    shutil.rmtree(unfinished / "model")
    assert main(["sample", str(unfinished), "--prompt=x"]) == 0
    assert "its checkpoint step-000003 is taken" in capsys.readouterr().err
    assert texts(sampled(capsys, unfinished, "--prompt=Alice", "--samples=3")) == finished
    assert main(["sample", str(tmp_path / "unfinishd"), "--prompt=x"]) == 2
    assert f"did you mean {unfinished}?" in capsys.readouterr().err


# -- what is seen ---------------------------------------------------------------------------------


def tried(drawn_by: str, response: str, spans: Sequence[Span] = ()) -> Tried:
    rewards = {"she": 1.0, "na[b]me": None}
    row = {"drawn_by": drawn_by, "response": response, "score": 2.0, "kl": 3.25, "length": 7}
    return Tried(row | {"finished": True, "rewards": rewards}, spans)


def seen(width: int, pair: Pair, terminal: bool = True, **more: Any) -> list[str]:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=terminal, color_system="truecolor" if terminal
        else None, markup=False, highlight=False, emoji=False,
    )  # fmt: skip
    shown.put(console, shown.pair(pair, console, **more))
    return file.getvalue().splitlines()


PLAIN = re.compile(r"\x1b\[[\d;]*m")
TWO = Pair("Tell me", 0, tried("reference", "left words"), tried("policy", "right words"))


@pytest.mark.parametrize(("width", "beside"), [(60, False), (99, False), (100, True), (140, True)])
def test_two_columns_stand_side_by_side_where_there_is_room(width: int, beside: bool) -> None:
    lines = [PLAIN.sub("", line) for line in seen(width, TWO)]
    assert any("left words" in line and "right words" in line for line in lines) == beside
    assert max(map(len, lines)) <= width
    assert "KL 3.250" in "\n".join(lines) and "\n".join(lines).count("na[b]me –") == 2  # noqa: RUF001


def test_credit_is_coloured_by_sign_and_size_and_listed_where_there_are_no_colours() -> None:
    spans = [Span(0, 3, 1.0), Span(4, 7, -0.9), Span(8, 11, 0.1)]
    pair = Pair("p", 0, tried("reference", "-"), tried("policy", "red bad low not", spans))
    text = "\n".join(seen(80, pair))
    for piece in ("\x1b[1;32mred\x1b[0m", "\x1b[1;31mbad\x1b[0m", "\x1b[32mlow\x1b[0m not"):
        assert piece in text
    plain = seen(80, pair, terminal=False)
    assert '  credit: +1.000 "red", -0.900 "bad", +0.100 "low"' in plain
    assert all(line == line.rstrip() and "\x1b" not in line for line in plain)


@pytest.mark.parametrize("terminal", [True, False])
def test_hostile_text_does_nothing_to_the_terminal(terminal: bool) -> None:
    hostile = "[bold]a[/x]\x1b]0;title\x07\x1b[31m\u202eb\r\n:smile:"
    pair = Pair(hostile, 0, tried("reference", hostile), tried("policy", hostile, [Span(0, 9, 1)]))
    text = "\n".join(PLAIN.sub("", line) for line in seen(120, pair, terminal))
    assert not set("\x1b\x07\r\u202e") & set(text)
    assert "[bold]a[/x]␛]0;title␇␛[31m\\u202eb␍⏎" in text and ":smile:" in text


def test_means_stand_below_several_responses(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(run), "--prompt=Alice", "--samples=4"]) == 0
    out = capsys.readouterr().out
    rows = sampled(capsys, run, "--prompt=Alice", "--samples=4")
    of_policy = [r["score"] for r in rows if r["drawn_by"] == "policy"]
    line = next(line for line in out.splitlines() if line.startswith("score  "))
    assert line.split()[2] == f"{sum(of_policy) / 4:.3f}" and "means of 4 responses" in out
    assert "score = 2·she" in out and "temperature 0.8, at most 8 tokens, seed 0" in out
