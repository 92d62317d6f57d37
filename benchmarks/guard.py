"""Has an engine or the update become slower? Ratios to the machine's own products, not seconds.

`python -m benchmarks.guard` prints them, `--record` keeps them in recorded.json under this kind of
processor. `make prove` fails where one is more than 15% above its record.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import machine, ours
from benchmarks.settings import Setting
from benchmarks.worker import now
from rlalign.trainer import Trainer

RECORDED = Path(__file__).with_name("recorded.json")
ALLOWED = 1.15  # of the recorded ratio
ROUNDS = 8  # the least of them counts: other work can only add to it
SETTING = Setting(model="smollm2-135m", threads=1, samples=16, response_length=12, epochs=1)


def kind() -> str:
    """The kind of processor that ratios are compared within."""
    described = machine.describe()
    return " ".join([described["cpu"], *described["flags"]])


def measure(setting: Setting = SETTING) -> dict[str, float]:
    """Each part's least seconds over its floor's, taken in turn in the same minutes."""
    trainers = {
        engine: ours.build(setting, {"sampling.engine": engine}) for engine in ("decode", "static")
    }
    seconds: dict[str, list[float]] = {}
    least: dict[str, list[float]] = {}
    for i in range(ROUNDS + 1):
        spent = round_of(trainers, setting)
        floor = floors_now(trainers["decode"], setting)
        if i > 0:  # the first also warms up
            for name in spent:
                seconds.setdefault(name, []).append(spent[name])
                least.setdefault(name, []).append(floor[name])
    return {name: min(seconds[name]) / min(least[name]) for name in seconds}


def round_of(trainers: dict[str, Trainer], setting: Setting) -> dict[str, float]:
    spent, rollouts = {}, {}
    for engine, trainer in trainers.items():
        start = now()
        rollouts[engine] = ours.generate(trainer, setting)
        spent[engine] = now() - start
    start = now()
    trainers["decode"].step(rollouts["decode"])  # its own: another's notes would not hold
    spent["learning"] = now() - start
    return spent


def floors_now(trainer: Trainer, setting: Setting) -> dict[str, float]:
    rollout = ours.generate(trainer, setting)
    found = ours.floors_of(setting, rollout)
    learning = found["scoring"] + found["update"]
    return {"decode": found["generation"], "static": found["generation"], "learning": learning}


def recorded() -> dict[str, dict[str, float]]:
    kept: dict[str, dict[str, float]] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep the ratios as the record")
    own = parser.parse_args()
    ratios = measure()
    before = recorded() if RECORDED.exists() else {}
    for name, ratio in ratios.items():
        was = before.get(kind(), {}).get(name)
        print(f"{name:>9} {ratio:.2f} x floor" + (f" (recorded {was:.2f})" if was else ""))
    if own.record:
        kept = before | {kind(): {name: round(ratio, 3) for name, ratio in ratios.items()}}
        RECORDED.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
