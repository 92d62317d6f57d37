"""Checking a reward's parameters against its signature, and showing them."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rewards.contract import RewardConfigError, brief
from rewards.spec import OPTIONS, Bounds, RewardSpec, column_of, takes_string_list, type_name

_WANTS_TEXT = ("string_type", "literal_error", "list_type")


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    default: str | None  # as Python writes it; None where it is required
    doc: str


@dataclass(frozen=True)
class Description:
    """What `rlalign rewards show` prints; `str()` is the whole page."""

    kind: str
    doc: str
    parameters: tuple[Parameter, ...]
    data: tuple[str, ...]  # the columns that it reads
    joins: bool  # a combination, which reads what its parts read
    bounds: Bounds | None
    source: str
    example: Mapping[str, Any] | None

    @property
    def summary(self) -> str:
        return self.doc.split("\n", 1)[0]

    def __str__(self) -> str:
        low_high = f"{self.bounds[0]:g} to {self.bounds[1]:g}" if self.bounds else "not stated"
        lines = [f"{self.kind}   {self.source}", "", self.doc or "(no docstring)", ""]
        reads = "what its parts read" if self.joins else ", ".join(self.data)
        lines += [f"bounds: {low_high}", f"reads: {reads}", "parameters:"]
        for p in self.parameters or ():
            default = "required" if p.default is None else f"default {p.default}"
            lines.append(f"  {p.name}: {p.type}   ({default}){f'   {p.doc}' if p.doc else ''}")
        if not self.parameters:
            lines.append("  none")
        elif not self.joins:
            lines.append("  each may be {column: NAME}: every sample's own, from the data's column")
        if self.example is not None:
            lines.append(
                f"example: {json.dumps({'kind': self.kind, **self.example}, default=repr)}"
            )
        return "\n".join(lines)


def check_params(spec: RewardSpec, params: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The parameters checked and completed; what comes from a column is left as it is."""
    annotations = spec.signature.annotations
    for name in params:
        if name not in annotations:
            hint = nearest(str(name), [*annotations, *OPTIONS], "it takes")
            raise RewardConfigError(
                f"{where}.{typed(name)} is not a parameter of {spec.kind}; {hint}"
            )
    for name in spec.signature.required:
        if name not in params:
            wanted = type_name(annotations[name])
            raise RewardConfigError(f"{where}.{name} is missing; {spec.kind} needs it ({wanted})")
    columns = {name: value for name, value in params.items() if column_of(value) is not None}
    for name, value in columns.items():
        if column_of(value) == "completions":
            raise RewardConfigError(
                f"{where}.{name}={brief(value)} is known only once a completion has ended; name "
                "another column"
            )
    given = {name: value for name, value in params.items() if name not in columns}
    return {**spec.signature.defaults, **check_values(spec, given, where), **columns}


def check_values(spec: RewardSpec, params: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Some of a kind's parameters, checked and coerced."""
    annotations = spec.signature.annotations
    given = {name: _wrap(value, annotations[name]) for name, value in params.items()}
    try:
        checked: dict[str, Any] = spec.adapter.validate_python(given)
    except ValidationError as error:
        raise RewardConfigError("\n".join(explain(error, given, where))) from error
    return checked


def explain(error: ValidationError, given: Mapping[str, Any], where: str) -> Iterator[str]:
    """A line for each setting at fault: the setting as typed, its value, the rule."""
    seen = set()
    for detail in error.errors():
        path, value = _walk(given, detail["loc"])
        if path in seen:  # a union reports each of its members
            continue
        seen.add(path)
        setting, rule = f"{where}{path}={brief(value)}", detail["msg"]
        if detail["type"] == "value_error":
            yield f"{setting} {detail['ctx']['error']}"
        elif isinstance(value, bool) and detail["type"] in _WANTS_TEXT:
            yield f"{setting} is not text; YAML makes yes, no, on and off true or false: quote it"
        elif detail["type"] == "string_type":
            yield f"{setting} is not text; quote it"
        else:
            yield f"{setting}: {rule[0].lower()}{rule[1:]}"


def json_schema(spec: RewardSpec) -> dict[str, Any]:
    schema = spec.adapter.json_schema()
    schema.update(title=spec.kind, description=spec.doc)
    if spec.signature.required:
        schema["required"] = spec.signature.required
    for name, default in spec.signature.defaults.items():
        schema["properties"][name]["default"] = default
    return schema


def describe(spec: RewardSpec) -> Description:
    signature = spec.signature
    parameters = tuple(
        Parameter(
            name,
            type_name(annotation),
            repr(signature.defaults[name]) if name in signature.defaults else None,
            _doc(annotation),
        )
        for name, annotation in signature.annotations.items()
    )
    return Description(
        spec.kind,
        spec.doc,
        parameters,
        tuple(signature.data),
        spec.joins,
        spec.bounds,
        spec.source,
        spec.example,
    )


def nearest(word: str, known: Iterable[str], label: str) -> str:
    """`did you mean 'x'?`, or the list of what is known where nothing is close."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"{label}: {', '.join(names) or 'none'}"


def typed(name: object) -> str:
    """A name as it stands in a message of one line: as typed, unless that holds a line break."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def _wrap(value: Any, annotation: Any) -> Any:
    return [value] if isinstance(value, str) and takes_string_list(annotation) else value


def _walk(given: Any, loc: tuple[int | str, ...]) -> tuple[str, Any]:
    """The path as a user writes it, and the value there; a union's own tags are no part of it."""
    path, value = "", given
    for part in loc:
        if isinstance(value, Mapping) and part in value:
            path, value = f"{path}.{typed(part)}", value[part]
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            path, value = f"{path}[{part}]", value[part]
    return path, value


def _doc(annotation: Any) -> str:
    if get_origin(annotation) is not Annotated:
        return ""
    notes = [note for note in get_args(annotation)[1:] if isinstance(note, FieldInfo)]
    return next((note.description for note in notes if note.description), "")
