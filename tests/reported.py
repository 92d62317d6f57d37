"""Runs' folders as training leaves them, put together for the tests of the report."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlalign.settings.overrides import dump_yaml

CONFIG = {
    "model": {"name": "tiny"},
    "sampling": {"temperature": 1.0, "max_new_tokens": 24},
    "rewards": {
        "rain": {"kind": "lexical.contains", "words": ["rain"], "weight": 2.0},
        "calm": {"kind": "lexical.pattern", "pattern": "calm", "weight": 0},
    },
    "kl": {"coef": 0.1, "target": None},
    "train": {"iterations": 4, "samples": 8},
}
WORDS = ["the", "rain", "fell", "on", "a", "calm", "sea", "and", "nobody", "spoke", "of", "it"]


def sample(
    chance: random.Random, iteration: int, split: str, prompt: str, response: str | None = None
) -> dict[str, Any]:
    """A row whose spans are where `rain` is."""
    text = " ".join(chance.choices(WORDS, k=8)) if response is None else response
    at = text.find("rain")
    row: dict[str, Any] = {
        "iteration": iteration,
        "split": split,
        "prompt": prompt,
        "response": text,
        "score": chance.gauss(iteration, 1.0),
        "kl": chance.gauss(0.4 * iteration, 0.1),
        "length": chance.randint(4, 24),
        "finished": chance.random() < 0.5,
        "rewards": {"rain": float(at >= 0), "calm": chance.random()},
    }
    return row | ({"spans": {"rain": [[at, at + 4, 1.0]]}} if at >= 0 else {})


def written_run(
    folder: Path,
    texts: Sequence[str] = (),
    responses: int = 8,
    iterations: int = 4,
    config: dict[str, Any] | None = None,
    **about: Any,
) -> Path:
    """A run of some iterations, evaluated at 0 and at the end; `texts` stand in for the model's."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    rows, metrics = [], []
    for step in range(iterations + 1):
        splits = ["train"] * (step > 0) + ["eval"] * (step in (0, iterations))
        means: dict[str, float] = {}
        for split in splits:
            made = []
            for i in range(responses):
                text = texts[i % len(texts)] if texts else None
                prompt = f"On day {i}" if text is None else text
                made.append(sample(chance, step, split, prompt, text))
            rows += made
            prefix = "eval/" if split == "eval" else ""
            kl = "eval/kl" if split == "eval" else "kl/ref"
            means |= {
                f"{prefix}score": sum(row["score"] for row in made) / responses,
                kl: sum(row["kl"] for row in made) / responses,
                f"{prefix}reward/rain": sum(row["rewards"]["rain"] for row in made) / responses,
                f"{prefix}reward/calm": sum(row["rewards"]["calm"] for row in made) / responses,
            }
        metrics.append({"iteration": step, "samples": step * responses, "score/std": 1.0, **means})
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "samples.jsonl", rows)
    (folder / "config.yaml").write_text(dump_yaml(config or CONFIG), encoding="utf-8")
    formula = "P_T(y|x) ∝ a(y|x) · exp( 20·rain(x, y) )\n    20 = weight 2 / β 0.1"
    run = {
        "status": "done",
        "method": "ppo",
        "command": ["python", "launch/ppo.py", "--run.name=a b"],
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "seeds": {"train.seed": 7},
        "target": {"formula": formula},
    }
    (folder / "run.json").write_text(json.dumps(run | about), encoding="utf-8")
    return folder


def write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_bytes(lines.encode("utf-8", "backslashreplace"))
