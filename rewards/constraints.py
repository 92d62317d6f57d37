"""What a target may ask of a reward beside a weight: a wished mean, or to hold always."""

from collections.abc import Mapping
from typing import Any

from rewards.contract import RewardConfigError, brief
from rewards.spec import Bounds

Moment = tuple[float, float]  # the ends of the interval that the mean shall lie in; may be equal


def read_moment(given: float | Moment | None) -> Moment | None:
    """A single number is an interval without width."""
    return (given, given) if isinstance(given, int | float) else given


def shown_moment(moment: Moment | None) -> float | list[float] | None:
    """As a configuration writes it."""
    if moment is None or moment[0] != moment[1]:
        return None if moment is None else list(moment)
    return moment[0]


def shaped_range(bounds: Bounds | None, options: Mapping[str, Any]) -> Bounds | None:
    """The range of clip(scale * value) for values within `bounds`; None where it has no ends."""
    scale, clip = options.get("scale", 1.0), options.get("clip")
    if options.get("threshold") is not None:
        bounds = (0.0, 1.0)
    if bounds is None:
        return clip
    low, high = sorted(scale * bound for bound in bounds)
    if clip is None:
        return low, high
    return min(max(low, clip[0]), clip[1]), min(max(high, clip[0]), clip[1])


def check_constraint(
    where: str, given: Mapping[str, Any], options: Mapping[str, Any], bounds: Bounds | None
) -> None:
    """Refuse a `moment` or `hard` that no distribution can have, or that is said twice.

    `bounds` are those of the reward's kind, None where it states none.
    """
    moment, hard = options.get("moment"), options.get("hard", False)
    if moment is None and not hard:
        return
    wish = f"{where}.moment={brief(shown_moment(moment))}" if moment else f"{where}.hard=true"
    if moment is not None and hard:
        raise RewardConfigError(
            f"{wish} and {where}.hard=true ask for two things of one reward; keep one of them"
        )
    if given.get("weight") is not None:
        raise RewardConfigError(
            f"{wish} beside {where}.weight={brief(given['weight'])}: a moment fits its own weight, "
            "and what is hard needs none; remove the weight (weight: null), or the other"
        )
    if options.get("on_error", "raise") == "skip":
        raise RewardConfigError(
            f"{wish} with {where}.on_error=skip: every sample needs a value; use on_error: raise, "
            "or value with error_value"
        )
    if moment is None:
        _check_hard(where, options, bounds)
    else:
        _check_moment(where, wish, moment, shaped_range(bounds, options))


def _check_hard(where: str, options: Mapping[str, Any], bounds: Bounds | None) -> None:
    if options.get("scale", 1.0) != 1.0 or options.get("clip") is not None:
        raise RewardConfigError(
            f"{where}.hard=true: a response holds it or not, so scale and clip mean nothing; "
            f"remove them, or say by {where}.threshold from which value on it holds"
        )
    if options.get("threshold") is None and bounds != (0.0, 1.0):
        states = f"between {bounds[0]:g} and {bounds[1]:g}" if bounds else "without stated bounds"
        raise RewardConfigError(
            f"{where}.hard=true needs a value of 0 or 1, and this kind's values are {states}; set "
            f"{where}.threshold, from which on it holds"
        )


def _check_moment(where: str, wish: str, moment: Moment, values: Bounds | None) -> None:
    low, high = moment
    if low > high:
        raise RewardConfigError(
            f"{wish} must be one number or [low, high]; write [{high:g}, {low:g}]"
        )
    if values is None:
        return
    least, most = (end + 0.0 for end in values)  # so that -0 is 0
    span = f"{least:g} to {most:g}"
    if high < least or low > most:
        raise RewardConfigError(
            f"{wish} is outside of the reward's range, {span}, and so is no mean of it; wish for "
            "one inside"
        )
    if low >= most or high <= least:
        raise RewardConfigError(
            f"{wish} is the end of the reward's range, {span}: only a distribution on that value "
            f"has such a mean; use {where}.hard: true (with a threshold, where it is not 0 or 1), "
            "or a wish inside the range"
        )
    if low < least or high > most:
        raise RewardConfigError(
            f"{wish} goes beyond the reward's range, {span}, where no mean is; write "
            f"[{max(low, least):g}, {min(high, most):g}]"
        )
