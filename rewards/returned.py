"""What a reward returned, as the few types that the rest of the code knows.

Looking at a return runs code of the reward's own (`__iter__`, `__float__`, `tolist`), which may
raise: it belongs where the reward is called, and in its worker where it has one.
"""

import operator
import sys
from dataclasses import dataclass
from itertools import islice

from rewards.contract import Failure, Score, Span, as_float, brief, plain


@dataclass(frozen=True)
class Wrong:
    """A return, or an item of one, that is no value; `what` says so behind the reward's name."""

    what: str


Item = float | Score | Failure | Wrong | None


def taken(returned: object, size: int) -> list[Item] | Wrong:
    """An item for each of `size` samples, finite or not, or what is wrong with the whole."""
    returned = plain(returned)
    if not isinstance(returned, list | tuple):
        return Wrong(
            f"returned {_shown(returned)}; a reward returns a list with a number or None for each "
            "sample"
        )
    if len(returned) != size:
        return Wrong(f"returned {len(returned)} values for {size} samples")
    items = [_item(item) for item in islice(iter(returned), size + 1)]
    if len(items) != size:  # a subclass may say one length and have another
        return Wrong(f"returned a {type(returned).__name__} that holds another number of values")
    return items


def _item(item: object) -> Item:
    item = plain(item)
    if item is None:
        return None
    if isinstance(item, Failure):
        return Failure(str(item.reason), item.cause)
    number = as_float(item)
    if number is None:
        return Wrong(f"returned {_shown(item)}")
    if not isinstance(item, Score) or not item.spans:
        return number
    return Score(number, [Span(_at(s.start), _at(s.end), float(s.credit)) for s in item.spans])


def _at(place: object) -> int:
    """A place in a text as a plain integer; far outside, where it is beyond any text."""
    return max(-1, min(operator.index(place), sys.maxsize))  # type: ignore[arg-type]


def _shown(item: object) -> str:
    return f"{type(item).__name__} {brief(item)}"
