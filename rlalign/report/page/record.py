"""A run's folder as its report reads it: nothing in it is run, and whatever is damaged is said."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlalign.config import read_file
from rlalign.files import FileError, read_json
from rlalign.nearby import run_hint
from rlalign.problems import ConfigError
from rlalign.report.eval_file import read_eval
from rlalign.report.plots import read_metrics
from rlalign.runs import RunFolder

Row = dict[str, Any]
Key = tuple[int, str]  # iteration, split
HEAD = re.compile(rb'\{"iteration": (\d+), "split": "(train|eval)"')
EVAL, TRAIN = "eval", "train"


@dataclass(frozen=True)
class RunRecord:
    """What a run has left behind, as far as it can be read."""

    label: str
    folder: Path
    config: Mapping[str, Any]  # config.yaml, as plain values
    config_text: str
    about: Mapping[str, Any]  # run.json
    metrics: Sequence[Mapping[str, Any]]
    rows: Sequence[Row]  # of samples.jsonl, those that are shown
    counted: Mapping[Key, int] = field(default_factory=dict)  # all rows, by iteration and split
    yardstick: Mapping[str, Any] | None = None  # eval.json
    problems: Sequence[str] = ()  # what could not be read

    def rows_at(self, iteration: int, split: str) -> list[Row]:
        return [r for r in self.rows if (r["iteration"], r["split"]) == (iteration, split)]

    @property
    def ends(self) -> tuple[Key, Key] | None:
        """What is compared: the first and the last evaluation, else the first and last iteration.

        None where there are no two.
        """
        for split in (EVAL, TRAIN):
            steps = sorted(step for step, of in self.counted if of == split)
            if len(steps) > 1:
                return (steps[0], split), (steps[-1], split)
        return None

    @property
    def before(self) -> list[Row]:
        return self.rows_at(*self.ends[0]) if self.ends else []

    @property
    def after(self) -> list[Row]:
        return self.rows_at(*self.ends[1]) if self.ends else []

    @property
    def is_evaluated(self) -> bool:
        return self.ends is not None and self.ends[0] == (0, EVAL)

    def setting(self, path: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted name."""
        found: Any = self.config
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return default if found is None else found

    @property
    def rewards(self) -> dict[str, Mapping[str, Any]]:
        """The rewards' entries; those that Python gave, which config.yaml lacks, are empty."""
        named = self.setting("rewards", {})
        entries = named.items() if isinstance(named, Mapping) else ()
        found = {str(n): entry for n, entry in entries if isinstance(entry, Mapping)}
        for row in self.rows:
            found |= {name: {} for name in row["rewards"] if name not in found}
        return found


def read_run(folder: Path, label: str, most: int) -> RunRecord:
    """A run with at most `most` of its samples; ConfigError where the folder holds no run."""
    files, problems = RunFolder(folder), list[str]()
    if not files.metrics_jsonl.is_file():
        hint = run_hint(folder)
        raise ConfigError(f"{folder} holds no run: there is no metrics.jsonl in it{hint}")

    def tried(read: Any, otherwise: Any) -> Any:
        try:
            return read()
        except (OSError, ValueError, FileError, ConfigError) as error:
            problems.append(str(error).removeprefix("--config "))
            return otherwise

    config = tried(lambda: read_file(files.config_yaml), {})
    config_text = files.config_yaml.read_text(encoding="utf-8") if config else ""
    counted = tried(lambda: count_rows(files.samples_jsonl), {})
    chosen = choose(counted, most)
    has_eval = (folder / "eval.json").is_file()
    return RunRecord(
        label=label,
        folder=folder,
        config=config,
        config_text=config_text,
        about=tried(lambda: read_json(files.run_json), {}),
        metrics=tried(lambda: [*numbers(read_metrics(files.metrics_jsonl))], []),
        rows=tried(lambda: list(read_rows(files.samples_jsonl, chosen)), []),
        counted=counted,
        yardstick=tried(lambda: read_eval(folder), None) if has_eval else None,
        problems=problems,
    )


