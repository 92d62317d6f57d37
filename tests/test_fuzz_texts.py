"""Whatever a model writes is scored, placed on its tokens and shown, as text and nothing else."""

import io
import json
import math
import re
import unicodedata
from functools import cache
from pathlib import Path

import builders
import oracle
import pytest
import torch
from compared import run as measured
from fuzzing import fuzzed, plain_values, texts
from hypothesis import strategies as st
from test_offsets import TOKENIZERS, tokenizer_of

from rewards import RewardConfigError, RewardError, RewardSet
from rewards.contract import Span
from rewards.entries import parse_entries
from rewards.judge import _reply, mark, parse_grade
from rewards.trl_style import as_script, plain_text
from rlalign.evaluate import Evaluation
from rlalign.offsets import Offsets
from rlalign.redact import redact_text
from rlalign.report.card import write_model_card
from rlalign.report.compare_page import safe, side_by_side, witnesses
from rlalign.report.live import LiveView
from rlalign.report.visible import escape_markdown, visible
from rlalign.runs import RunFolder
from rlalign.scoring import place_credit
from rlalign.settings.sections import RunConfig
from rlalign.symptoms import batch_numbers, marked
from rlalign.terminal import plain_text as rich_text
from rlalign.terminal import printable
from rlalign.tracking import JsonlTracker, TensorBoardTracker
from rlalign.types import Rollout

MARKUP = ["[bold]", "[/red]", "[link=x]", "<b>", "&lt;", "|", "**", "``", "\x1b[2J", "\u202e", "\r",
          "\x9b", "\u2066", "https://x.y", "@a", "www.a.b", ":smile:", "<!--", "$x$", "~~", "- ",
          "{", "}", '"', ",", "[", "]", ".", "!", "rain", "Rain", " ", "\n\n", "e\u0301",
          "1)"]  # fmt: skip
SPECIAL = r"\\`*_{}\[\]()#+!|~$:@"  # to Markdown
DOCUMENTS = st.lists(st.sampled_from(MARKUP) | texts(8), max_size=12).map("".join)
"""Text in pieces that mean something to a terminal, to Markdown, HTML or a reward."""


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        yield Path.cwd()


# -- as text --------------------------------------------------------------------------------------


def is_harmless(text):
    """On one line, with nothing that moves the cursor or turns the direction of writing."""
    kept = {"\u200c", "\u200d"}
    unseen = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return all(c in kept or unicodedata.category(c) not in unseen for c in text)


def test_a_backslash_before_a_tag_does_not_turn_into_an_entity_of_its_own():
    assert escape_markdown(r"\<b>") == r"\\&lt;b\>"


@fuzzed(1200, DOCUMENTS)
def test_text_is_made_harmless_everywhere(text):
    assert is_harmless(visible(text)) and is_harmless(escape_markdown(text))
    assert all(c.isprintable() or c == "\n" for c in printable(text))
    assert rich_text(text).plain == printable(text)
    assert "<" not in safe(text) and is_harmless(safe(text).replace("\n", ""))
    assert re.fullmatch(rf"(\\[{SPECIAL}.>]|&lt;|&amp;|[^{SPECIAL}<>&])*", escape_markdown(text))
    redact_text(text)


def rows(count):
    row = st.fixed_dictionaries(
        {
            "prompt": DOCUMENTS,
            "response": DOCUMENTS,
            "score": st.floats(-1e15, 1e15),
            "kl": st.floats(-1e3, 1e3),
            "length": st.integers(0, 50),
            "rewards": st.fixed_dictionaries({"a": st.none() | st.floats(-1e15, 1e15)}),
            "columns": st.dictionaries(texts(5), texts(5) | st.floats(), max_size=2),
        }
    )
    return st.lists(row, min_size=count, max_size=count)


@fuzzed(300, rows(3), rows(3))
def test_the_terminal_shows_text_as_text(before, after):
    for row, again in zip(before, after, strict=True):
        again["prompt"] = row["prompt"]
    stream = io.StringIO()
    view = LiveView(3, ["a", "[/red]"], quiet=False, stream=stream)
    view.iteration({"iteration": 1, "score": before[0]["score"], "tokens_per_second": 1.0})
    view.samples(before)
    view.samples(after)
    assert all(is_harmless(line) for line in stream.getvalue().split("\n"))
    assert "before" in stream.getvalue()


