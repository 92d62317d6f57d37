"""Rows to track, a strict reader of what was written, and an environment without accounts."""

import json
import math
import os
from pathlib import Path

ROWS = [
    {
        "split": "train",
        "prompt": "Once <b>",
        "response": "a\nb \x1b[31m \udc80",
        "score": 1.5,
        "kl": math.nan,
        "rewards": {"space": 0.5, "women": None},
    },
    {"split": "eval", "prompt": "p", "response": "<script>alert(1)</script>", "score": 2.0},
]


def lines(path: Path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_bytes().splitlines()]


def offline(**more: str) -> dict[str, str]:
    """This environment without what would lead W&B to an account or a home."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return {**kept, "NETRC": "/nonexistent", **more}
