"""Configurations: a YAML file, overrides and a schema become one frozen, checked run model.

`load_config` reads a command line, `from_mapping` Python values. Every fault of one load is
reported together, one a line, named as the user typed it. Nothing here imports torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlalign.nearby import file_hint, run_hint
from rlalign.problems import ConfigError, Problems, dotted, shown
from rlalign.settings.fields import Section
from rlalign.settings.overrides import Override, dump_yaml, parse_argv, read_yaml
from rlalign.settings.reward_settings import entries_schema, settle_rewards
from rlalign.settings.schema import Node, describe, nearest, node_at, settings, unknown_setting
from rlalign.settings.sections import METHOD_SECTIONS, PromptsSection, RunConfig
from rlalign.settings.settle import apply_overrides, plain_copy, settle

__all__ = [
    "ConfigError",
    "from_mapping",
    "json_schema",
    "load_config",
    "resolved_yaml",
    "to_flat",
    "usage",
]

Run = TypeVar("Run", bound=Section)  # one with `rewards`, as RunConfig has, or without
Scalar = str | int | float | bool

LARGEST_FILE = 1_000_000  # bytes; PyYAML reads about 100,000 a second
PACKAGED = Path(__file__).parent / "quickstart"  # filled when a wheel is built


def load_config(
    run_model: type[Run],
    argv: Sequence[str],
    default: str | Path | None = None,
    *,
    rewards_given: bool = False,
) -> Run:
    """The configuration that a command line asks for: `--config FILE` or `default`, overridden.

    `--a.b=c`, `--a.b c`, `a.b=c`, a bare `--a.b` for a bool, and one JSON mapping are understood.
    Without a default the run model's own defaults are where overrides start. At least one reward
    is required unless `rewards_given`.
    """
    if {"-h", "--help"} & set(argv):
        print(usage(run_model))
        raise SystemExit(0)
    line = parse_argv(argv, run_model.model_fields)
    problems = Problems(line.problems)
    base: dict[str, Any] = {}
    try:
        if line.config is not None:
            base = read_file(line.config)
        elif default is not None:
            base = read_file(default_file(default))
    except ConfigError as error:
        problems.say(str(error))
        problems.raise_if_any()
    return _build(run_model, base, line.overrides, problems, rewards_given)


def from_mapping(
    run_model: type[Run],
    given: Section | Mapping[str, Any] | str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    rewards_given: bool = False,
) -> Run:
    """The configuration from Python: nested values or a file's path, and dotted overrides.

    `overrides` maps paths to values (`{"ppo.lr": 1e-5}`) or holds what a command line would.
    """
    if isinstance(given, str | Path):
        base = read_file(given)
    elif isinstance(given, Section):
        base = given.model_dump(mode="json")
    else:
        base = dict(given or {})
    if isinstance(overrides, Mapping):
        items = [
            Override(tuple(str(key).split(".")), value, None) for key, value in overrides.items()
        ]
        return _build(run_model, base, items, Problems(), rewards_given)
    line = parse_argv(overrides, run_model.model_fields)
    problems = Problems(line.problems)
    if line.config is not None:
        problems.say(f"--config {line.config}: a configuration is given already")
    return _build(run_model, base, line.overrides, problems, rewards_given)


def usage(run_model: type[Section]) -> str:
    """How settings are written, and every one with its default: the answer to `--help`."""
    lines = ["--config FILE, then settings as --section.key=value (docs/configuration.md):", ""]
    for setting in settings(run_model.model_json_schema()):
        default = json.dumps(setting.default)
        lines.append(f"--{setting.path}={default}   {setting.description} ({setting.kind})")
    return "\n".join(lines)


def resolved_yaml(config: Section) -> str:
    """Every setting with its value, as YAML that loads to an equal configuration."""
    return dump_yaml(config.model_dump(mode="json"))


def to_flat(config: Section) -> dict[str, Scalar]:
    """Dotted paths to scalars, for trackers: lists become JSON text, nulls are left out."""
    return dict(_flatten(config.model_dump(mode="json"), ""))


def json_schema(run_model: type[Section]) -> dict[str, Any]:
    """The JSON Schema of a configuration file; `rewards` is a `oneOf` over the known kinds."""
    schema = run_model.model_json_schema()
    rewards = {**schema["properties"]["rewards"], **entries_schema()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {**schema["properties"], "rewards": rewards},
    }


def read_file(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError names the file, and the line where it breaks.

    A run's folder stands for the `config.yaml` in it.
    """
    if (Path(path) / "config.yaml").is_file():
        path = Path(path) / "config.yaml"
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)  # not its size: a pipe, or /dev/zero, has none
        if len(content) > LARGEST_FILE:
            raise ValueError(f"has more than {LARGEST_FILE:,} bytes; it is no configuration")
        value = read_yaml(content.decode("utf-8"))
    except FileNotFoundError as error:
        hint = file_hint(path) or run_hint(path)
        raise ConfigError(f"--config {path}: no such file in {Path.cwd()}{hint}") from error
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: is not UTF-8 text") from error
    except ValueError as error:
        raise ConfigError(f"--config {path}: {error}") from error
    if value is None:
        raise ConfigError(f"--config {path}: is empty; copy experiments/quickstart.yaml to start")
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else f"the single value {shown(value)}"
        raise ConfigError(f"--config {path}: holds {kind}; the top level is a mapping of sections")
    return value


