"""All rewards of a set on one batch; the async ones wait at the same time, as in TRL."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rewards.calling import Columns, Scorer, Value, is_async, values
from rewards.randomness import OwnRandomness
from rewards.trl_style import for_entry


def values_of_all(
    rewards: Sequence[Scorer], data: Columns, randomness: OwnRandomness, *, use_cache: bool
) -> list[tuple[list[Value], int]]:
    """For each reward what `values` gives; what async ones draw at random is of `randomness`."""

    def one(reward: Scorer) -> tuple[list[Value], int]:
        return values(reward, for_entry(data, reward.entry.name), use_cache=use_cache)

    waiting = [i for i, reward in enumerate(rewards) if is_async(reward)]
    if not waiting:
        return [one(reward) for reward in rewards]
    with randomness, ThreadPoolExecutor(len(waiting)) as pool:
        begun = {i: pool.submit(one, rewards[i]) for i in waiting}
        return [
            begun[i].result() if i in begun else one(reward) for i, reward in enumerate(rewards)
        ]
