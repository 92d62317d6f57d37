"""Time this project, TRL's trainers, and what the machine could do: `make bench`.

Rows are written to benchmarks/results/DATE.json as they come; the same command goes on where it was
stopped. The tables stand beside it as .md, the bars as .png.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import machine, picture, plan, runner, tables
from benchmarks.plan import Clockwork, Options
from benchmarks.settings import GRPO, OURS, PPO, ROOT, TRL_PPO, Job
from benchmarks.store import Store

NAMES = {"rlalign": OURS, "ppo": PPO, "grpo": GRPO}


def main(argv: Sequence[str] | None = None) -> int:
    own = parser().parse_args(argv)
    options = options_of(own)
    store = Store(own.out)
    store.started(machine.describe())
    print(headline(store.runs[-1]))
    measure(store, own.only, options, 1e9 if own.full else 60 * own.minutes)
    made = tables.all_tables(store.rows, store.runs[-1]["has_bfloat16"])
    print("\n\n".join(["", *map(tables.text, made)]))
    page = "\n\n".join([headline(store.runs[-1]), *map(tables.markdown, made)])
    own.out.with_suffix(".md").write_text(page + "\n", encoding="utf-8")
    if own.markdown:
        print("\n" + page)
    picture.draw(store.of("systems"), own.out.with_suffix(".png"))
    print(f"\n{own.out} (.md, .png)")
    return 1 if any(row["status"] == "failed" for row in store.rows) else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--only", type=words, default=list(plan.TABLES), metavar="TABLE,...",
        help=f"of {', '.join(plan.TABLES)}; default: all")  # fmt: skip
    add("--full", action="store_true", help="every setting and three seeds, however long it takes")
    add("--quick", action="store_true", help="a tiny model and few rows: does everything run?")
    add(
        "--minutes",
        type=float,
        default=60,
        help="what would end later is left out, unless --full; 60",
    )
    add("--model", default=None, help="an embedded model's name (default: smollm2-135m)")
    add(
        "--threads",
        type=int,
        default=len_cores(),
        help="of each row, over all its processes; default: the cores",
    )
    add("--dtypes", type=words, default=None, metavar="DTYPE,...",
        help="float32, bfloat16; default: those that the processor has units for")  # fmt: skip
    add("--iterations", type=int, default=None,
        help="of each row, the first not counted; 3, or 6 with --full")  # fmt: skip
    add(
        "--systems",
        type=words,
        default=list(NAMES),
        metavar="NAME,...",
        help=f"of {', '.join(NAMES)}; default: all",
    )
    add("--techniques", type=words, default=[], metavar="NAME,...", help="ablations; default: all")
    add(
        "--out",
        type=Path,
        default=None,
        help="the results file; rows that it has are kept; default: results/DATE.json",
    )
    add("--markdown", action="store_true", help="print the tables as Markdown, too")
    return parser


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def len_cores() -> int:
    from rlalign.cores import allowed_cores

    return allowed_cores()


def options_of(own: argparse.Namespace) -> Options:
    """The command line, checked; also fills in the name of the results file."""
    refuse_unknown("--only", own.only, plan.TABLES)
    refuse_unknown("--systems", own.systems, NAMES)
    if "ppo" in own.systems and not (TRL_PPO / "trl").is_dir():
        sys.exit(f"TRL 1.12.0 is not in {TRL_PPO.relative_to(ROOT)}: `make bench` puts it there")
    if own.out is None:
        name = f"quick-{date.today()}" if own.quick else str(date.today())
        own.out = ROOT / "benchmarks" / "results" / f"{name}.json"
    has_bfloat16 = machine.has_bfloat16()
    dtypes = own.dtypes or (["float32", "bfloat16"] if has_bfloat16 else ["float32"])
    if own.dtypes is None and not has_bfloat16:
        print(
            "bfloat16: no bf16 units here, so no such rows (--dtypes=float32,bfloat16 forces them)"
        )
    return Options(
        model=own.model or ("glass-tiny" if own.quick else "smollm2-135m"),
        threads=own.threads,
        dtypes=dtypes,
        iterations=own.iterations or (2 if own.quick else 6 if own.full else 3),
        full=own.full,
        quick=own.quick,
        systems=[NAMES[name] for name in own.systems],
        techniques=own.techniques,
        has_bfloat16=has_bfloat16,
    )


def refuse_unknown(flag: str, given: Sequence[str], known: Sequence[str] | dict[str, str]) -> None:
    for name in given:
        if name not in known:
            sys.exit(f"{flag}={name} is unknown; there are {', '.join(known)}")


def flop_per_second(threads: int) -> float:
    """Of a product that keeps every thread busy: what the guesses of time start from."""
    import torch

    from benchmarks.floors import seconds

    torch.set_num_threads(threads)
    a = torch.rand(1024, 1024)
    return float(2 * 1024**3 / seconds(lambda: a @ a))


def measure(store: Store, names: Sequence[str], options: Options, budget: float) -> None:
    """Run what is missing, table by table, as far as the time goes."""
    start, clockwork = time.perf_counter(), Clockwork(flop_per_second(options.threads))
    wanted = [job for table in plan.TABLES if table in names for job in plan.jobs(table, options)]
    todo = [job for job in wanted if not store.has(job)]
    ends = table_ends(names, budget)
    print(f"{len(todo)} of {len(wanted)} rows to do")
    for i, job in enumerate(todo):
        spent = time.perf_counter() - start
        room = ends[job.table] - spent
        job = plan.with_cut_off(job, own_seconds(job, store), room)
        guess = clockwork.guess(job)
        if guess > room and not options.quick:
            print(f"  {label(job)}: left out, about {guess / 60:.0f} min; --full has it")
            continue
        rest = min(plan.left(todo[i:], clockwork), max(budget - spent, 0)) / 60
        print(f"  {label(job)} ... (about {rest:.0f} min to do in all)", flush=True)
        row = store.add(job, runner.run(job, limit=max(budget - spent, 60)))
        report(row)
        if row["status"] == "done" and row["iterations"]:
            clockwork.learn(job, row["wall"])


def table_ends(names: Sequence[str], budget: float) -> dict[str, float]:
    """Seconds after which no row of a table may end; shares grow where tables are left out."""
    last = max(plan.UNTIL[name] for name in names)
    return {name: budget * plan.UNTIL[name] / last for name in names}


def own_seconds(job: Job, store: Store) -> float | None:
    """What ours took for the same race, reached or not; None before it has run."""
    for row in store.of("score"):
        if row["name"] == job.name and row["setting"]["system"] == OURS and row["iterations"]:
            return float((tables.reached(row) or row["iterations"][-1])["spent"])
    return None


def label(job: Job) -> str:
    again = f" #{job.repeat + 1}" if job.repeat else ""
    return f"{job.table}: {job.name}, {job.setting.system}{again}"


def report(row: dict[str, Any]) -> None:
    print(f"    {row['status']} in {row['wall']:.0f} s, {len(row['iterations'])} iterations")
    if row["status"] == "failed":
        print("    " + row["error"].strip().replace("\n", "\n    "))


def headline(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    flags = " ".join(run["flags"]) or "no flags of note"
    return (
        f"{run['accelerator'] or run['cpu']} ({flags}), {run['cores']} cores, "
        f"{run['memory_gb']} GB, load average {run['load_average']} before; {versions}; "
        f"commit {run['commit']}"
    )


if __name__ == "__main__":
    sys.exit(main())
