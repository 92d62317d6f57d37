"""What `rlalign compare` reads in its runs: what compares, which is the least, what moved."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from rlalign.report.yardstick_table import DIVERGENCES, TO_REFERENCE, number

WATCHED = ("judge", "metric")  # the roles of what nobody asked for
TITLES = DIVERGENCES | TO_REFERENCE
Estimate = Mapping[str, Any]
UNKNOWN: Estimate = {"value": None, "low": None, "high": None}


class Run(Protocol):
    """What the page knows of a run."""

    @property
    def label(self) -> str: ...
    @property
    def content(self) -> Mapping[str, Any]: ...
    @property
    def samples(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def metrics(self) -> Sequence[Mapping[str, Any]]: ...


def settings(runs: Sequence[Run]) -> list[Run]:
    """The first run of each target, reference and prompts: their distances compare only within."""
    found: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        content = run.content
        key = content["target"]["hash"], content.get("reference_model"), content["prompts_hash"]
        found.setdefault(key, run)
    return list(found.values())


def all_features(runs: Sequence[Run]) -> dict[str, Mapping[str, Any]]:
    """Every feature of any run, as the first that has it describes it."""
    found: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for name, feature in run.content["features"].items():
            found.setdefault(name, feature)
    return found


def mean(run: Run, name: str, of: str) -> Estimate:
    """A feature's mean under policy, reference or target; unknown where the run has no such."""
    found: Estimate = run.content["features"].get(name, {}).get(of, UNKNOWN)
    return found


def distance(run: Run, name: str, of: str) -> Estimate:
    """A divergence of policy or reference; the reference's to itself is left out."""
    found: Estimate
    if name in TO_REFERENCE:
        found = run.content["to_reference"][name] if of == "policy" else UNKNOWN
    else:
        found = run.content["to_target"][name][of]
    return found


def text_number(run: Run, of: str, key: str) -> float | None:
    found: float | None = run.content["texts"][of][key]
    return found


def drawn(run: Run, by: str, prompt: str) -> list[str]:
    """The responses to a prompt, in the order in which they were drawn."""
    rows = (row for row in run.samples if row["drawn_by"] == by and row["prompt"] == prompt)
    return [str(row["response"]) for row in rows]


def clear_least(estimates: Sequence[Estimate]) -> int | None:
    """The index of the smallest, where its interval lies below all others'."""
    known = [(i, e) for i, e in enumerate(estimates) if e["value"] is not None]
    if len(known) < 2 or any(e["low"] is None for _, e in known):
        return None
    best, least = min(known, key=lambda each: float(each[1]["high"]))
    return best if all(least["high"] < e["low"] for i, e in known if i != best) else None


def moved(run: Run, name: str) -> str:
    """An arrow where the mean of what nobody asked for left the target's interval; else nothing.

    Where the target's own mean is unknown, the reference's stands for it.
    """
    if run.content["features"].get(name, {}).get("role") not in WATCHED:
        return ""
    own, wanted = mean(run, name, "policy"), mean(run, name, "target")
    if wanted["low"] is None:
        wanted = mean(run, name, "reference")
    if own["low"] is None or wanted["low"] is None:
        return ""
    return " ↑" if own["low"] > wanted["high"] else " ↓" if own["high"] < wanted["low"] else ""


def titled(what: str, run: Run, firsts: Sequence[Run]) -> str:
    """`reference`; and of which run, where there are several."""
    return what if len(firsts) == 1 else f"{what} of {run.label}"


def change(after: float | None, before: float | None) -> str:
    """In percent; as it is where there is no percent of it."""
    if after is None or not before:
        return number(after)
    return f"{round(100 * (after / before - 1)):+d}%"


def notes(run: Run) -> Iterator[str]:
    """Why a number of the run is not given, or what it is of."""
    content, refusal = run.content, run.content["support"]["refusal"]
    if refusal:
        yield f"no distance to P_T: {refusal}"
    numbers = {title: distance(run, name, "policy") for name, title in TITLES.items()}
    numbers |= {f"log Z, {side} bound": content["log_z"][side] for side in ("lower", "upper")}
    for title, estimate in numbers.items():
        note = estimate.get("note", "")
        if note and note != refusal:  # the refusal is each number's note
            yield f"{title}: {note}"
