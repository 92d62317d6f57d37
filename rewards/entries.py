"""The `rewards` section of a configuration: name -> kind, weight, parameters of the kind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from rewards import registry
from rewards.contract import RewardConfigError
from rewards.isolation import DEADLINE
from rewards.schema import explain
from rewards.spec import ENTRY_KEYS, OPTIONS

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
OnError = Literal["raise", "skip", "value"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NOT_YET = {
    "moment": "needs targets, which this version does not have yet; use weight",
    "hard": "needs targets, which this version does not have yet; use weight",
}


class _Options(TypedDict, total=False):
    weight: Annotated[Finite, Field(description="factor in the score; 0 makes a metric")]
    scale: Annotated[Finite, Field(description="factor on the value, before clip")]
    clip: Annotated[tuple[Finite, Finite] | None, Field(description="bounds of the scaled value")]
    on_error: Annotated[
        OnError,
        Field(
            description="skip: a sample that fails adds nothing and is counted; value: it gets "
            "error_value and is counted"
        ),
    ]
    error_value: Annotated[
        Finite | None,
        Field(description="with on_error: value, what a sample that fails is worth"),
    ]
    isolate: Annotated[
        bool,
        Field(
            description="run the reward in a worker process, where a sample that hangs or crashes "
            "fails like one that raises"
        ),
    ]
    deadline: Annotated[
        Seconds | None,
        Field(description=f"with isolate, seconds that a call may take; null: {DEADLINE:g}"),
    ]


_options = TypeAdapter(_Options)


@dataclass(frozen=True)
class RewardEntry:
    """One reward of a set; it adds weight * clip(scale * value) to the score."""

    name: str
    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    scale: float = 1.0
    clip: tuple[float, float] | None = None
    on_error: OnError = "raise"
    error_value: float | None = None
    isolate: bool = False
    deadline: float | None = None  # seconds

    def __post_init__(self) -> None:
        where = f"rewards.{self.name}"
        if self.on_error == "value" and self.error_value is None:
            raise RewardConfigError(
                f"{where}.on_error='value' needs {where}.error_value, the value of a sample that "
                "fails"
            )
        if self.on_error != "value" and self.error_value is not None:
            raise RewardConfigError(
                f"{where}.error_value={self.error_value:g} counts only with on_error: value; set "
                "that or remove it"
            )
        if self.deadline is not None and not self.isolate:
            raise RewardConfigError(
                f"{where}.deadline={self.deadline:g} counts only with isolate: true; set that or "
                "remove it"
            )

    def clipped(self, value: float) -> float:
        """clip(scale * value)"""
        scaled = self.scale * value
        return scaled if self.clip is None else min(max(scaled, self.clip[0]), self.clip[1])


def parse_entries(section: Mapping[str, Any]) -> list[RewardEntry]:
    """The entries of a configuration's `rewards`, checked; entries that are null are removed."""
    return [_parse(name, entry) for name, entry in section.items() if entry is not None]


def check_names(names: Sequence[str]) -> None:
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            hint = "; YAML reads it as true or false: quote it" if isinstance(name, bool) else ""
            raise RewardConfigError(
                f"rewards.{name}: a reward's name is letters, digits, _ and -, a letter first{hint}"
            )
        if names.count(name) > 1:
            raise RewardConfigError(f"rewards.{name} is there twice; rename one")


def _parse(name: str, entry: Any) -> RewardEntry:
    check_names([name])
    where = f"rewards.{name}"
    if not isinstance(entry, Mapping):
        raise RewardConfigError(
            f"{where}={entry!r} must be a mapping with a kind and its parameters"
        )
    kind = entry.get("kind")
    if kind is None:
        raise RewardConfigError(f"{where}.kind is missing; kinds: {', '.join(registry.kinds())}")
    if not isinstance(kind, str):
        raise RewardConfigError(f"{where}.kind={kind!r} is not text")
    spec = registry.get(kind, where)
    for key, reason in _NOT_YET.items():
        if entry.get(key) is not None and entry[key] is not False:
            raise RewardConfigError(f"{where}.{key} {reason}")
    given = {key: entry[key] for key in _Options.__annotations__ if key in entry}
    try:
        options = _options.validate_python(given)
    except ValidationError as error:
        raise RewardConfigError("\n".join(explain(error, given, where))) from error
    clip = options.get("clip")
    if clip is not None and clip[0] > clip[1]:
        raise RewardConfigError(f"{where}.clip={list(clip)} must be [low, high]")
    if options.get("isolate") and options.get("deadline") is None:
        options["deadline"] = DEADLINE
    params = {key: value for key, value in entry.items() if key not in ENTRY_KEYS}
    return RewardEntry(name, kind, registry.check_params(spec.kind, params, where), **options)


def entries_json_schema() -> dict[str, Any]:
    """The JSON Schema of a `rewards` section: each entry is one of the kinds."""
    return {
        "type": "object",
        "additionalProperties": {
            "oneOf": [{"type": "null"}, *(_kind_schema(kind) for kind in registry.kinds())]
        },
    }


def options_json_schema() -> dict[str, Any]:
    """The JSON Schema of what an entry of any kind takes beside the kind's own parameters."""
    schema = _options.json_schema()
    for option in fields(RewardEntry):
        if option.name in OPTIONS:
            schema["properties"][option.name]["default"] = option.default
    return schema


def _kind_schema(kind: str) -> dict[str, Any]:
    schema, shared = registry.json_schema(kind), options_json_schema()["properties"]
    schema["properties"] = {"kind": {"const": kind}, **shared, **schema.get("properties", {})}
    schema["required"] = ["kind", *schema.get("required", [])]
    return schema
