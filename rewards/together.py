"""All rewards of a set on one batch; the async ones wait at the same time, as in TRL."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TypeVar

from rewards.apart import lend, lends
from rewards.asking import Call, Search
from rewards.calling import Columns, Scorer, Value, is_async, values
from rewards.trl_style import for_entry

Result = TypeVar("Result")


def values_of_all(
    rewards: Sequence[Scorer], data: Columns, call: Call
) -> list[tuple[list[Value], int]]:
    """For each reward what `values` gives."""

    def one(reward: Scorer) -> tuple[list[Value], int]:
        name = reward.entry.name
        own = replace(call.within(name), search=Search())  # each has its own time for what hangs
        return values(reward, for_entry(data, name), own)

    begun = {
        i: _begin(partial(one, reward)) for i, reward in enumerate(rewards) if is_async(reward)
    }
    return [begun[i].result() if i in begun else one(reward) for i, reward in enumerate(rewards)]


def _begin(job: Callable[[], Result]) -> "Future[Result]":
    """The job in a thread that nothing waits for at an interrupt, which an executor's would be."""
    future: Future[Result] = Future()
    lent = lends()

    def run() -> None:
        lend(lent)
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="async reward", daemon=True).start()
    return future