@fuzzed(60, rows(3), rows(3))
def test_the_model_card_is_markdown_without_markup_of_others(before, after):
    for row, again in zip(before, after, strict=True):
        again["prompt"] = row["prompt"]
    config = RunConfig(rewards={"a": {"kind": "style.sentiment"}})
    evaluations = [Evaluation({}, made) for made in (before, after)]
    path = write_model_card(Path("."), config, *evaluations, 1, caveats=[before[0]["response"]])
    table = path.read_text(encoding="utf-8").split("## Samples")[1].split("\n\n")[2]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in table.split("\n"))
    assert "<" not in table.replace("&lt;", "")


@fuzzed(200, rows(2), DOCUMENTS)
def test_the_page_of_comparison_is_html_without_markup_of_others(made, label):
    one = measured("one")
    samples = [dict(row, drawn_by="policy") for row in made]
    one.samples[:] = samples
    one.content["witnesses"] = {"too_often": [dict(row, log_ratio=row["kl"]) for row in made]}
    page = side_by_side([one]) + witnesses([one])
    tags = {
        "h2",
        "p",
        "table",
        "tr",
        "th",
        "td",
        "div",
        "b",
        "span",
        "pre",
        "details",
        "summary",
        "i",
    }
    assert set(re.findall(r"<(?!/)([^\s>]*)", page)) <= tags
    assert all(is_harmless(line) for line in page.split("\n"))


@fuzzed(
    250, rows(2), st.dictionaries(st.sampled_from(["score", "reward/a"]), st.floats(), max_size=2)
)
def test_every_row_is_a_line_of_strict_json(made, stats):
    run = RunFolder(Path.cwd())
    tracker = JsonlTracker(run)
    tracker.samples(1, made)
    tracker.log(1, stats)
    tracker.close()
    for path in (run.samples_jsonl, run.metrics_jsonl):
        for line in path.read_bytes().splitlines():
            json.loads(line, parse_constant=pytest.fail)
        path.unlink()


@fuzzed(60, rows(2))
def test_tables_of_trackers_hold_text(made):
    from rlalign.wandb_tracker import sample_table

    table = sample_table(1, made)
    json.dumps(table.data, allow_nan=False).encode()
    assert all(type(cell) in (str, int, float, type(None)) for row in table.data for cell in row)
    tracker = TensorBoardTracker(Path("tensorboard"))
    tracker.samples(1, made)
    tracker.close()


@fuzzed(300, rows(4))
def test_the_audit_reads_any_text(made):
    for row in made:
        row["rewards"] = {"a": row["rewards"]["a"], "b": row["kl"]}
    found = batch_numbers(made, {"a": lambda value: value, "b": lambda value: -2 * value})
    assert all(isinstance(value, float) for value in found.values())
    assert len(marked(made, ["a", "b"], 2)) == len(made)


# -- as reward ------------------------------------------------------------------------------------

KINDS = {
    "contains": {"kind": "lexical.contains", "words": ["rain", "e\u0301", "outer space"]},
    "share": {"kind": "lexical.contains", "words": ["rain", "sun"], "mode": "share"},
    "excludes": {"kind": "lexical.excludes", "words": ["rain", "in order to"]},
    "rate": {"kind": "lexical.word_rate", "words": ["rain"]},
    "pattern": {"kind": "lexical.pattern", "pattern": r"(?i)rain\w*|\[|^$"},
    "diversity": {"kind": "lexical.diversity"},
    "clean": {"kind": "structure.ends_cleanly"},
    "format": {"kind": "structure.format", "pattern": r"(?s)\s*\w.*\."},
    "json": {"kind": "structure.json_schema", "schema": {"type": ["object", "array"]}},
    "repetition": {"kind": "structure.repetition"},
    "sentences": {"kind": "structure.sentences", "min": 1, "max": 2, "slack": 1},
    "words": {"kind": "structure.word_count", "min": 3, "max": 8, "slack": 4},
    "think": {"kind": "trl.think_format_reward"},
    "mood": {"kind": "style.sentiment"},
    "ease": {"kind": "style.readability"},
    "both": {"kind": "combine.min", "parts": {"p": {"kind": "lexical.diversity"},
             "q": {"kind": "structure.word_count", "min": 1, "max": 9, "slack": 9}}},
}  # fmt: skip


@cache
def every_kind():
    return RewardSet(parse_entries(KINDS))


@fuzzed(400, st.lists(DOCUMENTS, min_size=1, max_size=3))
def test_every_reward_on_words_scores_any_text(completions):
    output = every_kind()([""] * len(completions), completions)
    assert output.valid.all() and math.isfinite(output.score.sum())
    for row, text in zip(output.spans, completions, strict=True):
        assert all(0 <= span.start <= span.end <= len(text) for span in row)


