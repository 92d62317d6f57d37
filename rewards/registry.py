"""The rewards that can be named in a configuration: `@reward`, users' files, plug-ins."""

import hashlib
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

from rewards import schema, trl_style
from rewards.apart import Apart
from rewards.contract import RewardConfigError, described
from rewards.randomness import derived
from rewards.schema import Description, nearest
from rewards.spec import Bounds, RewardSpec, Signature, read, read_plain, source_of

Target = TypeVar("Target", bound=Callable[..., Any])
_KIND = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


_specs: dict[str, RewardSpec] = {}
_files: dict[Path, tuple[bytes, frozenset[str]]] = {}  # path -> its code, the kinds it defined


@overload
def reward(name: Target, /) -> Target: ...
@overload
def reward(
    name: str | None = None,
    /,
    *,
    bounds: Bounds | None = None,
    example: Mapping[str, Any] | None = None,
    cache: bool = True,
) -> Callable[[Target], Target]: ...
def reward(
    name: Any = None,
    /,
    *,
    bounds: Bounds | None = None,
    example: Mapping[str, Any] | None = None,
    cache: bool = True,
) -> Any:
    """Register a function or class as a kind of reward; it comes back unchanged.

    Positional parameters are data, filled by name: `prompts`, `completions`, any dataset column
    (one with a default may be missing there). Keyword-only parameters are configuration and their
    annotations its schema; a class takes them in `__init__` and data in `__call__`, and does slow
    work, such as loading a model, in a method `load()`, called once before the first batch. Where
    the settings name columns, `columns_read()` returns them and `__call__` takes `**columns`.
    `bounds` are the lowest and highest value, `example` parameters for the conformance test.
    Equal samples of a batch are computed once, except with `cache=False` and for a class with a
    state: one whose values depend on what it saw has `state_dict()`, which returns JSON, and
    `load_state_dict(state)`; checkpoints keep it.
    """
    if name is not None and not isinstance(name, str):
        return reward(None)(name)

    def register(target: Target) -> Target:
        add_spec(_spec(target, name or target.__name__, bounds, example, cache))
        return target

    return register


def trl_reward(function: Target, /, name: str | None = None) -> Target:
    """Register a function that is written for TRL as a kind; it comes back unchanged.

    Needed for what a factory made, or for another name: a reward file's own functions with
    `**kwargs` are kinds as they stand, under their names.
    """
    kind = name or str(getattr(function, "__name__", type(function).__name__))
    if not _KIND.fullmatch(kind):
        raise RewardConfigError(
            f"reward kind {kind!r} ({source_of(function)}) must be dotted names"
        )
    add_spec(trl_style.spec_of(function, kind))
    return function


def add_combination(
    kind: str, joined: Callable[[Sequence[float]], float], parts: Any, example: Mapping[str, Any]
) -> None:
    """Register a kind that makes one number of its parts'; `parts` annotates their parameter."""
    signature = Signature({}, takes_all=True, annotations={"parts": parts}, defaults={})
    add_spec(RewardSpec(kind, joined, signature, None, example, cache=False, joins=True))


def from_function(function: Callable[..., Any]) -> RewardSpec:
    """The spec of a registered or of any plain function in TRL's convention.

    A plain function is called for each of equal samples: nothing says that it is pure.
    """
    for spec in _specs.values():
        if function in (spec.target, getattr(spec.target, "__wrapped__", None)):
            return spec
    if not callable(function) or inspect.isclass(function):
        raise RewardConfigError(f"{function!r} is no reward function")
    is_for_trl = trl_style.takes_everything(function)
    if not is_for_trl:
        _refuse_async(function)
    wrapped = function.func if isinstance(function, partial) else function
    name = getattr(wrapped, "__name__", type(wrapped).__name__)
    if not _KIND.fullmatch(name):
        raise RewardConfigError(
            f"the reward function {name} ({source_of(function)}) has no name to log it under; "
            "write it with `def`"
        )
    if is_for_trl:
        return trl_style.spec_of(function, name)
    return RewardSpec(name, function, read_plain(function), None, None, cache=False)


def get(kind: str, where: str | None = None) -> RewardSpec:
    """The spec of a kind; `where` is the entry (`rewards.space`) that an error is to name."""
    if kind not in _specs:
        _load_plugins()
    if kind not in _specs:
        setting = f"{where}.kind={kind!r}" if where else f"reward kind {kind!r}"
        raise RewardConfigError(f"{setting} is unknown; {nearest(kind, kinds(), 'known kinds')}")
    return _specs[kind]


def kinds() -> list[str]:
    """Every kind that can be named, sorted: built in, from plug-ins and from loaded files."""
    _load_plugins()
    return sorted(_specs)


def check_params(
    kind: str, params: Mapping[str, Any], where: str = "rewards.name"
) -> dict[str, Any]:
    """`params` checked, coerced and completed with defaults; `where` is the entry as typed.

    A lone string becomes a one-item list where a list of strings is wanted.
    """
    return schema.check_params(get(kind, where), params, where)


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind's parameters, with defaults."""
    return schema.json_schema(get(kind))


def describe(kind: str) -> Description:
    """Docstring, parameters, bounds, source and example of a kind; `str()` of it is a page."""
    return schema.describe(get(kind))


def load_file(path: str | Path) -> str:
    """Run a user's Python file, register the rewards that it defines, and return its sha256.

    Loading it again does nothing, or replaces its rewards where the file has changed.
    """
    _load_plugins()  # first, so that a name of theirs is refused here and is none of the file's
    file = Path(path).resolve()
    try:
        code = file.read_bytes()
    except OSError as error:
        raise RewardConfigError(f"reward file '{path}' cannot be read: {error.strerror}") from error
    return load_code(file, code, path)


