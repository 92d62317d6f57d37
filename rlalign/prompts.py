"""Prompt sets: reading them, turning them into tokens, and the order in which a run meets them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rewards.trl_style import Messages, prompt_text
from rlalign import trl_bridge
from rlalign.config import ConfigError
from rlalign.nearby import file_hint
from rlalign.problems import shown
from rlalign.settings.overrides import DEEPEST
from rlalign.settings.sections import PromptsSection
from rlalign.types import PromptBatch

Row = Mapping[str, Any]
TOO_DEEP = f"nests lists and objects more than {DEEPEST} deep"


@dataclass(frozen=True)
class PromptSet:
    """N prompts as token ids, with their texts and every other column of the data.

    `messages` holds those that are chats as messages, and None for each plain one.
    """

    ids: Sequence[Sequence[int]]
    texts: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    pad_id: int
    source: str  # the setting that named them: prompts.path=my.jsonl
    numbers: Sequence[int]  # each one's row there, from 1
    messages: Sequence[Messages | None] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, chosen: Sequence[int], device: torch.device | str = "cpu") -> PromptBatch:
        """The chosen prompts, left-padded to the longest of them."""
        rows = [self.ids[i] for i in chosen]
        width = max(len(row) for row in rows)
        ids = torch.tensor([[self.pad_id] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
        return PromptBatch(
            prompt_ids=ids.to(device),
            prompt_mask=mask.to(device),
            texts=[self.texts[i] for i in chosen],
            columns={name: [column[i] for i in chosen] for name, column in self.columns.items()},
            messages=[self.messages[i] for i in chosen] if self.messages else (),
        )

    def subset(self, chosen: Sequence[int]) -> "PromptSet":
        return PromptSet(
            ids=[self.ids[i] for i in chosen],
            texts=[self.texts[i] for i in chosen],
            columns={name: [column[i] for i in chosen] for name, column in self.columns.items()},
            pad_id=self.pad_id,
            source=self.source,
            numbers=[self.numbers[i] for i in chosen],
            messages=[self.messages[i] for i in chosen] if self.messages else (),
        )

    def split(self, fraction: float, seed: int) -> tuple["PromptSet", "PromptSet"]:
        """A training part and a held-out part of about `fraction`, the same for the same seed."""
        order = shuffled(len(self), seed, epoch=-1)
        held_out = round(fraction * len(self))
        if fraction > 0 and len(self) > 1:
            held_out = min(max(held_out, 1), len(self) - 1)
        return self.subset(sorted(order[held_out:])), self.subset(sorted(order[:held_out]))


def shuffled(size: int, seed: int, epoch: int) -> list[int]:
    """The order of `size` prompts in one epoch; it depends on the seed and the epoch alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch + 1)
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order


def scheduled(size: int, seed: int, start: int, count: int) -> list[int]:
    """Prompts `start` to `start + count` of an endless run through fresh permutations.

    The place in the data is a number, not a state: a resumed run goes on where it stopped, and any
    number of processes walk the same order.
    """
    chosen: list[int] = []
    while len(chosen) < count:
        epoch, offset = divmod(start + len(chosen), size)
        chosen += shuffled(size, seed, epoch)[offset : offset + count - len(chosen)]
    return chosen


def load_prompts(
    section: PromptsSection,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    path: str | None = None,
    setting: str = "prompts.path",
) -> PromptSet:
    """The prompts at `path` (default: the section's own), ready to batch.

    Raises ConfigError, naming the file and the line, where there are none, where the column is
    missing, or where a prompt is empty or longer than `max_length` tokens.
    """
    path = path or section.path
    return encode(
        read_rows(path, section.split, setting), section, tokenizer, max_length, f"{setting}={path}"
    )


def encode(
    rows: Sequence[Row],
    section: PromptsSection,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    source: str,
) -> PromptSet:
    """Rows of data as token ids."""
    if not rows:
        raise ConfigError(f"{source} holds no prompts; it needs at least one")
    names = sorted({name for row in rows for name in row})
    ids, texts, chats = [], [], []
    for number, row in enumerate(rows, 1):
        if section.column not in row:
            raise ConfigError(
                f"prompts.column={section.column} is not in row {number} of {source}; "
                f"its columns are: {', '.join(names) or 'none'}"
            )
        tokens, text, messages = tokenize(
            row[section.column], section.chat, tokenizer, f"row {number} of {source}"
        )
        if max_length is not None and len(tokens) > max_length:
            raise ConfigError(
                f"row {number} of {source} has {len(tokens)} tokens, more than the {max_length} "
                "that the model's context leaves beside sampling.max_new_tokens (or that "
                "prompts.max_length allows); shorten it or leave it out"
            )
        ids.append(tokens)
        texts.append(text)
        chats.append(messages)
    columns = {name: [row.get(name) for row in rows] for name in names if name != section.column}
    pad = tokenizer.pad_token_id
    pad_id = int(tokenizer.eos_token_id if pad is None else pad)
    numbers = range(1, len(rows) + 1)
    return PromptSet(ids, texts, columns, pad_id, source, numbers, chats if any(chats) else ())


