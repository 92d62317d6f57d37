"""What a run was asked for: its target in words, reward by reward, and as a formula."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.spec import ENTRY_KEYS
from rlalign.report.card import weight_shown
from rlalign.report.page.record import RunRecord, as_number

STEP = 0.1  # of a reward: what it is worth is said of a difference that it commonly has


@dataclass(frozen=True)
class Asked:
    """One reward's part."""

    name: str
    kind: str
    settings: str
    weight: str
    words: str


def beta_of(record: RunRecord) -> float | None:
    """What a nat costs in the end: with kl.target it is steered."""
    logged = [as_number(row.get("kl/coef")) for row in record.metrics]
    known = [beta for beta in logged if beta is not None]
    return known[-1] if known else as_number(record.setting("kl.coef"))


def formula_of(record: RunRecord) -> tuple[str, list[str]]:
    """The target's formula, and where each of its numbers comes from; empty where none is noted."""
    target = record.about.get("target")
    formula = target.get("formula") if isinstance(target, Mapping) else None
    lines = str(formula).split("\n") if isinstance(formula, str) else [""]
    return lines[0], list(dict.fromkeys(line.strip() for line in lines[1:]))


def in_words(record: RunRecord) -> str:
    """The whole of it as a sentence or two."""
    name, beta = record.setting("model.name", "the model"), beta_of(record)
    temperature = as_number(record.setting("sampling.temperature"))
    longest = as_number(record.setting("sampling.max_new_tokens"))
    how = [] if temperature is None else [f"at temperature {temperature:g}"]
    how += [] if longest is None else [f"at most {longest:g} tokens long"]
    reference = f"{name} ({', '.join(how)})" if how else str(name)
    if beta is None:
        return f"Start from {reference}, and raise the rewards below."
    if beta == 0:
        return (
            f"Start from {reference}, and reach the largest score: leaving the reference costs "
            "nothing, so no distribution is the target."
        )
    steered = as_number(record.setting("kl.target"))
    price = (
        f"A nat of KL to the reference costs {beta:.3g} of score"
        if steered is None
        else f"The price of KL is steered to keep it at {steered:g} nats, and ended at {beta:.3g} "
        "of score a nat"
    )
    return (
        f"Write as {reference} does, but prefer what the rewards like: of two responses that it "
        f"writes equally often, the one whose score is {beta:.3g} higher is to come e ≈ 2.7 times "
        f"as often. {price}."
    )


def parts(record: RunRecord) -> list[Asked]:
    """Each reward of the configuration, in its order."""
    return [part(record, name, entry) for name, entry in record.rewards.items()]


def part(record: RunRecord, name: str, entry: Mapping[str, Any]) -> Asked:
    own = {k: v for k, v in entry.items() if k not in ENTRY_KEYS}
    usual = {"threshold": None, "scale": 1.0, "clip": None}
    own |= {k: entry[k] for k, default in usual.items() if entry.get(k, default) != default}
    settings = ", ".join(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in own.items())
    kind = str(entry.get("kind", "a Python function"))
    try:
        weight = weight_shown(entry)
    except (ValueError, TypeError, KeyError):
        weight = str(entry.get("weight"))
    return Asked(name, kind, settings, weight, meaning(record, name, entry))


def meaning(record: RunRecord, name: str, entry: Mapping[str, Any]) -> str:
    """What the reward's part in the target does to a response, in words."""
    if entry.get("hard") is True:
        return "in every response"
    moment = entry.get("moment")
    if moment is not None:
        target = record.about.get("target")
        fitted = target.get("lambdas") if isinstance(target, Mapping) else None
        found = as_number(fitted.get(name)) if isinstance(fitted, Mapping) else None
        ends = moment if isinstance(moment, list) else [moment]
        wish = f"{ends[0]} on average" if len(set(ends)) == 1 else f"{ends[0]} to {ends[-1]}"
        return wish + ("" if found is None else f"; λ = {found:.3g} was fitted for it")
    given = entry.get("weight", 1.0)
    weight = as_number(given.get("to") if isinstance(given, Mapping) else given)
    if weight == 0:
        return "only measured"
    beta = beta_of(record)
    if weight is None or not beta:
        return "more of it" if weight is None or weight > 0 else "less of it"
    factor = weight / beta * (as_number(entry.get("scale")) or 1.0)
    threshold = as_number(entry.get("threshold"))
    if threshold is not None:
        return f"{times(factor)} as often where it reaches {threshold:g}"
    return f"{times(STEP * factor)} as often where it is {STEP:g} higher"


def times(log_ratio: float) -> str:
    """`3.2 times`; a power of ten where that is no number to imagine."""
    if abs(log_ratio) < 9:
        return f"{math.exp(log_ratio):.2g} times"
    return f"10^{log_ratio / math.log(10):.0f} times"
