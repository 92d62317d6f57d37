"""Runs as `rlalign eval` leaves them, put together for the tests of `rlalign compare`."""

import json
import re
from pathlib import Path
from typing import Any

from rlalign.compare import Measured


def known(value: float, half: float = 0.1) -> dict[str, Any]:
    return {"value": value, "se": half / 1.96, "low": value - half, "high": value + half}


NONE = {"value": None, "se": None, "low": None, "high": None, "note": "refused"}


def feature(role: str, policy: dict, reference: dict, target: dict, wish=None) -> dict[str, Any]:
    means = {"policy": policy, "reference": reference, "target": target}
    return {"role": role, "kind": "k", "wish": wish} | means


def support(**changes: Any) -> dict[str, Any]:
    good = {"ess": 80.0, "pareto_k": 0.2, "threshold": 0.6, "is_whole": False, "refusal": ""}
    return good | changes


def content(distance: float = 0.5, **changes: Any) -> dict[str, Any]:
    """What `rlalign eval` writes, the distances all the same."""
    both = {"policy": known(distance), "reference": known(3.0)}
    texts = {
        "texts": 100, "distinct_1": 0.2, "distinct_2": 0.5, "distinct_3": 0.8,
        "self_bleu_5_words": 0.1, "self_bleu_5_characters": 0.8,
        "perplexity_under_reference": 20.0, "length": 10.0, "length_std": 1.0, "unfinished": 0.0,
    }  # fmt: skip
    return {
        "format": 2,
        "reference_model": "tiny",
        "measured": "runs/x",
        "method": "dpg",
        "prompts": 2,
        "prompts_hash": "p",
        "samples": 100,
        "seed": 0,
        "dtype": "float32",
        "held_out": True,
        "target": {"formula": "P_T(y|x) ∝ a(y|x)", "hash": "h", "notes": [], "lambdas": {"m": 2}},
        "features": {
            "asked": feature("moment", known(0.5), known(0.1), known(0.5), [0.5, 0.5]),
            "kept": feature("metric", known(0.3), known(0.3), known(0.32)),
            "lost": feature("judge", known(0.1, 0.05), known(0.6, 0.05), known(0.6, 0.05)),
            # The target itself moves it, and the policy with it.
            "moved": feature("metric", known(0.9, 0.05), known(0.2, 0.05), known(0.9, 0.05)),
        },
        "to_target": {name: both for name in ("forward_kl", "reverse_kl", "tv", "js")},
        "to_reference": {
            "kl_policy_reference": known(distance),
            "kl_reference_policy": known(distance),
        },
        "support": {
            "ess": 80.0,
            "pareto_k": 0.2,
            "threshold": 0.6,
            "is_whole": False,
            "refusal": "",
        },
        "log_z": {"lower": known(-1.0), "upper": known(-0.9), "exact_samples": 9},
        "texts": {"policy": texts | {"distinct_2": 0.4, "unfinished": 0.25}, "reference": texts},
        "witnesses": {
            "too_often": [{"prompt": "p", "response": "again", "log_ratio": 2.0}],
            "too_seldom": [{"prompt": "p", "response": "never", "log_ratio": -3.0}],
        },
        "policy": {"eval/score": 2.0, "eval/score_se": 0.5},
        "reference": {"eval/score": 1.0, "eval/score_se": None},
    } | changes


def run(label: str, distance: float = 0.5, **changes: Any) -> Measured:
    samples = [
        {"prompt": "p", "response": f"{by} of {label}", "drawn_by": by}
        for by in ("policy", "reference")
    ]
    metrics = [{"iteration": i, "kl/ref": 0.1 * i, "reward/asked": 0.1 * i} for i in range(5)]
    return Measured(label, content(distance, **changes), samples, metrics)


def hostile_run(text: str) -> Measured:
    """A run in which `text` stands wherever there is text."""
    plain = run(text)
    samples = [{"prompt": text, "response": text, "drawn_by": "policy"}]
    witness = [{"prompt": text, "response": text, "log_ratio": None}]
    everything = plain.content | {
        "reference_model": text,
        "measured": text,
        "method": text,
        "target": {"formula": text, "hash": "h", "notes": [text], "lambdas": {text: 1.0}},
        "features": {
            text: plain.content["features"]["lost"],
            f"{text} 2": plain.content["features"]["asked"],
        },
        "witnesses": {"too_often": witness},
        "support": support(ess=0.0, pareto_k=None, refusal=text),
        "log_z": {"lower": known(1.0), "upper": NONE | {"note": f"{text} 3"}},
    }
    return Measured(text, everything, samples, [])


def written(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "eval.json").write_text(json.dumps(content(**changes)))
    return folder


def section_of(page: str, title: str) -> str:
    return next(part for part in page.split("<section>") if part.startswith(f"<h2>{title}</h2>"))


def row_of(page: str, title: str, start: str) -> str:
    """The row of a section's table that begins with `start`."""
    rows = re.findall(r"<tr>.*?</tr>", section_of(page, title))
    return next(row for row in rows if row.startswith(f"<tr><td>{start}</td>"))
