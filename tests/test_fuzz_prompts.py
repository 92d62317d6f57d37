"""Any file of prompts is read, to prompts that can be batched, or is refused in words."""

import io
import json
import math
from functools import cache
from pathlib import Path

import builders
import pyarrow
import pyarrow.parquet
import pytest
from fuzzing import fuzzed, limited, long_texts, nested, plain_values, texts
from hypothesis import strategies as st

from rlalign.config import ConfigError
from rlalign.prompts import load_prompts
from rlalign.settings.sections import PromptsSection
from rlalign.terminal import printable
from rlalign.tracking import _line

# Strict about turns, as Gemma's and Mistral's are.
TEMPLATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m['role'] }}>{{ m['content'] "
    "| trim }}{% endfor %}<assistant>"
)


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        yield


@cache
def tokenizer():
    made = builders.byte_tokenizer()
    made.chat_template = TEMPLATE
    return made


def loads_or_says_why(path, **section):
    try:
        section = PromptsSection(**section)
        prompts = load_prompts(section, tokenizer(), max_length=200, path=path)
    except ConfigError as error:
        said = str(error)
        assert said.strip() and len(said) < 20_000
        assert not any(word in said for word in ("recursion", "Errno", "set_int_max_str"))
        printable(said).encode()
        return
    assert len(prompts) > 0
    batch = prompts.batch(range(len(prompts)))
    assert batch.prompt_mask.any(1).all()
    for text, *values in zip(batch.texts, *batch.columns.values(), strict=True):
        _line({"prompt": text, "columns": values})


def of_file(content, name="fuzz.jsonl", **section):
    Path(name).write_bytes(content)
    loads_or_says_why(name, **section)


def lines(rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode(
        "utf-8", "surrogatepass"
    )


def sound(value):
    """What `json.dumps` can write: no huge integers."""
    try:
        json.dumps(value)
    except ValueError:
        return False
    return True


def messages():
    role = st.sampled_from(["user", "assistant", "system", "tool", "", None, 3]) | texts(5)
    content = texts(12) | plain_values(3)
    message = st.fixed_dictionaries({}, optional={"role": role, "content": content, "x": content})
    turns = st.lists(texts(12), min_size=1, max_size=4).map(
        lambda said: [
            {"role": ["user", "assistant"][i % 2], "content": text} for i, text in enumerate(said)
        ]
    )
    return turns | st.lists(message | plain_values(3), max_size=4)


def rows():
    prompt = texts(20) | long_texts() | messages() | plain_values(4)
    row = st.fixed_dictionaries(
        {"prompt": prompt}, optional={"answer": plain_values(4), "\ufeffprompt": texts(4)}
    )
    raw = st.sampled_from(["", "   ", "[]", "nul", "NaN", '{"prompt": "a"', '{"prompt": "\\ud800"}',
                           '{"prompt": ' + "9" * 5000 + "}", '{"prompt": "a", "n": ' + "[" * 3000,
                           '{"prompt": "a"}\u2028', '{"prompt": "a", "prompt": 3}'])  # fmt: skip
    return st.lists(row.filter(sound) | raw | texts(12), min_size=1, max_size=4)


@fuzzed(500, st.binary(max_size=80) | texts(60).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_jsonl(content):
    of_file(content)


@fuzzed(900, rows(), st.booleans())
def test_any_rows_of_jsonl(made, chat):
    of_file(lines(made), chat=chat)


@fuzzed(400, messages().filter(sound))
def test_any_conversation(chat):
    of_file(lines([{"prompt": chat}]))


@fuzzed(100, st.binary(max_size=80), st.sampled_from([".parquet", ".json", ".csv", ".txt", ""]))
def test_any_bytes_under_any_name(content, ending):
    of_file(content, "fuzz" + ending)


@fuzzed(
    250, st.lists(texts(12) | st.none(), max_size=3), st.integers(0, 10**6), st.binary(max_size=3)
)
def test_a_parquet_file_with_bytes_replaced(prompts, place, piece):
    sound_texts = [None if t is None else t.encode("utf-8", "replace").decode() for t in prompts]
    table = pyarrow.table({"prompt": pyarrow.array(sound_texts, pyarrow.string())})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream)
    content = stream.getvalue()
    place %= len(content)
    of_file(content[:place] + piece + content[place + len(piece) :], "fuzz.parquet")


@fuzzed(250, texts(30) | long_texts() | st.lists(texts(6), min_size=1, max_size=6).map("/".join))
def test_any_path(path):
    loads_or_says_why(f"{path}x.jsonl")  # without an ending it may be a dataset's name on the hub


@pytest.mark.parametrize("name", ["/dev/null", ".", "/", "/proc/self/mem"])
def test_what_is_no_file_of_prompts_is_refused(name):
    with limited(30), pytest.raises(ConfigError, match=r"^prompts\.path="):
        load_prompts(PromptsSection(path=name), tokenizer(), 100)


def test_a_mark_of_byte_order_is_passed_over():
    Path("bom.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a", "x": 1e999}\n')
    prompts = load_prompts(PromptsSection(path="bom.jsonl"), tokenizer(), 100)
    assert prompts.texts == ["a"] and prompts.columns == {"x": [math.inf]}


def test_nesting_that_no_reader_bears_is_refused():
    row = {"prompt": "a", "x": nested(60)}
    Path("deep.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"deep\.jsonl, line 1 nests lists and objects more than"):
        load_prompts(PromptsSection(path="deep.jsonl"), tokenizer(), 100)
