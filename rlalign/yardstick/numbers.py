"""A yardstick as JSON, and the samples behind it."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlalign.evaluate import summarise
from rlalign.files import write_atomically
from rlalign.yardstick.drawing import DRAWN_BY, Row
from rlalign.yardstick.estimators import Estimate
from rlalign.yardstick.measured import Yardstick

FORMAT = 2


def as_json(found: Yardstick, about: Mapping[str, Any]) -> dict[str, Any]:
    """What `eval.json` holds; `about` says what was measured. Divergences are in nats."""
    evidence, target = found.drawn.evidence, found.target
    names = [entry.name for entry in target.entries]
    content: dict[str, Any] = plain(
        {
            "format": FORMAT,
            **about,
            "samples": int(evidence.is_policys.sum()),
            "prompts": evidence.prompts,
            "prompts_hash": prompts_hash(found.drawn.rows),
            "target": {
                "formula": str(target),
                "notes": list(found.notes),
                **target.state_dict(),
                "beta": target.beta,
            },
            "features": {
                name: {
                    "role": feature.role,
                    "kind": feature.kind,
                    "wish": feature.wish,
                    "shaped": feature.is_shaped,
                    **{of: shown(each) for of, each in feature.means.items()},
                }
                for name, feature in found.features.items()
            },
            "to_reference": {name: shown(each) for name, each in found.to_reference.items()},
            "to_target": {
                name: {of: shown(each) for of, each in both.items()}
                for name, both in found.to_target.items()
            },
            "support": asdict(found.support),
            "log_z": {
                "lower": shown(found.log_z.lower),
                "upper": shown(found.log_z.upper),
                "exact_samples": found.log_z.exact,
                "samples_of_each_estimate": found.log_z.samples,
            },
            "texts": {of: dict(numbers) for of, numbers in found.texts.items()},
            "witnesses": {kind: list(rows) for kind, rows in found.witnesses.items()},
            # What the run's own evaluations log, of these samples.
            **{of: summarise(rows_of(found, of), names, target.beta) for of in DRAWN_BY},
        }
    )
    return content


def prompts_hash(rows: Iterable[Row]) -> str:
    """sha256 of the prompts, and of what the rewards read of their data, in any order."""
    told = {json.dumps([row["prompt"], row.get("columns")], sort_keys=True) for row in rows}
    return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()


def rows_of(found: Yardstick, of: str) -> list[Row]:
    """What the policy or its reference drew; `kl` is of that which drew it, to the reference."""
    rows = [row for row in found.drawn.rows if row["drawn_by"] == of]
    return rows if of == "policy" else [{**row, "kl": 0.0} for row in rows]


def shown(estimate: Estimate) -> dict[str, Any]:
    """value, se, low and high (95%); and a note, where there is one."""
    low, high = estimate.interval or (None, None)
    noted = {"note": estimate.note} if estimate.note else {}
    return {"value": estimate.value, "se": estimate.se, "low": low, "high": high, **noted}


def plain(value: Any) -> Any:
    """With null in place of what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """A line a sample: enough to compute every number of the yardstick again."""
    lines = (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) for row in rows)
    write_atomically(path, "".join(f"{line}\n" for line in lines))
