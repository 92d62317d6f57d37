"""A sweep file, as W&B reads it, checked for what can be had here; and a trial's command line."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlalign.nearby import file_hint
from rlalign.problems import ConfigError, Problems, shown
from rlalign.settings.overrides import read_yaml
from rlalign.settings.schema import nearest
from rlalign.sweeps.early import Hyperband, read_early_terminate
from rlalign.sweeps.parameters import Choice, Parameter, Range, read_parameter

METHODS = ("grid", "random", "bayes")
KEYS = (
    *("program", "command", "method", "metric", "parameters", "run_cap"),
    *("name", "description", "project", "entity", "early_terminate"),
)
DEFINING = ("method", "metric", "parameters", "program", "command", "early_terminate")
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")  # W&B's
# The forms in which W&B puts parameters; its ${args_dict} puts their names alone.
FORMS = (
    *("args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags"),
    *("args_json", "args_json_file", "args_append_hydra", "args_override_hydra"),
)
OTHERS = ("env", "interpreter", "program")
MACRO = re.compile(r"\$\{(.*)\}")
OURS = ("run.dir", "run.name", "run.resume")  # what a trial is told beside its parameters


@dataclass(frozen=True)
class Sweep:
    """A sweep file."""

    method: Literal["grid", "random", "bayes"]
    metric: str
    goal: Literal["maximize", "minimize"]
    parameters: Mapping[str, Parameter]
    command: tuple[str, ...]
    program: str | None
    run_cap: int | None
    early: Hyperband | None  # which trials are stopped early
    definition: str  # JSON of all that a trial's result depends on

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial is given, of what Optuna drew for it; less where it has not drawn all."""
        return {n: each.value(drawn[n]) for n, each in self.parameters.items() if n in drawn}

    @property
    def varied(self) -> list[str]:
        """The parameters that are not the same in every trial."""
        given = self.parameters.items()
        return [n for n, each in given if not isinstance(each, Choice) or len(each.values) > 1]

    @property
    def grid_size(self) -> int:
        return math.prod(len(_points(each)) for each in self.parameters.values())

    def grid_point(self, number: int) -> dict[str, Any]:
        """The grid's point of a number from 0, as Optuna would draw it."""
        points = itertools.product(*(_points(each) for each in self.parameters.values()))
        point = next(itertools.islice(points, number, None))
        return dict(zip(self.parameters, point, strict=True))


def _points(parameter: Parameter) -> list[Any]:
    """All that a parameter can be drawn as; nothing where that has no end."""
    if isinstance(parameter, Choice):
        return parameter.keys
    if isinstance(parameter, Range) and parameter.is_whole:
        return list(range(int(parameter.low), int(parameter.high) + 1))
    return []


def command_line(
    sweep: Sweep,
    values: Mapping[str, Any],
    json_file: Path,
    command: Sequence[str] | None = None,
) -> list[str]:
    """The command of a trial with its values put in, exactly as W&B's agent does it.

    `json_file` is where the values lie that ${args_json_file} is to point at; `command` is another
    one than the sweep's.
    """
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    filled = create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    filled |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep.program]}
    filled["args_json_file"] = [str(json_file)]
    words: list[str] = []
    for part in create_sweep_command(list(command or sweep.command)):
        macro = MACRO.fullmatch(part)
        words += filled[macro[1]] if macro else [part]
    return words


# -- reading ---------------------------------------------------------------------------------------


def read_sweep(path: Path) -> Sweep:
    """The sweep of a file; ConfigError with all that is wrong with it, a line each."""
    return parse_sweep(read_content(path))


def read_content(path: Path) -> dict[str, Any]:
    """What a sweep file says, unchecked; ConfigError where it is no mapping."""
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"the sweep file {path} cannot be read: {why}{file_hint(path)}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"the sweep file {path} must be a mapping with method, metric, ...")
    return content


