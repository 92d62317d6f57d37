"""The `rewards` section of a configuration: name -> kind, weight, parameters of the kind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from rewards import registry
from rewards.contract import RewardConfigError
from rewards.schema import explain
from rewards.spec import ENTRY_KEYS

Finite = Annotated[float, Field(allow_inf_nan=False)]
OnError = Literal["raise", "skip"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NOT_YET = {
    "moment": "needs targets, which this version does not have yet; use weight",
    "hard": "needs targets, which this version does not have yet; use weight",
    "isolate": "needs worker processes, which this version does not have yet; remove it",
}


class _Options(TypedDict, total=False):
    weight: Annotated[Finite, Field(description="factor in the score; 0 makes a metric")]
    scale: Annotated[Finite, Field(description="factor on the value, before clip")]
    clip: Annotated[tuple[Finite, Finite] | None, Field(description="bounds of the scaled value")]
    on_error: Annotated[
        OnError, Field(description="skip: a sample that fails adds nothing and is counted")
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
    for name, default in (("weight", 1.0), ("scale", 1.0), ("clip", None), ("on_error", "raise")):
        schema["properties"][name]["default"] = default
    return schema


def _kind_schema(kind: str) -> dict[str, Any]:
    schema, shared = registry.json_schema(kind), options_json_schema()["properties"]
    schema["properties"] = {"kind": {"const": kind}, **shared, **schema.get("properties", {})}
    schema["required"] = ["kind", *schema.get("required", [])]
    return schema
