"""Show finished runs to the audit: how near each warning came to its line, and which were given.

    python experiments/replay_audit.py runs/seed-0 runs/seed-1 [--audit.judges=judge ...]

Reads config.yaml and samples.jsonl of each run; settings behind the runs replace the run's own.
A level of 1 is a warning's line.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rewards.compose import parse_entries
from rlalign.algorithms.ppo import PPORun
from rlalign.audit import Audit
from rlalign.config import load_config


def main() -> None:
    runs = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    settings = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    for run in runs:
        levels, warned = replay(Path(run), settings)
        print(run)
        for name, (level, iteration) in sorted(levels.items()):
            print(f"  {name:<20} at most {level:5.2f}, after iteration {iteration}")
        print("\n".join(f"  {line}" for line in warned) or "  no warning")


def replay(run: Path, settings: list[str]) -> tuple[dict[str, tuple[float, int]], list[str]]:
    """By warning the highest level and its iteration; the warnings that were given."""
    config = load_config(PPORun, settings, run / "config.yaml")
    batches: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["split"] == "train":
            batches[row["iteration"]].append(row)
    audit = Audit(config.audit, parse_entries(config.rewards), config.train.samples)
    highest: dict[str, tuple[float, int]] = {}
    for iteration, rows in sorted(batches.items()):
        audit.look(rows, iteration)
        for finding in audit.findings(rows):
            known = highest.get(finding.name, (finding.level, iteration))
            highest[finding.name] = max(known, (finding.level, iteration), key=lambda x: x[0])
    return highest, [str(each) for each in audit.warned]


if __name__ == "__main__":
    main()
