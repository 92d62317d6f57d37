"""The state of rewards that have one, as JSON that comes back as it went."""

import math
from typing import Any

from rewards.contract import RewardError, brief


def plain_json(state: object, who: str) -> dict[str, Any]:
    """A copy of what `state_dict()` returned; RewardError where JSON would alter or refuse it."""
    if not isinstance(state, dict):
        raise RewardError(
            f"{who} has a state_dict() that returned {type(state).__name__} {brief(state)}; it "
            "returns a dict of JSON values"
        )
    try:
        copied = _copied(state, who, "state_dict()")
    except RecursionError as error:
        raise RewardError(f"{who} has a state_dict() that holds itself or is too deep") from error
    assert isinstance(copied, dict)
    return copied


def _copied(value: Any, who: str, where: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list):
        return [_copied(item, who, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise RewardError(f"{who}: {where} has the key {brief(key)}; JSON's are strings")
        return {key: _copied(item, who, f"{where}[{key!r}]") for key, item in value.items()}
    raise RewardError(
        f"{who}: {where} is {type(value).__name__} {brief(value)}; a state holds JSON values "
        "alone: dicts, lists, strings, finite numbers, true, false and null"
    )
