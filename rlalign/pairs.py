"""Preference pairs: reading and checking them, holding some out, and how a reward model does."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlalign import trl_bridge
from rlalign.config import ConfigError
from rlalign.prompts import numbered_rows, shuffled

Text = str | list[dict[str, Any]]  # text, or messages
FORM = '{"prompt": …, "chosen": …, "rejected": …}'
SIDES = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A prompt with the better and the worse of two completions, texts or messages alike."""

    prompt: Text
    chosen: Text
    rejected: Text

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)

    def row(self) -> dict[str, Text]:
        """As TRL's data sets have it."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}


@dataclass(frozen=True)
class Report:
    """A reward model on N held-out pairs; `_se` is the standard error of what it follows."""

    pairs: int
    accuracy: float  # share of pairs whose chosen text has the higher reward; a tie is half
    accuracy_se: float
    margin: float  # mean of chosen less rejected, in the model's own units
    margin_se: float
    longer_wins: float  # accuracy of the rule that the longer text (in tokens) is the better one
    prefers_longer: float  # share of pairs in which the model gives the longer text more
    length_correlation: float  # of reward and length over both texts of each pair; 0 without spread
    mean: float  # of the rewards
    std: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def read_pairs(path: str) -> list[Pair]:
    """The pairs of a JSONL file; ConfigError names the first line that holds none.

    Texts and messages are not mixed in one file: TRL reads the form of all from the first.
    """
    rows = numbered_rows(Path(path).expanduser(), "pairs.path")
    found: list[Pair] = []
    for number, row in rows:
        where = f"pairs.path={path}, line {number}"
        pair = _pair(row, where)
        if found and pair.is_chat != found[0].is_chat:
            forms = ("messages", "text") if pair.is_chat else ("text", "messages")
            raise ConfigError(f"{where} holds {forms[0]} and the lines before it {forms[1]}")
        found.append(pair)
    if not found:
        raise ConfigError(f"pairs.path={path} holds no pairs; a line is {FORM}")
    return found


def _pair(row: Mapping[str, Any], where: str) -> Pair:
    for side in SIDES:
        if side not in row:
            has = ", ".join(sorted(row)) or "nothing"
            raise ConfigError(f"{where} lacks '{side}' (it has {has}); a line is {FORM}")
        if not _is_text(row[side]):
            raise ConfigError(
                f"{where}: '{side}' is {row[side]!r:.60}; it must be text, or messages with role "
                "and content"
            )
    kinds = {side: isinstance(row[side], str) for side in SIDES}
    if len(set(kinds.values())) > 1:
        odd = next(side for side in SIDES if kinds[side] != kinds["prompt"])
        raise ConfigError(
            f"{where}: '{odd}' is {'text' if kinds[odd] else 'messages'} and 'prompt' is not; "
            "write all three in one way"
        )
    if row["chosen"] == row["rejected"]:
        raise ConfigError(f"{where}: 'chosen' and 'rejected' are the same; remove the line")
    for side in ("chosen", "rejected"):
        if not row[side]:
            raise ConfigError(f"{where}: '{side}' is empty; remove the line")
    return Pair(row["prompt"], row["chosen"], row["rejected"])


def _is_text(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return (
        isinstance(value, list)
        and all(
            isinstance(m, dict) and isinstance(m.get("content"), str) and "role" in m for m in value
        )
        and (not value or trl_bridge.is_conversational(value))
    )


def split_pairs(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training pairs and about `fraction` held out; all pairs of one prompt are on one side."""
    prompts = list(dict.fromkeys(str(pair.prompt) for pair in pairs))
    if len(prompts) < 2:
        raise ConfigError(
            "pairs.path has a single prompt, of which no pair can be held out; it needs two"
        )
    count = min(max(round(fraction * len(prompts)), 1), len(prompts) - 1)
    held_out = {prompts[i] for i in shuffled(len(prompts), seed, epoch=-1)[:count]}
    return (
        [pair for pair in pairs if str(pair.prompt) not in held_out],
        [pair for pair in pairs if str(pair.prompt) in held_out],
    )


def report(
    pairs: Sequence[Pair],
    score: Callable[[list[Text], list[Text]], Sequence[float]],
    length: Callable[[Text], int],
) -> Report:
    """How `score(prompts, completions)` does on pairs; `length` counts a completion's tokens."""
    prompts = [pair.prompt for pair in pairs]
    chosen = np.asarray(score(prompts, [pair.chosen for pair in pairs]))
    rejected = np.asarray(score(prompts, [pair.rejected for pair in pairs]))
    lengths = np.array([[length(pair.chosen), length(pair.rejected)] for pair in pairs], float)
    margins, longer = chosen - rejected, lengths[:, 0] - lengths[:, 1]
    wins = _wins(margins)
    rewards = np.concatenate([chosen, rejected])
    return Report(
        pairs=len(pairs),
        accuracy=float(wins.mean()),
        accuracy_se=_standard_error(wins),
        margin=float(margins.mean()),
        margin_se=_standard_error(margins),
        longer_wins=float(_wins(longer).mean()),
        prefers_longer=float(_wins(margins * longer).mean()),
        length_correlation=_correlation(rewards, lengths.T.ravel()),
        mean=float(rewards.mean()),
        std=float(rewards.std()),
    )


def _wins(differences: np.ndarray) -> np.ndarray:
    return np.where(differences == 0, 0.5, (differences > 0).astype(float))


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