def schemas():
    key = st.sampled_from(["type", "required", "properties", "items", "pattern", "$ref", "enum",
                           "anyOf", "minimum", "format", "$id", "patternProperties", "$defs",
                           "multipleOf", "maxLength", "const", "if", "not", "$schema"])  # fmt: skip
    value = st.sampled_from(["object", "string", "#", "#/$defs/a", "http://x.y/z", "(", "(?=a)"])
    leaf = value | plain_values(2)
    return st.dictionaries(
        key, leaf | st.dictionaries(key, leaf, max_size=2) | st.lists(leaf, max_size=2), max_size=3
    )


def scored(entry, completions):
    try:
        rewards = RewardSet(parse_entries({"x": entry}))
        output = rewards([""] * len(completions), completions)
    except (RewardConfigError, RewardError) as error:
        assert str(error).strip() and "recursion" not in str(error)
        return
    assert all(math.isfinite(value) for value in output.score)


@fuzzed(500, schemas() | plain_values(3), DOCUMENTS)
def test_any_json_schema_is_refused_or_scores_any_text(schema, text):
    scored({"kind": "structure.json_schema", "schema": schema}, [text, "{}", "[" * 5000, "9" * 400])


@fuzzed(
    300, st.sampled_from(["structure.format", "lexical.pattern"]), texts(12) | DOCUMENTS, DOCUMENTS
)
def test_any_pattern_is_refused_or_scores_any_text(kind, pattern, text):
    scored({"kind": kind, "pattern": pattern}, [text, pattern, "a" * 2000])


@fuzzed(
    400, DOCUMENTS | st.from_regex(r"\s*(grade|score)?\W{0,3}\d{1,3}([.,]\d+)?(/\d+)?\W{0,3}\Z")
)
def test_any_reply_of_a_judge_is_a_grade_or_none(reply):
    grade = parse_grade(reply, 10.0)
    assert grade is None or math.isfinite(grade)
    assert re.fullmatch("[0-9a-f]{16}", mark(reply, reply))


@fuzzed(300, plain_values() | st.builds(lambda v: {"choices": v}, plain_values())
        | st.builds(lambda v: {"choices": [{"message": v}]}, plain_values(4)))  # fmt: skip
def test_any_answer_of_a_judges_server_is_text_or_none(answer):
    text, is_cut = _reply(answer)
    assert (text is None or isinstance(text, str)) and isinstance(is_cut, bool)


# -- on tokens ------------------------------------------------------------------------------------

NAMES = [name for name in TOKENIZERS if name not in ("SmolLM2", "glass-tiny")]


@st.composite
def responses(draw):
    """Token ids of one of several tokenizers, and spans on the text that they stand for."""
    name = draw(st.sampled_from(NAMES))
    ids = draw(st.lists(st.integers(0, len(tokenizer_of(name)) - 1), min_size=1, max_size=30))
    text = tokenizer_of(name).decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    place = st.integers(0, len(text))
    pairs = draw(st.lists(st.tuples(place, place, st.floats(-9, 9, width=32)), max_size=4))
    return name, ids, text, [Span(min(a, b), max(a, b), credit) for a, b, credit in pairs]


@fuzzed(700, responses())
def test_credit_lies_on_the_tokens_of_any_response(response):
    name, ids, text, spans = response
    fixed = Offsets(tokenizer_of(name)).fixed(ids, text)
    assert len(fixed) == len(ids) and list(fixed) == sorted(fixed)
    assert fixed[0] >= 0 and fixed[-1] <= len(text)
    row, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)
    rollout = Rollout(
        builders.prompt_batch(oracle.PROMPTS[:1]), row, mask, mask, None, torch.tensor([True]),
        torch.tensor([0]), 0, [text],
    )  # fmt: skip
    score = torch.tensor([1.5 + sum(span.credit for span in spans)])
    placed = place_credit(rollout, score, [spans], tokenizer_of(name))
    assert abs(float(placed.double().sum()) - float(score)) < 1e-4


@fuzzed(
    200,
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "role": st.sampled_from(["user", "assistant", None]),
                "content": DOCUMENTS | st.none(),
            },
        ),
        max_size=4,
    ),
)
def test_conversations_are_read_as_text(messages):
    assert isinstance(as_script(messages), str) and isinstance(plain_text(messages), str)
