"""sha256 of all that a run leaves, but for what the clock says."""

import hashlib
import json
from pathlib import Path
from typing import Any

from rlalign.checkpoints.folder import newest_sound
from rlalign.files import sha256

CLOCK = ("time/", "tokens_per_second", "memory/")


def of_run(run: Path) -> dict[str, str]:
    """By name: every file of the final checkpoint and of the model, the metrics, the samples."""
    newest = newest_sound(run / "checkpoints")
    assert newest is not None
    files = [
        *newest.iterdir(),
        *(run / "model").glob("*.safetensors"),
        run / "checkpoints/best.json",
    ]
    found = {str(file.relative_to(run)): sha256(file) for file in files if file.is_file()}
    rows = [json.dumps(row, sort_keys=True) for row in metrics(run)]
    found["metrics.jsonl"] = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return found | {"samples.jsonl": sha256(run / "samples.jsonl")}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what the clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(CLOCK)} for row in rows]


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