@cache
def _schema_of(run_model: type[Section]) -> Node:
    """Its JSON Schema, which takes longer to make than a configuration to check; not to change."""
    return run_model.model_json_schema()


def default_file(default: str | Path) -> Path:
    """The default configuration's file: away from a checkout the one in the installed package."""
    default = Path(default)
    packaged = PACKAGED / default.name
    if default.exists() or not packaged.exists():
        return default
    return packaged


def _build(
    run_model: type[Run],
    base: Mapping[str, Any],
    overrides: Sequence[Override],
    problems: Problems,
    rewards_given: bool,
) -> Run:
    root = _schema_of(run_model)
    # One file serves every method: what only another one reads is left alone.
    is_run = issubclass(run_model, RunConfig)
    others = set(METHOD_SECTIONS) - run_model.model_fields.keys() if is_run else set()
    mapping = plain_copy({k: v for k, v in base.items() if k not in others}, (), problems)
    declared = list(mapping["rewards"]) if isinstance(mapping.get("rewards"), dict) else []
    texts = apply_overrides(root, mapping, overrides, problems)
    settle(root, root, mapping, (), texts, problems)
    if "rewards" in run_model.model_fields:
        settle_rewards(mapping, declared, texts, problems, rewards_given)
        _use_packaged_prompts(mapping)
    try:
        # What is still a bare flag belongs to a reward that has been refused.
        text = json.dumps(mapping, default=lambda bare: True)
        config = run_model.model_validate_json(text, strict=True)
    except ValidationError as error:
        for detail in error.errors():
            _explain(root, mapping, detail, problems)
    problems.raise_if_any()
    return config


def _use_packaged_prompts(mapping: dict[str, Any]) -> None:
    """Outside a checkout the quickstart's prompts are those in the installed package."""
    own = PromptsSection.model_fields["path"].default
    packaged = PACKAGED / Path(own).name
    prompts = mapping.get("prompts", {})
    if not isinstance(prompts, dict) or prompts.get("path", own) != own:
        return
    if packaged.exists() and not Path(own).exists():
        mapping["prompts"] = {**prompts, "path": str(packaged)}


def _explain(root: Node, mapping: Any, detail: ErrorDetails, problems: Problems) -> None:
    path: list[str | int] = []
    value: Any = mapping
    part: Any
    for part in detail["loc"]:
        keys = range(len(value)) if isinstance(value, list) else value
        if not isinstance(value, list | dict) or part not in keys:
            break  # a missing key, or a union's own tag
        value = value[part]
        path.append(part)
    missing = detail["loc"][len(path) :]
    name, node = dotted(path), node_at(root, path)
    if detail["type"] == "extra_forbidden":
        problems.add(path, unknown_setting(root, [str(part) for part in path]))
    elif detail["type"] == "missing" and missing and isinstance(missing[0], str):
        problems.add([*path, *missing], f"{dotted([*path, *missing])} is missing")
    elif detail["type"] in ("value_error", "assertion_error"):
        reason = str(detail["ctx"]["error"])
        problems.add([*path, reason], reason if name in reason else f"{name}: {reason}")
    elif detail["type"] == "finite_number":
        problems.add(path, f"{name}={shown(value)} is not finite")
    elif node is None:
        problems.add(path, f"{name}={shown(value)}: {detail['msg']}")
    else:
        rule = describe(root, node) + _hint(node, value)
        problems.add(path, f"{name}={shown(value)} is not {rule}")


def _hint(node: Node, value: Any) -> str:
    choices = node.get("enum", [])
    close = nearest(value, map(str, choices)) if isinstance(value, str) else None
    if close:
        return f"; did you mean {close}?"
    is_scalar = isinstance(value, int | float) and not isinstance(value, bool)
    return "; put it in quotes" if node.get("type") == "string" and is_scalar else ""


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Scalar]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flatten(item, f"{prefix}{key}.")
        elif isinstance(item, list):
            yield prefix + key, json.dumps(item, ensure_ascii=False)
        elif item is not None:
            yield prefix + key, item
