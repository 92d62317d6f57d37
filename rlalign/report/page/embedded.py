"""What a page carries for its scripts: JSON that cannot end a script, samples compressed."""

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

from rlalign.report.page.record import EVAL, Row, RunRecord

# Within <script>, `</script>` would end it and `<!--` change how it is read, whatever its type.
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def script_json(value: object) -> str:
    """JSON without the characters that mean anything to HTML; NaN is refused."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character, escaped in ESCAPES.items():
        text = text.replace(character, escaped)
    return text


def compressed(value: object) -> str:
    """JSON, gzip, base64: the same text every time."""
    content = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(content, compresslevel=9, mtime=0)).decode()


def samples(records: Sequence[RunRecord], most: int) -> dict[str, Any]:
    """The rows of the samples' table, `most` of them, evenly from the runs.

    A response of an evaluation refers to what the reference wrote to the same prompt.
    """
    names = list(dict.fromkeys(name for record in records for name in record.rewards))
    rows: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for i, record in enumerate(records):
        own, beside = of_run(record, names, most // len(records))
        for row in own:
            at = row["reference"]
            rows.append(
                {"run": i, **row, "reference": None if at is None else at + len(references)}
            )
        references += beside
    total = sum(sum(record.counted.values()) for record in records)
    labels = [record.label for record in records]
    return {"runs": labels, "rewards": names, "rows": rows, "refs": references, "total": total}


def of_run(
    record: RunRecord, names: Sequence[str], most: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A run's rows, the last evaluation's first; and the reference's, which stand beside them."""
    references = record.before if record.is_evaluated else []
    steps = sorted({row["iteration"] for row in record.rows if row["split"] == EVAL}, reverse=True)
    shown: list[dict[str, Any]] = []
    for step in steps:
        if references and step == 0:
            continue
        for at, row in enumerate(record.rows_at(step, EVAL)):
            same = at < len(references) and references[at]["prompt"] == row["prompt"]
            shown.append({**cells(row, names), "reference": at if same else None})
    shown = shown[:most]
    training = [row for row in record.rows if row["split"] != EVAL][: most - len(shown)]
    shown += [{**cells(row, names), "reference": None} for row in training]
    used = 1 + max((r["reference"] for r in shown if r["reference"] is not None), default=-1)
    return shown, [cells(row, names) for row in references[:used]]


def cells(row: Row, names: Sequence[str]) -> dict[str, Any]:
    """A row as the script wants it: rewards in order, spans by the reward's number."""
    number = {name: i for i, name in enumerate(names)}
    plain = ("iteration", "split", "prompt", "response", "score", "kl", "length", "finished")
    made = {key: row[key] for key in plain}
    made["rewards"] = [row["rewards"].get(name) for name in names]
    made["spans"] = {number[n]: spans for n, spans in row["spans"].items() if n in number}
    made["about"] = ", ".join(f"{key}: {value}" for key, value in row["columns"].items())
    made["top"] = row["top"]
    return made
