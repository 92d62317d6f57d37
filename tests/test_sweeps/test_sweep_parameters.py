"""What a sweep file's parameters draw is what W&B would have sent."""

from typing import Any

import pytest

from rlalign.sweeps.parameters import read_parameter


def test_numbers_are_made_as_wandb_makes_them():
    def of(drawn: float, **spec: Any) -> Any:
        return read_parameter("x", spec).value(drawn)

    assert of(0.34, distribution="q_uniform", min=0, max=1, q=0.25) == 0.25
    assert of(340.0, distribution="q_log_uniform_values", min=1, max=1000, q=100) == 300
    assert of(0.5, distribution="normal", mu=3, sigma=2) == 3.0
    assert of(0.8413447460685429, distribution="normal", mu=3, sigma=2) == pytest.approx(5.0)
    assert of(0.5, distribution="log_normal", mu=0, sigma=1) == 1.0
    assert of("[1, 2]", values=[[1, 2], 3]) == [1, 2]
    assert of(None, value=None) is None


def test_numbers_are_drawn_between_the_ends_that_wandb_draws_between():
    def drawn(**spec: Any) -> tuple[Any, Any, bool]:
        found = read_parameter("x", spec).distribution()
        return found.low, found.high, found.log

    assert drawn(min=1, max=4) == (1, 4, False)
    assert type(read_parameter("x", {"min": 1, "max": 4}).distribution()).__name__ == (
        "IntDistribution"
    )
    assert drawn(min=1.0, max=4) == (1.0, 4.0, False)
    assert drawn(distribution="log_uniform_values", min=1e-5, max=1e-2) == (1e-5, 1e-2, True)
    low, high, is_log = drawn(distribution="log_uniform", min=0, max=1)
    assert (low, is_log) == (1.0, True) and high == pytest.approx(2.718281828)
