"""The ways to come near a target that share this project's loop, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlalign.algorithms.dpg import DPG
from rlalign.algorithms.ppo import PPO
from rlalign.algorithms.reinforce import Reinforce
from rlalign.objective import Objective
from rlalign.settings.method_sections import DPGRun, PPORun, ReinforceRun
from rlalign.settings.sections import RunConfig


@dataclass(frozen=True)
class Method:
    run_model: type[RunConfig]
    objective: Callable[[Any], Objective]  # of a configuration of that model; checks it


METHODS = {
    "ppo": Method(PPORun, PPO),
    "dpg": Method(DPGRun, DPG),
    "reinforce": Method(ReinforceRun, Reinforce),
}
