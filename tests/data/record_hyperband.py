"""Writes hyperband.json: which runs W&B's own engine stops, for the test of our rule.

    pip install --no-deps --target /tmp/engine sweeps==0.3.0 jsonref==1.1.0
    PYTHONPATH=/tmp/engine python tests/data/record_hyperband.py

It is no dependency of the tests, since it wants numpy below 2 (and works with 2 all the same).
"""

import json
import random
from pathlib import Path

import sweeps

RULES = [
    {"min_iter": 1, "eta": 2},
    {"min_iter": 3},
    {"min_iter": 2, "eta": 1.5},
    {"max_iter": 27, "s": 2},
    {"max_iter": 20, "s": 5, "eta": 2},
    {"max_iter": 12, "s": 1, "eta": 4},
]


def cases() -> list[dict]:
    draw = random.Random(0)
    found = []
    for number, rule in enumerate(RULES * 8):
        goal = ("minimize", "maximize")[number % 2]
        runs = []
        for name in range(draw.randint(1, 7)):
            length = draw.randint(0, 28)
            values = [round(draw.gauss(name / 3, 1), 2) for _ in range(length)]
            runs.append({"is_running": draw.random() < 0.7, "values": values})
        early = rule | {"type": "hyperband", "strict": number % 4 < 2}
        found.append({"goal": goal, "early_terminate": early, "runs": runs})
    return found


def stopped(case: dict) -> list[int]:
    runs = [
        sweeps.SweepRun(
            name=str(number),
            state="running" if run["is_running"] else "finished",
            history=[{"score": value} for value in run["values"]],
        )
        for number, run in enumerate(case["runs"])
    ]
    config = {
        "method": "random",
        "metric": {"name": "score", "goal": case["goal"]},
        "parameters": {"x": {"min": 0.0, "max": 1.0}},
        "early_terminate": case["early_terminate"],
    }
    return [int(run.name) for run in sweeps.stop_runs(config, runs)]


if __name__ == "__main__":
    rows = [case | {"stopped": stopped(case)} for case in cases()]
    lines = ",\n".join(json.dumps(row) for row in rows)
    Path(__file__).with_suffix("").with_name("hyperband.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(rows)} cases, {sum(len(row['stopped']) for row in rows)} runs stopped")