def numbers(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, float]]:
    """The rows with nothing but finite numbers, those that say of which iteration they are."""
    for row in rows:
        kept = {k: x for k, value in row.items() if (x := as_number(value)) is not None}
        if "iteration" in kept:
            yield kept


def count_rows(file: Path) -> dict[Key, int]:
    """How many samples of each iteration and split there are; their text is not read."""
    found: Counter[Key] = Counter()
    if file.is_file():
        with file.open("rb") as lines:
            for line in lines:
                if match := HEAD.match(line):
                    found[int(match[1]), match[2].decode()] += 1
    return dict(found)


def choose(counted: Mapping[Key, int], most: int) -> dict[Key, int]:
    """How many rows of which iterations are shown: the ends first, then evenly spread ones.

    The first and last evaluation, whole, because the numbers are of them; the first and last
    iteration, evaluations between, iterations of the training, as many as there is room for.
    """
    chosen: dict[Key, int] = {}
    room = most
    first = EVAL if any(of == EVAL for _, of in counted) else TRAIN
    for split in (EVAL, TRAIN):
        steps = sorted(step for step, of in counted if of == split)
        if not steps:
            continue
        for step in dict.fromkeys((steps[0], steps[-1])):
            wanted = counted[step, split]
            chosen[step, split] = wanted if split == first else min(wanted, max(room, 0))
            is_beside = step == 0 and split == EVAL and len(steps) > 1  # no row of its own
            room -= 0 if is_beside else chosen[step, split]
        between = steps[1:-1]
        share = max(room if split == TRAIN else room // 2, 0)
        usual = max((counted[step, split] for step in between), default=1)
        fitting = min(len(between), share // usual)
        for step in spread(between, fitting):
            chosen[step, split] = counted[step, split]
            room -= counted[step, split]
    return {key: count for key, count in chosen.items() if count}


def spread(steps: Sequence[int], count: int) -> list[int]:
    """`count` of the steps at even distances."""
    return [steps[(2 * i + 1) * len(steps) // (2 * count)] for i in range(count)]


def read_rows(file: Path, chosen: Mapping[Key, int]) -> Iterator[Row]:
    """The rows that were chosen, those alone are parsed; what is no row is left out."""
    left = dict(chosen)
    with file.open("rb") as lines:
        for line in lines:
            match = HEAD.match(line)
            key = (int(match[1]), match[2].decode()) if match else None
            if key is None or left.get(key, 0) <= 0:
                continue
            row = row_of(line)
            if row is not None:
                left[key] -= 1
                yield row


def row_of(line: bytes) -> Row | None:
    """A sample whose texts are texts and whose numbers are numbers; None of anything else."""
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    rewards = row.get("rewards")
    if not all(isinstance(row.get(key), str) for key in ("prompt", "response")):
        return None
    columns = row.get("columns")
    if type(row["iteration"]) is not int:  # named twice: what is parsed is the last
        return None
    return {
        "iteration": int(row["iteration"]),
        "split": row["split"],
        "prompt": row["prompt"],
        "columns": columns if isinstance(columns, dict) else {},
        "response": row["response"],
        **{key: as_number(row.get(key)) for key in ("score", "kl", "length")},
        "finished": row.get("finished") is True,
        "rewards": {n: as_number(value) for n, value in rewards.items()}
        if isinstance(rewards, dict)
        else {},
        "spans": spans_of(row.get("spans")),
        "top": [str(name) for name in top] if isinstance(top := row.get("top"), list) else [],
    }


def spans_of(given: object) -> dict[str, list[list[float]]]:
    """[start, end, credit] by reward, of those that are so."""
    found = {}
    for name, spans in given.items() if isinstance(given, dict) else ():
        sound = [
            [int(span[0]), int(span[1]), float(span[2])]
            for span in (spans if isinstance(spans, list) else ())
            if isinstance(span, list) and len(span) == 3 and None not in map(as_number, span)
        ]
        if sound:
            found[str(name)] = sound
    return found


def as_number(value: object) -> float | None:
    """A finite number, or None; what is written beyond a float's range is none, too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None
