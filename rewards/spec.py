"""One kind of reward: positional parameters are data, keyword-only ones configuration."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, NotRequired, cast, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, with_config
from pydantic.errors import PydanticUserError
from typing_extensions import TypedDict

from rewards.contract import ReadsColumns, Reward, RewardConfigError

# These belong to the entry around a reward's parameters, or to what the registry keeps beside them.
OPTIONS = (
    *("weight", "threshold", "scale", "clip"),
    *("on_error", "error_value", "isolate", "deadline"),
    *("moment", "hard"),
)
ENTRY_KEYS = ("kind", *OPTIONS)
RESERVED = (*ENTRY_KEYS, "data")
Bounds = tuple[float, float]
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_NAMED = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True)
class Signature:
    data: Mapping[str, bool]  # positional name -> whether it has a default
    takes_all: bool  # every column is handed over: plain functions with **kwargs, combinations
    annotations: Mapping[str, Any]  # keyword-only name -> type
    defaults: Mapping[str, Any]

    @property
    def required(self) -> list[str]:
        return [name for name in self.annotations if name not in self.defaults]

    @property
    def needs(self) -> frozenset[str]:
        """The columns that must be there."""
        return frozenset(name for name, optional in self.data.items() if not optional)


@dataclass(frozen=True, eq=False)
class RewardSpec:
    """One kind of reward; `build` gives a callable."""

    kind: str
    target: Callable[..., Any]  # a function, or a class whose instances are called
    signature: Signature
    bounds: Bounds | None
    example: Mapping[str, Any] | None  # parameters, and `data` for the columns that it reads
    cache: bool  # false where the same text may get another value
    joins: bool = False  # a combination: `target` makes one number of its parts'

    @property
    def source(self) -> str:
        return source_of(self.target)

    @property
    def doc(self) -> str:
        target = inspect.unwrap(self.target)
        if not (inspect.isfunction(target) or inspect.isclass(target)):
            return ""  # an object's docstring is its class's
        return inspect.cleandoc(target.__doc__ or "")

    @property
    def is_stateful(self) -> bool:
        """Whether it is a class of the `Stateful` protocol."""
        return _defines(self.target, "state_dict") and _defines(self.target, "load_state_dict")

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """Validates those parameters that it is given, whether or not the required ones are there.

        Unlike a model, a TypedDict has no names that parameters could hide.
        """
        fields = {name: NotRequired[type_] for name, type_ in self.signature.annotations.items()}
        made = TypedDict("Parameters", fields)  # type: ignore[misc]
        with_config(ConfigDict(extra="forbid"))(made)
        try:
            return TypeAdapter(made)
        except PydanticUserError as error:
            raise RewardConfigError(
                f"reward '{self.kind}' ({self.source}) has a parameter whose type cannot be "
                f"checked: {error.message}"
            ) from error

    def build(self, params: Mapping[str, Any]) -> Reward:
        """The callable with its configuration filled in; `params` come from `check_params`."""
        if inspect.isclass(self.target):
            return cast(Reward, self.target(**params))
        return partial(self.target, **params) if params else self.target


def column_of(value: object) -> str | None:
    """NAME of a parameter's `{column: NAME}`; None where it is a value that holds for all."""
    if isinstance(value, Mapping) and value.keys() == {"column"}:
        name = value["column"]
        return name if isinstance(name, str) else None
    return None


def source_of(target: Callable[..., Any]) -> str:
    """`file:line` of a function or class, relative to the working directory or to its package."""
    target = inspect.unwrap(target)
    try:
        file = inspect.getsourcefile(target)
        line = inspect.getsourcelines(target)[1]
    except (OSError, TypeError):
        code = getattr(target, "__code__", None)  # a function typed at a prompt has no file
        return f"{code.co_filename}:{code.co_firstlineno}" if code else "unknown place"
    path = Path(file or "unknown").resolve()
    for base in (Path.cwd(), Path(__file__).resolve().parent.parent):
        if path.is_relative_to(base) and ".venv" not in path.relative_to(base).parts:
            return f"{path.relative_to(base)}:{line}"
    return f"{path}:{line}"


