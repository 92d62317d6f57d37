"""The `rewards` section of a configuration: name -> kind, weight, parameters of the kind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from rewards import registry
from rewards.constraints import Moment, check_constraint, read_moment, shown_moment
from rewards.contract import LARGEST, RewardConfigError, brief
from rewards.isolation import DEADLINE
from rewards.schema import explain, typed
from rewards.spec import ENTRY_KEYS, OPTIONS

Finite = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
OnError = Literal["raise", "skip", "value"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class _Options(TypedDict, total=False):
    weight: Annotated[
        Finite | None,
        Field(description="factor in the score; 0 makes a metric; null beside moment or hard"),
    ]
    moment: Annotated[
        Finite | tuple[Finite, Finite] | None,
        Field(
            description="in place of a weight: the mean that it shall have over the responses to a "
            "prompt and over prompts, or [low, high] for it"
        ),
    ]
    hard: Annotated[
        bool,
        Field(description="in place of a weight: every response shall have the value 1, not 0"),
    ]
    threshold: Annotated[
        Finite | None, Field(description="the value becomes 1 where it is this or more, and else 0")
    ]
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


_Ramp = TypedDict(
    "_Ramp",
    {
        "from": Annotated[Finite, Field(description="weight in the first iteration")],
        "to": Annotated[Finite, Field(description="final weight, which the target holds")],
        "iterations": Annotated[
            int, Field(ge=1, description="how many the weight takes from one to the other")
        ],
    },
)
_options, _ramp = TypeAdapter(_Options), TypeAdapter(_Ramp)
_PART_OPTIONS = ("threshold", "scale", "clip")
_COLUMN = {
    "type": "object",
    "properties": {"column": {"type": "string"}},
    "required": ["column"],
    "additionalProperties": False,
    "description": "every sample's own value, from this column of the data",
}


@dataclass(frozen=True)
class Ramp:
    """A weight that goes from `start` to `end` in equal steps, and stays there."""

    start: float
    end: float
    iterations: int

    def at(self, iteration: int | None) -> float:
        """The weight in an iteration, the first being 0; None asks for the final one."""
        if iteration is None or iteration >= self.iterations:
            return self.end
        return self.start + (self.end - self.start) * iteration / self.iterations


@dataclass(frozen=True)
class RewardEntry:
    """One reward of a set; it adds weight * clip(scale * value) to the score.

    Under a threshold the value is first turned into 1, where it reaches it, or 0.
    """

    name: str
    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    weight: float | Ramp = 1.0
    threshold: float | None = None
    scale: float = 1.0
    clip: tuple[float, float] | None = None
    on_error: OnError = "raise"
    error_value: float | None = None
    isolate: bool = False
    deadline: float | None = None  # seconds
    moment: Moment | None = None  # of what `shaped` makes of the value; the weight is 0 then
    hard: bool = False  # so here

    @property
    def is_constraint(self) -> bool:
        return self.moment is not None or self.hard

    @property
    def is_shaped(self) -> bool:
        """Whether `shaped` changes values at all."""
        return self.threshold is not None or self.scale != 1.0 or self.clip is not None

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

    def weight_at(self, iteration: int | None) -> float:
        """The weight in an iteration, the first being 0; None asks for the final one."""
        return self.weight.at(iteration) if isinstance(self.weight, Ramp) else self.weight

    def shaped(self, value: float) -> float:
        """clip(scale * value), the value being 1 or 0 under a threshold."""
        if self.threshold is not None:
            value = float(value >= self.threshold)
        scaled = self.scale * value
        return scaled if self.clip is None else min(max(scaled, self.clip[0]), self.clip[1])

    def settings(self) -> dict[str, Any]:
        """What a configuration would hold of the entry, defaults written out."""
        weight: Any = self.weight
        if isinstance(weight, Ramp):
            weight = {"from": weight.start, "to": weight.end, "iterations": weight.iterations}
        options = {name: getattr(self, name) for name in OPTIONS}
        options["weight"] = None if self.is_constraint else weight
        options["moment"] = shown_moment(self.moment)
        return {"kind": self.kind, **self.params, **options}

    def part_settings(self) -> dict[str, Any]:
        """The same of a part, which has no weight and fails as its combination says."""
        return {"kind": self.kind, **self.params} | {n: vars(self)[n] for n in _PART_OPTIONS}


def parse_entries(section: Mapping[str, Any]) -> list[RewardEntry]:
    """The entries of a configuration's `rewards`, checked; entries that are null are removed."""
    return [_parse(name, entry) for name, entry in section.items() if entry is not None]


def parse_parts(name: str, parts: Mapping[str, Any]) -> list[RewardEntry]:
    """The parts of the combination `name` as entries of their own, NAME.parts.PART, checked."""
    entries = [
        _parse_part(f"{name}.parts", part, entry)
        for part, entry in parts.items()
        if entry is not None
    ]
    if not entries:
        raise RewardConfigError(f"rewards.{name}.parts={brief(parts)} holds no part; name one")
    return entries


