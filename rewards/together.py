"""All rewards of a set on one batch; the async ones wait at the same time, as in TRL."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from rewards.calling import Columns, Scorer, Value, is_async, shares_generators, values
from rewards.randomness import OwnRandomness
from rewards.trl_style import for_entry

Result = TypeVar("Result")


def values_of_all(
    rewards: Sequence[Scorer], data: Columns, randomness: OwnRandomness, *, use_cache: bool
) -> list[tuple[list[Value], int]]:
    """For each reward what `values` gives; what async ones draw at random is of `randomness`."""

    def one(reward: Scorer) -> tuple[list[Value], int]:
        return values(reward, for_entry(data, reward.entry.name), use_cache=use_cache)

    waiting = [i for i, reward in enumerate(rewards) if is_async(reward)]
    if not waiting:
        return [one(reward) for reward in rewards]
    with randomness:
        begun = {i: _begin(partial(one, rewards[i])) for i in waiting}
        return [
            begun[i].result() if i in begun else one(reward) for i, reward in enumerate(rewards)
        ]


def _begin(job: Callable[[], Result]) -> "Future[Result]":
    """The job in a thread that nothing waits for at an interrupt, which an executor's would be."""
    future: Future[Result] = Future()

    def run() -> None:
        shares_generators.set(True)
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="async reward", daemon=True).start()
    return future
