"""Refuse a sweep over settings that a run of ours does not have, before its first trial."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlalign.startup import QUICKSTART
from rlalign.sweeps.file import Sweep, command_line
from rlalign.sweeps.parameters import TAILS, Choice, Normal, Parameter

LAUNCHER = re.compile(r"(?:.*/)?launch/(\w+)\.py|rlalign\.(\w+)")
# What a method's settings are those of; TRL's trainers take a PPO run's.
RUN_OF = {"ppo": "ppo", "dpg": "dpg", "reinforce": "reinforce", "grpo": "ppo", "rloo": "ppo"}


def check_settings(sweep: Sweep) -> None:
    """ConfigError that names a setting that no trial could take; programs of others are let be.

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
            load_config(METHODS[RUN_OF[found[0]]].run_model, found[1], default=QUICKSTART)


def our_run(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The method that a command line trains by, and the arguments of its run; None if not ours."""
    for index, word in enumerate(words):
        if (found := LAUNCHER.fullmatch(word)) and _is_ours(word):
            method, rest = found[1] or found[2], words[index + 1 :]
        elif Path(word).name == "rlalign" and len(words) > index + 1:
            method, rest = words[index + 1], words[index + 2 :]
        else:
            continue
        if method in RUN_OF:
            return method, list(rest)
    return None


def _is_ours(word: str) -> bool:
    """Whether a launcher starts this package, or only has the name of one that does."""
    if not word.endswith(".py"):
        return True
    try:
        return "rlalign" in Path(word).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _values(parameter: Parameter) -> list[Any]:
    """The values of a choice; of a range its ends."""
    if isinstance(parameter, Choice):
        return list(parameter.values)
    ends = TAILS if isinstance(parameter, Normal) else (parameter.low, parameter.high)
    return [parameter.value(end) for end in ends]
