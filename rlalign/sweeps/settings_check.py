"""Refuse a sweep over settings that a run of ours does not have, before its first trial."""

from pathlib import Path
from typing import Any

from rlalign.problems import ConfigError
from rlalign.startup import QUICKSTART
from rlalign.sweeps.file import Sweep, command_line
from rlalign.sweeps.ours import RUN_OF, our_run
from rlalign.sweeps.parameters import Choice, Normal, Parameter

# Of a normal distribution; what is rarer and out of a setting's range fails alone, and is told.
USUAL = (0.01, 0.99)


def check_settings(sweep: Sweep, needs_wandb: bool = False) -> None:
    """ConfigError that names a setting that no trial could take; programs of others are let be.

    On line W&B must hear of the metric, so `needs_wandb` among the trackers.

    The first trial's settings are tried, then with each other value that a parameter may have.
    """
    if our_run(command_line(sweep, {}, Path("settings.json"))) is None:
        return
    from rlalign.config import load_config  # seconds, which a program of others need not wait
    from rlalign.methods import METHODS

    first = {name: _values(parameter)[0] for name, parameter in sweep.parameters.items()}
    trials = [first]
    for name, parameter in sweep.parameters.items():
        trials += [first | {name: value} for value in _values(parameter)[1:]]
    # The file of ${args_json_file} is not there yet; it says the same.
    words = tuple("${args_json}" if w == "${args_json_file}" else w for w in sweep.command)
    for values in trials:
        found = our_run(command_line(sweep, values, Path("settings.json"), words))
        if found is not None:
            config = load_config(METHODS[RUN_OF[found[0]]].run_model, found[1], default=QUICKSTART)
            if needs_wandb and "wandb" not in config.trackers:
                raise ConfigError(
                    f"trackers={list(config.trackers)} of the sweep's runs is without wandb, so "
                    "W&B would never hear of the metric; add --trackers=[wandb] to the command, or "
                    "run the sweep with --local"
                )


def _values(parameter: Parameter) -> list[Any]:
    """The values of a choice; of a range its ends."""
    if isinstance(parameter, Choice):
        return list(parameter.values)
    ends = USUAL if isinstance(parameter, Normal) else (parameter.low, parameter.high)
    return [parameter.value(end) for end in ends]
