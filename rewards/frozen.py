"""Values as keys of a mapping."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any


def frozen(values: Sequence[Any]) -> Hashable:
    """A hashable that is equal for equal values only, or None where there is no such thing."""
    try:
        return tuple(_frozen(value) for value in values)
    except TypeError:
        return None


def _frozen(value: Any) -> Hashable:
    if value is None or isinstance(value, str | bool | int | float):
        return type(value), value  # 1, 1.0 and True are equal
    if isinstance(value, list | tuple):
        return type(value), tuple(_frozen(item) for item in value)
    if isinstance(value, Mapping):
        return dict, tuple((_frozen(k), _frozen(v)) for k, v in value.items())
    raise TypeError
