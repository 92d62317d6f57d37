"""Prompt sets: what is read, how it is refused, and in which order a run meets it."""

import json
import re

import builders
import datasets
import oracle
import pyarrow
import pyarrow.parquet
import pytest
import torch

from rlalign.config import ConfigError
from rlalign.prompts import encode, load_prompts, scheduled, shuffled
from rlalign.settings.sections import PromptsSection

TOKENIZER = oracle.tokenizer()


def load(path, max_length=8, **section):
    return load_prompts(PromptsSection(path=str(path), **section), TOKENIZER, max_length)


def refused(path, message: str, **section) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        load(path, **section)


def jsonl(folder, *rows, name="prompts.jsonl"):
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# The order


def test_an_epoch_meets_every_prompt_once():
    order = scheduled(10, seed=3, start=0, count=30)
    for epoch in range(3):
        assert sorted(order[epoch * 10 : (epoch + 1) * 10]) == list(range(10))
    assert order[:10] != order[10:20] != order[20:]
    assert order[:10] == shuffled(10, seed=3, epoch=0)


def test_the_order_does_not_depend_on_where_one_starts_or_how_much_one_takes():
    whole = scheduled(7, seed=0, start=0, count=100)
    pieces = [i for start in range(0, 100, 4) for i in scheduled(7, 0, start, 4)]
    assert pieces == whole
    assert scheduled(7, 0, 33, 20) == whole[33:53]
    assert scheduled(3, 0, 1, 10) == scheduled(3, 0, 0, 11)[1:]  # longer than the set


def test_seeds_have_orders_of_their_own():
    orders = [tuple(scheduled(20, seed, 0, 20)) for seed in range(4)]
    assert len(set(orders)) == 4
    assert shuffled(20, seed=0, epoch=1) != shuffled(20, seed=1, epoch=0)


def test_what_is_held_out_is_not_trained_on_and_does_not_change():
    section = PromptsSection()
    rows = [{"prompt": " ".join(x)} for x in ("ab", "ac", "ad", "ae", "ba", "bb", "bc", "bd")]
    prompts = encode(rows, section, TOKENIZER, None, "prompts=")
    train, held_out = prompts.split(0.25, seed=0)
    assert (len(train), len(held_out)) == (6, 2)
    assert sorted([*train.texts, *held_out.texts]) == sorted(row["prompt"] for row in rows)
    assert prompts.split(0.25, seed=0)[1].texts == held_out.texts
    assert len({tuple(prompts.split(0.25, seed)[1].texts) for seed in range(5)}) > 1
    assert [len(part) for part in prompts.split(0.01, seed=0)] == [7, 1]  # not none
    assert [len(part) for part in prompts.split(0.99, seed=0)] == [1, 7]  # not all
    assert [len(part) for part in prompts.split(0.0, seed=0)] == [8, 0]


# Reading


def test_columns_and_rows_stay_together_in_a_batch(tmp_path):
    rows = [
        {"prompt": "a b c", "topic": "x", "number": 1},
        {"prompt": "d", "topic": "y"},
        {"prompt": "e a", "number": 3},
    ]
    batch = load(jsonl(tmp_path, *rows)).batch([2, 0])
    assert batch.texts == ["e a", "a b c"]
    assert batch.columns == {"topic": [None, "x"], "number": [3, 1]}
    assert batch.prompt_ids.tolist() == [[oracle.EOS, 4, 0], [0, 1, 2]]
    assert batch.prompt_mask.tolist() == [[False, True, True], [True, True, True]]
    turned = batch.rows(torch.tensor([1, 0]))
    assert turned.texts == ["a b c", "e a"] and turned.columns["number"] == [1, 3]
    assert turned.prompt_ids.tolist() == [[0, 1, 2], [oracle.EOS, 4, 0]]
    assert batch.rows(torch.tensor([0])).prompt_ids.tolist() == [[4, 0]]  # no idle column


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    path = jsonl(tmp_path, {"prompt": "a b", "note": "one\u2028two\x85three"}, "", "  ")
    prompts = load(path)
    assert len(prompts) == 1 and prompts.columns["note"] == ["one\u2028two\x85three"]


@pytest.mark.parametrize("ending", ["json", "ndjson"])
def test_other_endings_of_json_lines(tmp_path, ending):
    assert len(load(jsonl(tmp_path, {"prompt": "a"}, name=f"x.{ending}"))) == 1


def test_parquet_and_saved_datasets_are_read(tmp_path):
    rows = {"prompt": ["a", "b c"], "topic": ["x", None]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "x.parquet")
    data = datasets.Dataset.from_dict(rows)
    data.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": data, "few": data.select([1])}).save_to_disk(tmp_path / "splits")
    for name in ("x.parquet", "plain", "splits"):
        prompts = load(tmp_path / name)
        assert list(prompts.texts) == ["a", "b c"]
        assert prompts.columns == {"topic": ["x", None]}
    assert list(load(tmp_path / "splits", split="few").texts) == ["b c"]


