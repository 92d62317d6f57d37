"""How alike texts are: self-BLEU, over words or over characters."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from rlalign.metrics import words_of

ORDER = 5  # longest n-gram, the GDC papers' choice


def self_bleu(texts: Sequence[str], *, characters: bool = False, order: int = ORDER) -> float:
    """Mean BLEU of each text against all others, in [0, 1]: 1 where they are all the same.

    Over case-folded words; or, with `characters`, over single characters, which is what the GDC
    papers report without saying so: their raw strings went where words were expected, and English
    sentences of nothing in common then stand at about .84 in place of .15. BLEU as in Papineni et
    al. 2002 with weights 1/order, Chen and Cherry's (2014) smoothing 1 (0.1 in place of a count of
    0), and the closest reference length. The more texts, the higher it is: compare at one count.
    nan of fewer than two texts.
    """
    items = [tuple(text) if characters else words_of(text) for text in texts]
    if len(items) < 2:
        return math.nan
    counts = [[grams(item, n) for item in items] for n in range(1, order + 1)]  # by order and text
    most = [two_largest(of_texts) for of_texts in counts]
    lengths = Counter(len(item) for item in items)
    found = 0.0
    for number, item in enumerate(items):
        precisions = [
            clipped(counts[n][number], number, most[n]) / max(counts[n][number].total(), 1)
            for n in range(order)
        ]
        found += bleu(precisions, [c[number].total() for c in counts], len(item), lengths)
    return found / len(items)


def grams(item: Sequence[Hashable], n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(zip(*(item[start:] for start in range(n)), strict=False))


def two_largest(
    of_texts: Sequence[Counter[tuple[Hashable, ...]]],
) -> dict[tuple[Hashable, ...], tuple[int, int, int]]:
    """For each n-gram the most that one text has of it, that text's number, and the second most.

    So the most that any *other* text has is found without comparing each text with each.
    """
    found: dict[tuple[Hashable, ...], tuple[int, int, int]] = {}
    for number, counts in enumerate(of_texts):
        for gram, count in counts.items():
            first, owner, second = found.get(gram, (0, -1, 0))
            if count > first:
                found[gram] = (count, number, first)
            elif count > second:
                found[gram] = (first, owner, count)
    return found


def clipped(
    own: Counter[tuple[Hashable, ...]],
    number: int,
    most: dict[tuple[Hashable, ...], tuple[int, int, int]],
) -> int:
    """How many of a text's n-grams some other text has, each as often as there at most."""
    total = 0
    for gram, count in own.items():
        first, owner, second = most[gram]
        total += min(count, second if owner == number else first)
    return total


def bleu(
    precisions: Sequence[float], totals: Sequence[int], length: int, lengths: Counter[int]
) -> float:
    """Geometric mean of the precisions times the brevity penalty; 0 where not a word is shared."""
    if length == 0 or precisions[0] == 0.0:
        return 0.0
    logs = [
        math.log(p if p > 0 else 0.1 / max(total, 1))
        for p, total in zip(precisions, totals, strict=True)
    ]
    others = [size for size, count in lengths.items() if count > (size == length)]
    closest = min(others, key=lambda size: (abs(size - length), size))
    penalty = 1.0 if length > closest else math.exp(1.0 - closest / length)
    return penalty * math.exp(sum(logs) / len(logs))
