"""The callable behind an entry: the reward itself, or its stand-in where it runs in a worker."""

from collections.abc import Mapping
from typing import Any

from rewards.apart import Apart
from rewards.contract import Reward, RewardConfigError, described
from rewards.entries import RewardEntry
from rewards.isolation import DEADLINE, Isolated, Worker
from rewards.spec import RewardSpec
from rewards.trl_style import TRLFunction


def construct(
    entry: RewardEntry,
    spec: RewardSpec,
    params: Mapping[str, Any],
    apart: Apart,
    seed: int | None = None,
    worker: Worker | None = None,
) -> Reward | Isolated:
    """The callable with its parameters; whatever goes wrong names the entry.

    It is built within `apart`. An isolated reward runs in `worker`, or in one of its own, and
    `seed` is that of what is drawn at random there while it is built and loaded.
    """
    where = f"rewards.{entry.name}"
    try:
        if entry.isolate and isinstance(spec.target, TRLFunction):
            raise RewardConfigError(
                "isolate=True is not for functions that are written for TRL: what they log would "
                "stay in the worker; put @reward above it, or remove isolate"
            )
        if entry.isolate:
            return Isolated(spec, params, entry.deadline or DEADLINE, worker, seed)
        with apart:
            return spec.build(params)
    except RewardConfigError as error:
        raise error.within(where) from error
    except (Exception, SystemExit) as error:
        raise RewardConfigError(
            f"{where} ({spec.kind}, {spec.source}) cannot be built: {described(error)}"
        ) from error