def read(target: Callable[..., Any]) -> Signature:
    """The signature of a function or class that is to be registered; refuses what is unclear."""
    if not inspect.isclass(target):
        plain = _read_parameters(target, _parameters(target), _hints(target), target.__name__)
        _require_data(target, plain)
        return plain
    config = _read_parameters(
        target, _parameters(target.__init__)[1:], _hints(target.__init__), "__init__"
    )
    if config.data:
        raise RewardConfigError(
            f"{target.__name__}.__init__ ({source_of(target)}) has the positional parameter "
            f"'{next(iter(config.data))}'; configuration is keyword-only: put `*` before it"
        )
    if not inspect.isfunction(target.__dict__.get("__call__") or getattr(target, "__call__", None)):  # noqa: B004
        raise RewardConfigError(f"{target.__name__} ({source_of(target)}) has no __call__ method")
    for one, other in (("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")):
        if _defines(target, one) and not _defines(target, other):
            raise RewardConfigError(
                f"{target.__name__} ({source_of(target)}) has {one} and no {other}: a state that "
                f"is kept must be read back; write {other} too, or remove {one}"
            )
    call = target.__call__
    parameters = _parameters(call)[1:]
    if issubclass(target, ReadsColumns):  # its settings name what `**columns` holds
        parameters = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    data = _read_parameters(target, parameters, _hints(call), "__call__")
    if data.annotations:
        raise RewardConfigError(
            f"{target.__name__}.__call__ ({source_of(target)}) has the keyword-only parameter "
            f"'{next(iter(data.annotations))}'; configuration belongs to __init__"
        )
    _require_data(target, data)
    return Signature(data.data, False, config.annotations, config.defaults)


def _defines(target: Any, method: str) -> bool:
    """Whether a class has the method of its own; a module's in torch is about its weights."""
    classes = target.__mro__ if inspect.isclass(target) else ()
    owner = next((each for each in classes if method in vars(each)), None)
    return owner is not None and not owner.__module__.startswith("torch.")


def read_plain(function: Callable[..., Any]) -> Signature:
    """The signature of a plain callable in TRL's convention; `**kwargs` gets every column."""
    kinds = inspect.Parameter
    data, takes_all = {}, False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is kinds.VAR_KEYWORD:
            takes_all = True
        elif parameter.kind is _POSITIONAL:
            data[parameter.name] = parameter.default is not kinds.empty
        elif parameter.kind is not _NAMED or parameter.default is kinds.empty:
            raise RewardConfigError(
                f"the reward function {_name(function)} ({source_of(function)}) needs "
                f"'{parameter.name}', which is no column of the data; give it a value with "
                "functools.partial, or decorate the function with @reward and name it in the "
                "configuration"
            )
    signature = Signature(data, takes_all, {}, {})
    _require_data(function, signature)
    return signature


def _require_data(target: Callable[..., Any], signature: Signature) -> None:
    if not signature.data and not signature.takes_all:
        raise RewardConfigError(
            f"{_name(target)} ({source_of(target)}) reads no data; give it the parameter "
            "`completions: list[str]`"
        )


def type_name(annotation: Any) -> str:
    """A type as one would write it: `list[str]`, `int | None`, `Literal['any', 'all']`."""
    plain = _strip(annotation)
    if isinstance(plain, type) and not get_args(plain):
        return plain.__name__
    return str(plain).replace("typing.", "").replace("NoneType", "None")


def takes_string_list(annotation: Any) -> bool:
    """Whether a lone string must be meant as a one-item list."""
    members = _members(annotation)
    lists = any(get_origin(m) is list and _strip(get_args(m)[0]) is str for m in members)
    return lists and str not in members


def _members(annotation: Any) -> tuple[Any, ...]:
    plain = _strip(annotation)
    union = get_origin(plain) in (typing.Union, types.UnionType)
    return tuple(_strip(member) for member in get_args(plain)) if union else (plain,)


def _strip(annotation: Any) -> Any:
    """The type without `Annotated`, at every depth."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _strip(args[0])
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_strip(a) for a in args)]  # noqa: UP007
    if origin in (list, tuple, dict, set):
        return origin[tuple(_strip(a) for a in args)]
    return annotation


def _read_parameters(
    target: Any, parameters: list[inspect.Parameter], hints: Mapping[str, Any], what: str
) -> Signature:
    where = f"{target.__name__} ({source_of(target)})"
    data: dict[str, bool] = {}
    annotations: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for parameter in parameters:
        name, empty = parameter.name, inspect.Parameter.empty
        if parameter.kind not in (_POSITIONAL, _NAMED):
            shown = str(parameter).split(":")[0]
            raise RewardConfigError(
                f"{where}: {what} takes '{shown}'; name every parameter, so that a misspelt "
                "one is found"
            )
        if name in RESERVED:
            raise RewardConfigError(
                f"{where}: the parameter name '{name}' is reserved, as are "
                f"{', '.join(other for other in RESERVED if other != name)}"
            )
        if parameter.kind is _POSITIONAL:
            data[name] = parameter.default is not empty
            continue
        if name not in hints:
            raise RewardConfigError(
                f"{where}: parameter '{name}' has no annotation; its type is the schema"
            )
        annotations[name] = hints[name]
        if parameter.default is not empty:
            defaults[name] = parameter.default
    return Signature(data, False, annotations, defaults)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    if function is object.__init__:
        return [inspect.Parameter("self", _POSITIONAL)]
    return list(inspect.signature(function).parameters.values())


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    if function is object.__init__:
        return {}
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise RewardConfigError(
            f"{function.__qualname__} ({source_of(function)}): the annotation names something "
            f"unknown: {error}"
        ) from error


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
