"""What a reward should not return, made anew by each call; a worker's process makes it too."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from rewards.contract import Failure, Score, Span


def raising(*methods: str, base: type = object) -> type:
    """A class whose objects raise from these methods."""

    def fails(self: Any, *_: Any) -> None:
        raise KeyError("hostile\n\ud800")

    return type("Hostile", (base,), dict.fromkeys(methods, fails))


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def itself() -> list[Any]:
    found: list[Any] = [1.0]
    found.append(found)
    return found


LISTS = [raising("__iter__", base=list), raising("__len__", base=list),
         raising("__getitem__", "__repr__", base=list)]  # fmt: skip
MAKERS: list[Callable[[], Any]] = [
    *LISTS, raising("__repr__"), raising("__repr__", "__str__"), raising("tolist"),
    raising("__eq__", "__hash__", "__bool__"), raising("__getattr__"), raising("__getattribute__"),
    raising("__repr__", base=dict), raising("__float__", base=Fraction), raising("__len__"),
    raising("__float__", "__repr__", base=float), itself, object, lambda: (x for x in [1.0]),
    lambda: {1.0: 2}, lambda: {0.5}, lambda: b"abc", lambda: Ellipsis, lambda: 1j,
    lambda: Fraction(1, 3), lambda: Fraction(10**400, 3), lambda: -(10**400), lambda: 10**5000,
    lambda: np.float32("nan"), lambda: np.longdouble("1e4000"), lambda: np.array(2.0),
    lambda: np.array([1.0, 2.0]), lambda: np.array("x"), lambda: np.datetime64("2020-01-01"),
    lambda: np.zeros((2, 2)), lambda: np.zeros(0), lambda: type, lambda: len, lambda: range(2),
    lambda: memoryview(b"ab"), lambda: Failure("gave up"), lambda: "\ud800", lambda: [[]],
    lambda: Failure("\ud800\n", Unspeakable()),
    lambda: Score(math.nan), lambda: Score(1e39), lambda: Score(1.0, [Span(0, 10**9, 1.0)]),
    lambda: Score(1.0, [Span(0, 0, math.nan)]), lambda: Score(1.0, [Span(0, 0, 1e39)]),
    lambda: Score(1.0, [3]), lambda: Score(1.0, [Span("a", 0, 1.0)]),
]  # fmt: skip


def made(seed: int, size: int) -> Any:
    """One of many returns for `size` samples, told by its number."""
    choose = np.random.default_rng(seed)
    makers = [*MAKERS, lambda: 1.0, lambda: None, lambda: 0.5, lambda: True]
    picked = [makers[i]() for i in choose.integers(len(makers), size=size)]
    if seed % 3 == 0:
        return picked[0]
    if seed % 3 == 1:
        return [1.0, *picked[: seed % 7]]
    return [picked[0] if i == seed % 5 else float(i) for i in range(size)]
