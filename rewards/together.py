"""All rewards of a set on one batch; the async ones wait at the same time, as in TRL."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rewards.calling import BuiltReward, Columns, Scorer, Value, values
from rewards.trl_style import TRLFunction, for_entry


def values_of_all(
    rewards: Sequence[Scorer], data: Columns, *, use_cache: bool
) -> list[tuple[list[Value], int]]:
    """For each reward what `values` gives."""

    def one(reward: Scorer) -> tuple[list[Value], int]:
        return values(reward, for_entry(data, reward.entry.name), use_cache=use_cache)

    waiting = [i for i, reward in enumerate(rewards) if _is_async(reward)]
    if not waiting:
        return [one(reward) for reward in rewards]
    with ThreadPoolExecutor(len(waiting)) as pool:
        begun = {i: pool.submit(one, rewards[i]) for i in waiting}
        return [
            begun[i].result() if i in begun else one(reward) for i, reward in enumerate(rewards)
        ]


def _is_async(reward: Scorer) -> bool:
    if not isinstance(reward, BuiltReward):
        return False
    target = reward.spec.target
    return isinstance(target, TRLFunction) and target.is_async
