"""The callable behind an entry: the reward itself, or its stand-in where it runs in a worker."""

from collections.abc import Mapping
from typing import Any

from rewards.contract import Reward, RewardConfigError, described
from rewards.entries import RewardEntry
from rewards.isolation import DEADLINE, Isolated, Worker
from rewards.spec import RewardSpec
from rewards.trl_style import TRLFunction


def construct(
    entry: RewardEntry, spec: RewardSpec, params: Mapping[str, Any], worker: Worker | None = None
) -> Reward:
    """The callable with its parameters; whatever goes wrong names the entry.

    An isolated reward runs in `worker`, or in one of its own.
    """
    where = f"rewards.{entry.name}"
    try:
        if entry.isolate and isinstance(spec.target, TRLFunction):
            raise RewardConfigError(
                "isolate=True is not for functions that are written for TRL: what they log would "
                "stay in the worker; put @reward above it, or remove isolate"
            )
        if entry.isolate:
            return Isolated(spec, params, entry.deadline or DEADLINE, worker)
        return spec.build(params)
    except RewardConfigError as error:
        raise error.within(where) from error
    except (Exception, SystemExit) as error:
        raise RewardConfigError(
            f"{where} ({spec.kind}, {spec.source}) cannot be built: {described(error)}"
        ) from error
