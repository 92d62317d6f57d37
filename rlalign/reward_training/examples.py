"""Labelled texts: read from JSONL, CSV or TSV with every fault by its line, and split."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.schema import nearest
from rewards.trained import label_name
from rlalign.nearby import file_hint
from rlalign.problems import ConfigError, shown

MIN_EACH = 5  # different texts of a label: some to learn from, some held out
SHOWN = 5  # faults that one message lists
TABLES = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Example:
    line: int  # of the file, from 1
    text: str
    label: str

    @property
    def key(self) -> str:
        """Equal for texts that differ in case and spaces alone."""
        return " ".join(self.text.casefold().split())


@dataclass(frozen=True)
class Examples:
    """N texts with a label each, and where they come from."""

    rows: Sequence[Example]
    file: str  # its name, without the folder
    sha256: str  # of the file

    @property
    def labels(self) -> list[str]:
        return sorted({row.label for row in self.rows})


@dataclass(frozen=True)
class Split:
    """Texts to learn from and texts held out; no text is on both sides."""

    train: Sequence[Example]
    held_out: Sequence[Example]
    repeated: int  # rows whose text stood in a row before
    conflicting: int  # different texts that stand there with several labels


def read_examples(path: Path, text: str, label: str) -> Examples:
    """The examples in a .jsonl, .csv or .tsv file; blank lines are passed over.

    Raises ConfigError with the line numbers where a row lacks a column, a text is blank or no
    text, or a label is neither text, a whole number nor true or false; and where there are fewer
    than two labels, or fewer than MIN_EACH different texts of one.
    """
    if path.suffix not in (*LINES, *TABLES):
        raise ConfigError(f"--data {path}: not a .jsonl, .csv or .tsv file")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(
            f"--data {path}: there is no such file in {Path.cwd()}{file_hint(path)}"
        ) from error
    except OSError as error:
        raise ConfigError(f"--data {path}: cannot be read: {error.strerror}") from error
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"--data {path}, line {line}: not UTF-8 text ({error.reason})") from error
    numbered = _table(decoded, path) if path.suffix in TABLES else _lines(decoded)
    faults: list[str] = []
    rows = [_example(number, row, text, label, faults) for number, row in numbered]
    if faults:
        more = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        told = [f"--data {path}, {fault}" for fault in faults[:SHOWN]]
        raise ConfigError("\n".join([*told, *more]))
    examples = Examples(
        [row for row in rows if row is not None], path.name, hashlib.sha256(content).hexdigest()
    )
    _check_labels(examples, f"--data {path}", label)
    return examples


def _lines(content: str) -> Iterator[tuple[int, Any]]:
    """Line number and row, or the reason why it is none."""
    # Not splitlines: it also splits at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"is not JSON: {error}"
            continue
        yield number, row if isinstance(row, dict) else "is not an object with named columns"


def _table(content: str, path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=TABLES[path.suffix])
    names: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = cells
                if len(set(names)) < len(names):
                    yield number, f"names a column twice: {', '.join(names)}"
            elif len(cells) != len(names):
                yield number, f"has {len(cells)} cells; the first line names {len(names)} columns"
            else:
                yield number, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        yield start, f"cannot be read: {error}"


def _example(number: int, row: Any, text: str, label: str, faults: list[str]) -> Example | None:
    where = f"line {number}"
    if isinstance(row, str):
        faults.append(f"{where} {row}")
        return None
    for option, name in (("text", text), ("label", label)):
        if name not in row:
            hint = nearest(name, row, "its columns")
            faults.append(f"{where} has no column {name!r} (--{option} {name}); {hint}")
            return None
    value, tag = row[text], row[label]
    if not isinstance(value, str) or not value.strip():
        faults.append(f"{where}: {text}={shown(value)} must be text that is not blank")
    elif not isinstance(tag, str | int) or not str(tag).strip():
        faults.append(
            f"{where}: {label}={shown(tag)} must be text, a whole number or true or false; leave "
            "out lines without a label"
        )
    else:
        return Example(number, value, label_name(tag))
    return None


def _check_labels(examples: Examples, where: str, column: str) -> None:
    first: dict[str, Example] = {}
    for row in examples.rows:
        near = first.setdefault(" ".join(row.label.casefold().split()), row)
        if near.label != row.label:
            raise ConfigError(
                f"{where}: the labels {near.label!r} (line {near.line}) and {row.label!r} (line "
                f"{row.line}) differ in case or spaces alone; write one of them"
            )
    labels = examples.labels
    if len(labels) < 2:
        found = f"only {labels[0]!r}" if labels else "no example"
        raise ConfigError(
            f"{where}: the column {column!r} holds {found}; a classifier needs two labels or "
            "more, so add texts that are something else"
        )
    texts = Counter(label for _, label in {(row.key, row.label) for row in examples.rows})
    scarce = sorted(label for label in labels if texts[label] < MIN_EACH)
    if scarce:
        told = ", ".join(f"{label!r} has {texts[label]}" for label in scarce[:SHOWN])
        rest = f" and {len(scarce) - SHOWN} other labels" if len(scarce) > SHOWN else ""
        raise ConfigError(
            f"{where}: every label needs {MIN_EACH} different texts or more, but {told}{rest}; "
            f"add some or leave these labels out (or is {column!r} not the label's column?)"
        )


def split(examples: Examples, fraction: float, seed: int) -> Split:
    """About `fraction` of every label's texts held out, at least one; the same for the same seed.

    Equal texts go together, with the label of the first of them.
    """
    groups: dict[str, list[Example]] = {}
    for row in examples.rows:
        groups.setdefault(row.key, []).append(row)
    rng = np.random.default_rng(seed)
    held_out: set[str] = set()
    for label in examples.labels:
        keys = [key for key, group in groups.items() if group[0].label == label]
        count = max(1, round(fraction * len(keys)))
        held_out.update(keys[i] for i in rng.permutation(len(keys))[:count])
    return Split(
        train=[row for row in examples.rows if row.key not in held_out],
        held_out=[row for row in examples.rows if row.key in held_out],
        repeated=len(examples.rows) - len(groups),
        conflicting=sum(len({row.label for row in group}) > 1 for group in groups.values()),
    )


def counts(rows: Sequence[Example]) -> Mapping[str, int]:
    """How many rows have each label."""
    return Counter(row.label for row in rows)