def parse_sweep(content: Mapping[str, Any]) -> Sweep:
    """What a file says, checked; ConfigError with all that is wrong with it, a line each."""
    problems = Problems()
    for key in content:
        if key not in KEYS:
            close = nearest(str(key), KEYS)
            hint = f"did you mean {close}?" if close else f"there are {', '.join(KEYS)}"
            problems.say(f"{key} is no key of a sweep file; {hint}")
    method: Any = content.get("method")
    if method not in METHODS:
        problems.say(f"method={shown(method)} is unknown; there are {', '.join(METHODS)}")
    metric, goal = _metric(content.get("metric"), problems)
    parameters = _parameters(content.get("parameters"), method == "grid", problems)
    program, command = content.get("program"), _command(content, problems)
    cap = content.get("run_cap")
    if cap is not None and (type(cap) is not int or cap < 1):
        problems.say(f"run_cap={shown(cap)} must be a whole number above 0; it limits the trials")
    early = None
    if "early_terminate" in content:
        try:
            early = read_early_terminate(content["early_terminate"])
        except ConfigError as error:
            for line in str(error).splitlines():
                problems.say(line)
    problems.raise_if_any()
    return Sweep(
        method=method,
        metric=metric,
        goal=goal,
        parameters=parameters,
        command=command,
        program=None if program is None else str(program),
        run_cap=cap,
        early=early,
        definition=json.dumps({k: content[k] for k in DEFINING if k in content}, sort_keys=True),
    )


def _metric(given: Any, problems: Problems) -> tuple[str, Any]:
    example = "metric: {name: score, goal: maximize}"
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        problems.say(
            f"metric={shown(given)} must name a metric of metrics.jsonl, which says how good a "
            f"trial is: {example}"
        )
        return "", "minimize"
    goal = given.get("goal", "minimize")  # W&B's default
    if goal not in ("maximize", "minimize"):
        problems.say(f"metric.goal={shown(goal)} must be maximize or minimize: {example}")
    if more := sorted(set(map(str, given)) - {"name", "goal"}):
        problems.say(
            f"metric.{more[0]}={shown(given[more[0]])} cannot be had under --local; "
            f"remove it: {example}"
        )
    return given["name"], goal


def _parameters(given: Any, is_grid: bool, problems: Problems) -> dict[str, Parameter]:
    if not isinstance(given, dict) or not given:
        problems.say(
            f"parameters={shown(given)} must map settings to values: "
            "parameters: {kl.coef: {values: [0.1, 0.2]}}"
        )
        return {}
    found = {}
    for name, spec in given.items():
        if name in OURS:
            problems.say(
                f"parameters.{name}: each trial has a folder of its own, so the sweep sets "
                f"{', '.join(OURS)}; remove it"
            )
            continue
        try:
            found[str(name)] = parameter = read_parameter(str(name), spec)
        except ConfigError as error:
            problems.say(str(error))
            continue
        if is_grid and not _points(parameter):
            problems.say(
                f"parameters.{name}={shown(spec)} has no end of values, which method=grid needs; "
                "list them as values, or use method random or bayes"
            )
    return found


def _command(content: Mapping[str, Any], problems: Problems) -> tuple[str, ...]:
    command = content.get("command", list(DEFAULT_COMMAND))
    if not isinstance(command, list) or not command:
        problems.say(f"command={shown(command)} must be a list of words, such as ['${{args}}']")
        return ()
    words = tuple(map(str, command))
    macros = [found[1] for word in words if (found := MACRO.fullmatch(word))]
    for macro in macros:
        if macro not in (*FORMS, *OTHERS) and not re.fullmatch(r"envvar:[A-Z0-9_]*", macro):
            problems.say(
                f"command: ${{{macro}}} is unknown; there are "
                f"{', '.join(f'${{{name}}}' for name in (*OTHERS, *FORMS))} and ${{envvar:NAME}}"
            )
    if not set(macros) & set(FORMS):
        problems.say(
            f"command={shown(command)} has no ${{args}}, so no trial would get its parameters; "
            "add - ${args}"
        )
    if "program" in macros and not content.get("program"):
        problems.say("command has ${program}, and the file names no program; add program: FILE")
    return words
