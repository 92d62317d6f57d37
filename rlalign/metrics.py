"""Numbers about a run: diversity, perplexity, and how sure a mean or a difference is."""

import math
import re
import resource
import sys
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from rlalign.masking import masked_mean

WORD = re.compile(r"\w+(?:['’]\w+)*")  # noqa: RUF001 - the typographic apostrophe is meant
RESAMPLES = 2000


def distinct_n(texts: Sequence[str], n: int, count: int | None = None) -> float:
    """Different word n-grams over all word n-grams of the first `count` texts; 0 if there are none.

    The more texts, the lower it is, so compare only values of the same count: fewer texts than
    `count` are an error. Words are case-folded, punctuation is dropped, and no n-gram runs from
    one text into the next (Li et al. 2016, over the whole sample).
    """
    if count is not None and len(texts) < count:
        raise ValueError(f"distinct-{n} of {count} texts was asked for, and there are {len(texts)}")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts[:count]:
        words = words_of(text)
        grams = list(zip(*(words[start:] for start in range(n)), strict=False))
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


@lru_cache(maxsize=8192)  # several numbers of a batch count the same words
def words_of(text: str) -> tuple[str, ...]:
    """Case-folded words, without punctuation."""
    return tuple(WORD.findall(text.casefold()))


def mean_and_se(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error s / sqrt(n), s with n - 1 below; (nan, nan) of nothing.

    The standard error of a single value is nan.
    """
    n = len(values)
    if n == 0:
        return math.nan, math.nan
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n)


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic over resampled values.

    With `groups` whole groups are drawn: samples of one prompt are alike, and drawing them one by
    one makes an interval that is too narrow. The same seed gives the same interval.
    """
    drawn = _resampled(values, statistic, groups, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    paired: bool = False,
    groups: tuple[Sequence[Hashable] | None, Sequence[Hashable] | None] = (None, None),
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """mean(after) - mean(before), with the ends of its bootstrap interval.

    `paired` says that the values stand for the same prompts in the same order: the prompts' own
    spread then cancels. `groups`, as in `bootstrap`: the prompts of either side.
    """
    change = float(np.mean(after) - np.mean(before))
    if paired:
        if len(before) != len(after):
            raise ValueError(f"paired values differ in number: {len(before)} and {len(after)}")
        rises = np.subtract(after, before).tolist()
        low, high = bootstrap(rises, groups=groups[0], level=level, seed=seed)
        return change, low, high
    ends = (
        _resampled(each, np.mean, of, seed + i)
        for i, (each, of) in enumerate(zip((after, before), groups[::-1], strict=True))
    )
    drawn = next(ends) - next(ends)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return change, float(low), float(high)


def perplexity(logprobs: Tensor, mask: Tensor) -> float:
    """exp of the mean negative log-probability over the kept tokens of (B, T)."""
    return math.exp(-float(masked_mean(logprobs, mask)))


def peak_memory_mb() -> float:
    """Most memory that this process has held, in MiB: of the GPU where there is one, else RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere


def _resampled(
    values: Sequence[float],
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[Hashable] | None,
    seed: int,
) -> np.ndarray:
    if not len(values):
        raise ValueError("a bootstrap needs at least one value")
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups or range(len(values)), values, strict=True):
        members.setdefault(group, []).append(value)
    blocks = [np.asarray(block) for block in members.values()]
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(blocks), size=(RESAMPLES, len(blocks)))
    if statistic is np.mean:  # the same, without putting the blocks together 2000 times
        sums, counts = (np.array([of(b) for b in blocks]) for of in (np.sum, len))
        return np.asarray(sums[draws].sum(1) / counts[draws].sum(1))
    return np.array([statistic(np.concatenate([blocks[i] for i in draw])) for draw in draws])
