"""What a sweep file's parameters may be, and how Optuna draws them.

Optuna draws a number or one of some choices; `value` makes of it what W&B would have sent.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from rlalign.problems import ConfigError, shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

TAILS = (1e-6, 1 - 1e-6)  # quantiles of a normal distribution beyond which nothing is drawn


@dataclass(frozen=True)
class Choice:
    """One of some values, which are of any kind; the only one is a constant."""

    values: tuple[Any, ...]

    @property
    def keys(self) -> list[Any]:
        """What stands for each value in the study, which holds no lists and mappings."""
        return [json.dumps(v) if isinstance(v, list | dict) else v for v in self.values]

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.keys)

    def value(self, drawn: Any) -> Any:
        return self.values[self.keys.index(drawn)]


@dataclass(frozen=True)
class Range:
    """A number between two others, evenly or evenly in its logarithm."""

    low: float
    high: float
    is_whole: bool = False
    is_log: bool = False
    q: float | None = None  # rounded to its multiples

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high))
        return FloatDistribution(self.low, self.high, log=self.is_log)

    def value(self, drawn: Any) -> Any:
        return _rounded(drawn, self.q)


@dataclass(frozen=True)
class Normal:
    """A normal number, or one whose logarithm is; the study holds its quantile."""

    mu: float
    sigma: float
    is_log: bool = False
    q: float | None = None

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution

        return FloatDistribution(*TAILS)

    def value(self, drawn: Any) -> Any:
        x = NormalDist(self.mu, self.sigma).inv_cdf(drawn)
        return _rounded(math.exp(x) if self.is_log else x, self.q)


Parameter = Choice | Range | Normal


def _rounded(x: float, q: float | None) -> float:
    return x if q is None else round(x / q) * q


# -- reading ---------------------------------------------------------------------------------------

Spec = Mapping[str, Any]


def _whole(spec: Spec) -> Range:
    return Range(spec["min"], spec["max"], is_whole=True)


def _uniform(spec: Spec) -> Range:
    return Range(spec["min"], spec["max"], q=spec.get("q"))


def _log_uniform(spec: Spec) -> Range:
    low, high = math.exp(spec["min"]), math.exp(spec["max"])
    return Range(low, high, is_log=True, q=spec.get("q"))


def _log_uniform_values(spec: Spec) -> Range:
    return Range(spec["min"], spec["max"], is_log=True, q=spec.get("q"))


def _normal(spec: Spec) -> Normal:
    return Normal(spec["mu"], spec["sigma"], q=spec.get("q"))


def _log_normal(spec: Spec) -> Normal:
    return Normal(spec["mu"], spec["sigma"], is_log=True, q=spec.get("q"))


# A distribution's name in W&B -> how it is made; one with `q_` before it is rounded to multiples.
NUMBERS: dict[str, Callable[[Spec], Range | Normal]] = {
    "int_uniform": _whole,
    "uniform": _uniform,
    "log_uniform": _log_uniform,
    "log_uniform_values": _log_uniform_values,
    "normal": _normal,
    "log_normal": _log_normal,
}
DEFAULTS = {"q": 1, "mu": 0.0, "sigma": 1.0}  # W&B's
KINDS = ("constant", "categorical", *NUMBERS, *(f"q_{n}" for n in NUMBERS if n != "int_uniform"))


def read_parameter(name: str, spec: object) -> Parameter:
    """A parameter as a sweep file states it; ConfigError with key, value, rule and fix."""
    where = f"parameters.{name}"
    if not isinstance(spec, Mapping) or not spec:
        raise ConfigError(
            f"{where}={shown(spec)} must be a mapping, such as {{values: [0.1, 0.2]}}"
        )
    if "parameters" in spec:
        raise ConfigError(
            f"{where}.parameters: nested parameters cannot be had; write each out, "
            f"{name}.KEY: {{values: [...]}}"
        )
    kind = spec.get("distribution", _kind_of(spec))
    if kind not in KINDS:
        raise ConfigError(
            f"{where}.distribution={shown(kind)} cannot be had under --local; "
            f"there are {', '.join(KINDS)}"
        )
    wanted = _keys_of(kind)
    if unknown := sorted(set(map(str, spec)) - wanted - {"distribution"}):
        raise ConfigError(
            f"{where}.{unknown[0]}={shown(spec.get(unknown[0]))} is not for {kind}, which takes "
            f"{', '.join(sorted(wanted))}; remove it, or state another distribution"
        )
    spec = {key: DEFAULTS[key] for key in sorted(wanted & DEFAULTS.keys())} | dict(spec)
    if missing := sorted(wanted - set(spec)):
        raise ConfigError(f"{where}.{missing[0]} is missing: {kind} needs it; add it")
    if kind in ("constant", "categorical"):
        return _choice(where, spec)
    return _numbers(where, kind, spec)


def _kind_of(spec: Spec) -> str:
    """The distribution that W&B takes where none is stated."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical"
    ends = [spec.get("min"), spec.get("max")]
    return "int_uniform" if all(type(end) is int for end in ends) else "uniform"


def _keys_of(kind: str) -> set[str]:
    if kind in ("constant", "categorical"):
        return {"value"} if kind == "constant" else {"values"}
    ends = {"mu", "sigma"} if kind.endswith("normal") else {"min", "max"}
    return ends | ({"q"} if kind.startswith("q_") else set())


def _choice(where: str, spec: Spec) -> Choice:
    values = [spec["value"]] if "value" in spec else spec["values"]
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}.values={shown(values)} must be a list of at least one value")
    for value in values:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{where}: {shown(value)} cannot be kept in the study ({error}); use numbers, "
                "text, true, false, null, and lists of them"
            ) from error
    keys = Choice(tuple(values)).keys
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise ConfigError(
                f"{where}.values: {shown(values[index])} equals another of them; state it once"
            )
    return Choice(tuple(values))


def _numbers(where: str, kind: str, spec: Spec) -> Range | Normal:
    for key in _keys_of(kind):
        number = spec[key]
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number):
            raise ConfigError(f"{where}.{key}={shown(number)} must be a number, as {kind} asks")
        if kind == "int_uniform" and number != int(number):
            raise ConfigError(f"{where}.{key}={number} must be whole; or use uniform")
        if key in ("q", "sigma") and number <= 0:
            raise ConfigError(f"{where}.{key}={number} must be above 0")
    if "min" in spec and spec["min"] >= spec["max"]:
        raise ConfigError(
            f"{where}.min={spec['min']} must be below max={spec['max']}; a constant is "
            f"{{value: {spec['max']}}}"
        )
    if kind.endswith("log_uniform_values") and spec["min"] <= 0:
        raise ConfigError(f"{where}.min={spec['min']} must be above 0 to have a logarithm")
    try:
        found = NUMBERS[kind.removeprefix("q_")](spec)
        ends = (found.low, found.high) if isinstance(found, Range) else map(found.value, TAILS)
        if not all(end > 0 for end in ends if found.is_log):
            raise OverflowError
    except OverflowError as error:
        raise ConfigError(
            f"{where}={shown(dict(spec))}: {kind} takes exponents of e, and these lead beyond "
            "what a number can hold; log_uniform_values takes the numbers themselves"
        ) from error
    return found