def load_code(file: Path, code: bytes, shown: str | Path | None = None) -> str:
    """`load_file` for code that is at hand, whatever stands in the file by now."""
    shown = shown or file
    sha256 = hashlib.sha256(code).hexdigest()
    old_code, old_kinds = _files.get(file, (None, frozenset()))
    if code == old_code:
        return sha256
    kept = {kind: _specs.pop(kind) for kind in old_kinds if kind in _specs}
    before = set(_specs)
    module = ModuleType(f"reward_file_{file.stem}_{sha256[:12]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # so that its classes pickle, its source lines are found
    try:
        # What it draws is a function of its code: no seed of a run is known yet.
        with Apart(f"reward file '{shown}'", derived(0, sha256)):
            _run_file(module, code, shown)
        _add_trl_functions(module)
        new = frozenset(_specs) - before
        if not new:
            raise RewardConfigError(
                f"reward file '{shown}' defines no reward; put @reward(\"my.name\") above a "
                "function, or write one as for TRL, with `completions` and `**kwargs`"
            )
        for kind in new:
            _ = _specs[kind].adapter  # a type that cannot be checked shows here, not in the run
    except BaseException:
        for kind in set(_specs) - before:
            del _specs[kind]
        _specs.update(kept)
        del sys.modules[module.__name__]
        raise
    _files[file] = (code, new)
    return sha256


def defined_in(path: str | Path) -> list[str]:
    """The kinds that a loaded file defines, sorted."""
    return sorted(_files[Path(path).resolve()][1])


def sha256_of(path: str | Path) -> str:
    """The hash of a loaded file's code as it was run, whatever stands in the file by now."""
    return hashlib.sha256(_files[Path(path).resolve()][0]).hexdigest()


def plugins() -> dict[str, str]:
    """The installed packages with an entry point for rewards, and their versions."""
    points = entry_points(group="rlalign.rewards")
    return {point.dist.name: point.dist.version for point in points if point.dist}


def file_of(kind: str) -> tuple[Path, bytes] | None:
    """The loaded reward file that defines a kind, and its code as it was then."""
    return next(((file, code) for file, (code, defined) in _files.items() if kind in defined), None)


def _add_trl_functions(module: ModuleType) -> None:
    """The file's own functions that are written for TRL, each as the kind of its name."""
    known = {getattr(spec.target, "__wrapped__", None) for spec in _specs.values()}
    for name, value in list(vars(module).items()):
        is_own = inspect.isfunction(value) and value.__module__ == module.__name__
        if not is_own or name.startswith("_") or value in known:
            continue
        if trl_style.takes_everything(value) and trl_style.reads_samples(value):
            add_spec(trl_style.spec_of(value, name))


def _run_file(module: ModuleType, code: bytes, shown: str | Path) -> None:
    file = str(module.__file__)
    try:
        exec(compile(code, file, "exec"), module.__dict__)
    except (RewardConfigError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        raise RewardConfigError(
            f"reward file '{shown}' is no valid Python: "
            f"{error.filename}:{error.lineno}: {error.msg}"
        ) from error
    except BaseException as error:
        raise RewardConfigError(
            f"reward file '{shown}' failed at line {_line_within(error, file)}: {described(error)}"
        ) from error


def _line_within(error: BaseException, file: str) -> int:
    lines, trace = [0], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1]


def _spec(
    target: Callable[..., Any],
    kind: str,
    bounds: Bounds | None,
    example: Mapping[str, Any] | None,
    cache: bool,
) -> RewardSpec:
    if not (inspect.isfunction(target) or inspect.isclass(target)):
        raise RewardConfigError(
            f"@reward({kind!r}) goes above a function or a class, not {target!r}"
        )
    _refuse_async(target)
    if not _KIND.fullmatch(kind):
        raise RewardConfigError(f"reward kind {kind!r} ({source_of(target)}) must be dotted names")
    if bounds is not None and not bounds[0] <= bounds[1]:
        raise RewardConfigError(
            f"reward {kind!r} ({source_of(target)}): bounds={bounds} are reversed"
        )
    return RewardSpec(kind, target, read(target), bounds, example, cache)


def _refuse_async(target: Callable[..., Any]) -> None:
    target = target.func if isinstance(target, partial) else target
    call = target if inspect.isfunction(target) else getattr(target, "__call__", None)  # noqa: B004
    if inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(call):
        name = getattr(target, "__name__", type(target).__name__)
        raise RewardConfigError(
            f"{name} ({source_of(target)}) is async; rewards are plain functions: write `def`"
        )


def add_spec(spec: RewardSpec) -> None:
    """Register a spec; a kind that is there already is refused."""
    old = _specs.get(spec.kind)
    if old is not None and not _is_rerun_cell(old.target, spec.target):
        raise RewardConfigError(
            f"reward {spec.kind!r} is defined twice: {old.source} and {spec.source}; rename one"
        )
    _specs[spec.kind] = spec


def _is_rerun_cell(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether a notebook's cell that defines a reward was run once more."""
    typed = old.__module__ == new.__module__ == "__main__" and "ipykernel" in sys.modules
    return typed and old.__qualname__ == new.__qualname__


@cache
def _load_plugins() -> None:
    for point in entry_points(group="rlalign.rewards"):
        before = set(_specs)
        try:
            with Apart(f"the reward plug-in {point.name}", derived(0, point.value)):
                point.load()
        except (Exception, SystemExit) as error:
            for kind in set(_specs) - before:
                del _specs[kind]
            package = f" of the package {point.dist.name}" if point.dist else ""
            reason = str(error) if isinstance(error, RewardConfigError) else described(error)
            warnings.warn(
                f"the reward plug-in {point.name} ({point.value}){package} was left out: {reason}",
                stacklevel=2,
            )
