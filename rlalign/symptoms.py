"""What one batch of responses shows of reward hacking: correlations, shared phrases, diversity.

A row is a sample as samples.jsonl holds it, so a finished run can be looked at again.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from rlalign.metrics import distinct_n, words_of

MOST = 256  # responses whose words are counted: more cost time, and tell nothing new
PHRASE = 3  # words of a phrase and of an opening
ROUNDING = 1e-3  # nats: a KL that spreads less is that of a policy that has not moved

Row = Mapping[str, Any]
Words = tuple[str, ...]
Paid = Mapping[str, Callable[[float], float]]  # by reward: what a value adds to the score


def batch_numbers(rows: Sequence[Row], paid: Paid) -> dict[str, float]:
    """The audit's metrics of B samples, without their prefix; absent where there is no number.

    `paid` names the rewards. Correlations are Spearman's, -1 to 1; shares and distinct-n, over at
    most 256 of the samples, 0 to 1.
    """
    texts = [str(rows[i]["response"]) for i in spaced(len(rows))]
    lengths = [float(row["length"]) for row in rows]
    kl = [float(row["kl"]) for row in rows]
    if max(kl, default=0.0) - min(kl, default=0.0) < ROUNDING:
        kl = [0.0] * len(kl)
    score = [float(row["score"]) for row in rows]
    found = {"score/length": spearman(score, lengths), "score/kl": spearman(score, kl)}
    for name, adds in paid.items():
        values = [row["rewards"].get(name) for row in rows]
        rest = [s if v is None else s - adds(v) for s, v in zip(score, values, strict=True)]
        found[f"reward/{name}/length"] = spearman(values, lengths)
        found[f"reward/{name}/kl"] = spearman(values, kl)
        found[f"reward/{name}/rest"] = spearman(values, rest)
    found["phrase_share"] = commonest(texts, phrases)[0]
    found["opening_share"] = commonest(texts, opening)[0]
    found["duplicates"] = duplicates(texts)
    found["distinct1"], found["distinct2"] = distinct_n(texts, 1), distinct_n(texts, 2)
    return {name: value for name, value in found.items() if value is not None}


def spearman(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    """Rank correlation where both have a finite value; None of fewer than 3 or of a constant.

    Of ranks, because the KL has long tails and rewards are often 0 or 1; ties share their rank.
    """
    pairs = [
        (x, y)
        for x, y in zip(a, b, strict=True)
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
    ]
    if len(pairs) < 3:
        return None
    ranks = [_average_ranks(np.array(column)) for column in zip(*pairs, strict=True)]
    x, y = (r - r.mean() for r in ranks)
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip((x @ y) / spread, -1.0, 1.0)) if spread > 0 else None


def _average_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return ranks


def spaced(size: int) -> range:
    """Indices of at most 256 evenly spaced samples: of every process, prompts in turn."""
    return range(0, size, -(-size // MOST) or 1)


def phrases(words: Words) -> set[Words]:
    """Every phrase of three words, each once."""
    return set(zip(*(words[start:] for start in range(PHRASE)), strict=False))


def opening(words: Words) -> set[Words]:
    """The first three words, or all that there are; nothing of a text without words."""
    return {words[:PHRASE]} if words else set()


def commonest(
    texts: Sequence[str], items_of: Callable[[Words], set[Words]]
) -> tuple[float, str, list[bool]]:
    """The largest share of texts that hold the same item, the item, and which texts hold it.

    (0, "", none) where no two share one; of equally frequent items the first by the alphabet.
    """
    items = [items_of(words_of(text)) for text in texts]
    counts = Counter(item for each in items for item in each)
    most = max(counts.values(), default=0)
    if most < 2:
        return 0.0, "", [False] * len(texts)
    found = min(item for item, count in counts.items() if count == most)
    return most / len(texts), " ".join(found), [found in each for each in items]


def duplicates(texts: Sequence[str]) -> float:
    """Share of the texts that repeat an earlier one, whatever their case and outer spaces."""
    return 1 - len({text.strip().casefold() for text in texts}) / len(texts) if texts else 0.0


def marked(rows: Sequence[Row], names: Sequence[str], top: int) -> list[dict[str, Any]]:
    """The rows, with `top`, `phrase` and `opening` where there is something to say.

    `top` lists the rewards, and `score`, by which a response is among the highest `top` different
    ones; `phrase` and `opening` are the batch's commonest, on those rows that hold them of the at
    most 256 whose words are counted. Spans stay on the rows that have a `top`, which are there to
    be read: on all of them they would be longer than the texts.
    """
    best: dict[int, list[str]] = {}
    for name in ("score", *names):
        for i in _highest(rows, name, top):
            best.setdefault(i, []).append(name)
    looked_at = spaced(len(rows))
    texts = [str(rows[i]["response"]) for i in looked_at]
    shared = {"phrase": commonest(texts, phrases), "opening": commonest(texts, opening)}
    made = []
    for i, row in enumerate(rows):
        marks: dict[str, Any] = {"top": best[i]} if i in best else {}
        if i in looked_at:
            at = looked_at.index(i)
            marks |= {key: item for key, (_, item, holds) in shared.items() if holds[at]}
        kept = {key: value for key, value in row.items() if key != "spans" or i in best}
        made.append({**kept, **marks})
    return made


def _highest(rows: Sequence[Row], name: str, top: int) -> list[int]:
    """Indices of the `top` highest by a reward or by the score, a text counting once.

    Of equal values the one of the higher score; none where all values are equal.
    """
    values = [row["score"] if name == "score" else row["rewards"].get(name) for row in rows]
    order = [i for i, value in enumerate(values) if value is not None]
    if len({values[i] for i in order}) < 2:
        return []
    order.sort(key=lambda i: (-values[i], -rows[i]["score"]))
    chosen: dict[str, int] = {}
    for i in order:
        if len(chosen) == top:
            break
        chosen.setdefault(str(rows[i]["response"]), i)
    return list(chosen.values())


def moments(values: Sequence[float | None], groups: Sequence[Hashable]) -> list[float] | None:
    """[groups, mean, variance of the groups' means, variance of the values]; None of nothing.

    Samples of one prompt are alike: a group's mean counts as one observation. Variances are
    unbiased, 0 of a single one.
    """
    members: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        if value is not None and math.isfinite(value):
            members.setdefault(group, []).append(value)
    if not members:
        return None
    means = np.array([np.mean(block) for block in members.values()])
    everything = np.concatenate([np.array(block) for block in members.values()])
    variances = [float(x.var(ddof=1)) if len(x) > 1 else 0.0 for x in (means, everything)]
    return [float(len(means)), float(means.mean()), *variances]
