"""The ways to come near a target that share this project's loop, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlalign.algorithms.dpg import DPG, DPGRun, DPGSection
from rlalign.algorithms.ppo import PPO, PPORun
from rlalign.algorithms.reinforce import Reinforce, ReinforceRun, ReinforceSection
from rlalign.objective import Objective
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


class AnyRun(PPORun):
    """Every method's settings at once: what a configuration file may hold. No run has this model.

    A method reads the shared sections and its own, and leaves the others' alone.
    """

    dpg: DPGSection = DPGSection()
    reinforce: ReinforceSection = ReinforceSection()