def check_names(names: Sequence[str], where: str = "rewards") -> None:
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            hint = "; YAML reads it as true or false: quote it" if isinstance(name, bool) else ""
            raise RewardConfigError(
                f"{where}.{typed(name)}: a reward's name is letters, digits, _ and -, a letter "
                f"first{hint}"
            )
        if names.count(name) > 1:
            raise RewardConfigError(f"{where}.{name} is there twice; rename one")


def _parse(name: str, entry: Any) -> RewardEntry:
    check_names([name])
    return _read(name, entry)


def _parse_part(above: str, name: str, entry: Any) -> RewardEntry:
    check_names([name], f"rewards.{above}")
    where = f"rewards.{above}.{name}"
    for key in sorted(set(OPTIONS) - set(_PART_OPTIONS)):
        if isinstance(entry, Mapping) and key in entry:
            raise RewardConfigError(
                f"{where}.{key}={brief(entry[key])} belongs to the combination; a part takes "
                f"{', '.join(_PART_OPTIONS)}"
            )
    return _read(f"{above}.{name}", entry)


def _read(name: str, entry: Any) -> RewardEntry:
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
    options = _read_options(entry, where)
    check_constraint(where, entry, options, spec.bounds)
    if options.get("moment") is not None or options.get("hard"):
        options["weight"] = 0.0
    params = {key: value for key, value in entry.items() if key not in ENTRY_KEYS}
    checked = registry.check_params(spec.kind, params, where)
    if spec.joins:
        parts = parse_parts(name, checked["parts"])
        checked["parts"] = {p.name.rpartition(".")[2]: p.part_settings() for p in parts}
    return RewardEntry(name, kind, checked, **options)


def _read_options(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = {key: entry[key] for key in _Options.__annotations__ if key in entry}
    ramp = given.pop("weight") if isinstance(given.get("weight"), Mapping) else None
    try:
        options: dict[str, Any] = dict(_options.validate_python(given))
    except ValidationError as error:
        raise RewardConfigError("\n".join(explain(error, given, where))) from error
    options["moment"] = read_moment(options.get("moment"))
    if options.get("weight", 1.0) is None:
        del options["weight"]
    clip = options.get("clip")
    if clip is not None and clip[0] > clip[1]:
        raise RewardConfigError(f"{where}.clip={list(clip)} must be [low, high]")
    if options.get("isolate") and options.get("deadline") is None:
        options["deadline"] = DEADLINE
    return options if ramp is None else options | {"weight": _read_ramp(ramp, f"{where}.weight")}


def _read_ramp(given: Mapping[str, Any], where: str) -> Ramp:
    if given.keys() != _Ramp.__annotations__.keys():
        raise RewardConfigError(
            f"{where}={brief(given)} must be a number, or hold from, to and iterations"
        )
    try:
        checked = _ramp.validate_python(given)
    except ValidationError as error:
        raise RewardConfigError("\n".join(explain(error, given, where))) from error
    return Ramp(checked["from"], checked["to"], checked["iterations"])


def entries_json_schema() -> dict[str, Any]:
    """The JSON Schema of a `rewards` section: each entry is one of the kinds."""
    options = options_json_schema()["properties"]
    part_options = {name: options[name] for name in _PART_OPTIONS}
    null, kinds = {"type": "null"}, registry.kinds()
    return {
        "type": "object",
        "additionalProperties": {"oneOf": [null, *(_open_schema(k, options) for k in kinds)]},
        "$defs": {
            "part": {
                "$anchor": "part",
                "oneOf": [null, *(_open_schema(k, part_options) for k in kinds)],
            }
        },
    }


def entry_json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of one kind's entry with values of its own, none from a column."""
    return _with_options(registry.json_schema(kind), kind, options_json_schema()["properties"])


def options_json_schema() -> dict[str, Any]:
    """The JSON Schema of what an entry of any kind takes beside the kind's own parameters."""
    schema = _options.json_schema()
    for option in fields(RewardEntry):
        if option.name in OPTIONS:
            schema["properties"][option.name]["default"] = option.default
    weight = schema["properties"]["weight"]
    schema["properties"]["weight"] = _or(weight, {**_ramp.json_schema(), "title": "A schedule"})
    return schema


def _open_schema(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A kind's entry, each parameter of which may come from a column."""
    schema = registry.json_schema(kind)
    named = schema.get("properties", {})
    if registry.get(kind).joins:
        named["parts"]["additionalProperties"] = {"$ref": "#part"}
    else:
        schema["properties"] = {name: _or(node, _COLUMN) for name, node in named.items()}
    return _with_options(schema, kind, options)


def _with_options(schema: dict[str, Any], kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    schema["properties"] = {"kind": {"const": kind}, **options, **schema.get("properties", {})}
    schema["required"] = ["kind", *schema.get("required", [])]
    return schema


def _or(node: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Either of two schemas, with the first one's description and default."""
    about = {key: node[key] for key in ("title", "description", "default") if key in node}
    return {"anyOf": [{k: v for k, v in node.items() if k not in about}, dict(other)], **about}