def tokenize(
    prompt: Any, chat: bool, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], str, Messages | None]:
    """Token ids of a prompt, its text as the rewards see it, and a chat's messages."""
    if isinstance(prompt, str):
        text, messages = prompt, [{"role": "user", "content": prompt}] if chat else None
    elif isinstance(prompt, list) and prompt and all(map(is_message, prompt)):
        messages = prompt
        text = prompt_text(prompt)
    else:
        raise ConfigError(
            f"the prompt in {where} is neither text nor a list of messages: {shown(prompt)}; "
            'a message is {"role": "user", "content": "..."}'
        )
    if not is_utf8(prompt):
        raise ConfigError(f"the prompt in {where} is not UTF-8 text: {shown(prompt)}")
    if messages is not None:
        if tokenizer.chat_template is None:
            raise ConfigError(
                f"the prompt in {where} is a chat, but the model has no chat template; write "
                "prompts as text, without prompts.chat, or take a model that has one"
            )
        # The template writes its own special tokens; adding them again would double the BOS.
        try:
            rendered = trl_bridge.render_chat(messages, tokenizer)
        except Exception as error:  # a template is a program, and refuses as it likes
            raise ConfigError(
                f"the model's chat template cannot render the prompt in {where}: "
                f"{type(error).__name__}: {str(error) or 'no reason given'}"
            ) from error
        tokens = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    else:
        tokens = tokenizer(text)["input_ids"]
    if not tokens:
        raise ConfigError(
            f"the prompt in {where} is empty; to sample without a prompt, write the model's first "
            f"token, for example {tokenizer.bos_token or tokenizer.eos_token!r}"
        )
    return list(tokens), text, messages


def is_message(item: Any) -> bool:
    """Whether it is a part of a conversation: who speaks, and of a user what is said."""
    has_role = isinstance(item, dict) and isinstance(item.get("role"), str)
    return has_role and ("content" in item or item["role"] != "user")


def is_utf8(value: Any) -> bool:
    """Whether text, or all text within a value of JSON's types, has no half surrogate pairs."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_rows(path: str, split: str, setting: str) -> Sequence[Row]:
    """Rows of a JSONL or parquet file, a saved dataset's directory, or a hub dataset."""
    try:
        file = Path(path).expanduser()
        file.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{setting}={shown(path)}: no path of a file: {reason}") from error
    if file.suffix in {".jsonl", ".json", ".ndjson"}:
        return read_jsonl(file, setting)
    # A hub id may end in a version, as in org/name-1.0; a file's ending starts with a letter.
    looks_local = path.startswith((".", "/", "~")) or file.suffix[1:2].isalpha()
    if looks_local and not file.exists():
        raise ConfigError(f"{setting}={path}: there is no such file{file_hint(path)}")
    if file.is_file() and file.suffix != ".parquet":
        raise ConfigError(
            f"{setting}={path}: not a .jsonl or .parquet file; write an object a line, as "
            '{"prompt": "Once"}, into one that ends in .jsonl'
        )
    try:
        return read_dataset(file, path, split)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{setting}={path} (prompts.split={split}) cannot be loaded: {reason}"
        ) from error


def read_dataset(file: Path, path: str, split: str) -> Sequence[Row]:
    import datasets  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    if file.is_file():
        rows: list[Row] = pyarrow.parquet.read_table(file).to_pylist()
        return rows
    if not file.is_dir():
        return list(datasets.load_dataset(path, split=split))
    data = datasets.load_from_disk(str(file))
    return list(data[split] if isinstance(data, datasets.DatasetDict) else data)


def read_jsonl(file: Path, setting: str) -> list[Row]:
    return [row for _, row in numbered_rows(file, setting)]


def numbered_rows(file: Path, setting: str) -> list[tuple[int, Row]]:
    """The objects of a JSONL file, each with its line's number; empty lines are passed over."""
    if not file.is_file():
        raise ConfigError(f"{setting}={file}: there is no such file{file_hint(file)}")
    rows: list[tuple[int, Row]] = []
    try:
        # Not splitlines: it also splits at U+2028, which may stand inside a JSON string.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        at = f"byte {error.object[error.start]:#04x} on line "
        at += str(error.object.count(b"\n", 0, error.start) + 1)
        raise ConfigError(f"{setting}={file} is not UTF-8 text ({at}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{setting}={file} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append((number, read_row(line)))
        except ValueError as error:
            raise ConfigError(f"{setting}={file}, line {number} {error}") from error
    return rows


def read_row(line: str) -> Row:
    """The object that a line of JSONL holds; ValueError says what the line `is` or `holds`."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'is not JSON: {error.msg}; each line holds one object, as {{"prompt": "Once"}}'
        ) from error
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    except ValueError as error:  # Python converts no more digits
        raise ValueError("holds an integer of more than 4300 digits; write it as text") from error
    if line.count("[") + line.count("{") > DEEPEST and depth(row) > DEEPEST:
        raise ValueError(TOO_DEEP)
    if not isinstance(row, dict):
        raise ValueError('is not an object with named columns, as {"prompt": "Once"}')
    if "\\u" in line and not is_utf8(row):
        raise ValueError("holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")
    return row


def depth(value: Any) -> int:
    """How deep lists and objects are nested; 1 for an empty one."""
    level, found = [value], 0
    while level := [item for item in level if isinstance(item, list | dict)]:
        items = (item.values() if isinstance(item, dict) else item for item in level)
        level, found = [below for group in items for below in group], found + 1
    return found