def test_what_is_no_file_is_a_hub_dataset(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return [{"prompt": "a"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("org/prompts-1.0", split="few")) == 1
    assert asked == [("org/prompts-1.0", "few")]
    refused("data/prompts.parquet", "prompts.path=data/prompts.parquet: there is no such file")
    assert len(asked) == 1


def test_another_column_can_hold_the_prompt(tmp_path):
    prompts = load(jsonl(tmp_path, {"question": "a", "prompt": "b"}), column="question")
    assert list(prompts.texts) == ["a"] and prompts.columns == {"prompt": ["b"]}


# Chats


TEMPLATE = "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }} {% endfor %}" \
           "{% if add_generation_prompt %}e{% endif %}"  # fmt: skip


def chat_tokenizer():
    tokenizer = oracle.tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_messages_are_rendered_and_rewards_see_the_last_user_message(tmp_path):
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c d"},
    ]
    path = jsonl(tmp_path, {"prompt": chat})
    prompts = load_prompts(PromptsSection(path=str(path)), chat_tokenizer(), 20)
    assert list(prompts.texts) == ["c d"]
    # u a, a b, u c d, e; the letter u is unknown and reads as e
    assert list(prompts.ids[0]) == [4, 0, 0, 1, 4, 2, 3, 4]


def test_plain_prompts_can_be_wrapped(tmp_path):
    path = jsonl(tmp_path, {"prompt": "c d"})
    prompts = load_prompts(PromptsSection(path=str(path), chat=True), chat_tokenizer(), 20)
    assert list(prompts.texts) == ["c d"] and list(prompts.ids[0]) == [4, 2, 3, 4]


def test_a_chat_needs_a_template(tmp_path):
    path = jsonl(tmp_path, {"prompt": "a"})
    message = f"the prompt in row 1 of prompts.path={path} is a chat, but the model has no chat"
    refused(path, message, chat=True)


# Refusing


def test_faults_of_a_file_name_it_and_the_line(tmp_path):
    missing = tmp_path / "none.jsonl"
    refused(missing, f"prompts.path={missing}: there is no such file")
    path = jsonl(tmp_path, {"prompt": "a"}, '{"prompt": ')
    refused(path, f"prompts.path={path}, line 2 is not JSON: Expecting value")
    path = jsonl(tmp_path, {"prompt": "a"}, "", '["a"]')
    refused(path, f"prompts.path={path}, line 3 is not an object with named columns")
    path.write_bytes(b'{"prompt": "\xff"}')
    refused(path, f"prompts.path={path} is not UTF-8 text")
    path.write_text("")
    refused(path, f"prompts.path={path} holds no prompts; it needs at least one")
    text = tmp_path / "prompts.txt"
    text.write_text("a")
    refused(text, f"prompts.path={text}: not a .jsonl or .parquet file")
    missing = tmp_path / "none.parquet"
    refused(missing, f"prompts.path={missing}: there is no such file")
    folder = tmp_path / "empty"
    folder.mkdir()
    refused(folder, f"prompts.path={folder} (prompts.split=train) cannot be loaded: ")
    broken = tmp_path / "broken.parquet"
    broken.write_text("no")
    refused(broken, f"prompts.path={broken} (prompts.split=train) cannot be loaded: ")


def test_an_evaluation_file_is_called_by_its_own_setting(tmp_path):
    missing = str(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"^prompts\.eval_path=.*: there is no such file$"):
        load_prompts(PromptsSection(), TOKENIZER, 8, missing, "prompts.eval_path")


def test_faults_of_a_prompt_name_its_row(tmp_path):
    path = jsonl(tmp_path, {"prompt": "a", "topic": "x"}, {"topic": "y"})
    source = f"prompts.path={path}"
    message = f"prompts.column=prompt is not in row 2 of {source}; its columns are: prompt, topic"
    refused(path, message)
    path = jsonl(tmp_path, {"prompt": "a"}, {"prompt": "a b c d e a b c d"})
    refused(path, f"row 2 of {source} has 9 tokens, more than the 8 that the model's context")
    path = jsonl(tmp_path, {"prompt": "a"}, {"prompt": ""})
    refused(path, f"the prompt in row 2 of {source} is empty; to sample without a prompt, write "
                  "the model's first token, for example '</s>'")  # fmt: skip
    for prompt in (None, 3, [], ["a"], {"role": "user"}):
        path = jsonl(tmp_path, {"prompt": prompt})
        refused(path, f"the prompt in row 1 of {source} is neither text nor a list of messages: ")


def test_an_eos_token_in_a_prompt_is_no_padding(tmp_path):
    """The pad token is the EOS token, so a mask by id would lose it."""
    batch = load(jsonl(tmp_path, {"prompt": "a </s> b"}, {"prompt": "</s>"})).batch([0, 1])
    assert batch.prompt_ids[0].tolist() == [0, oracle.EOS, 1]
    assert batch.prompt_mask.tolist() == [[True, True, True], [False, False, True]]


def test_a_tokenizer_without_a_pad_token_pads_with_eos():
    tokenizer = builders.byte_tokenizer()
    assert tokenizer.pad_token_id is None
    prompts = encode([{"prompt": "a"}], PromptsSection(), tokenizer, None, "prompts=")
    assert prompts.pad_id == tokenizer.eos_token_id
