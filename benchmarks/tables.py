"""Rows of results as the tables that are read: plain text for a terminal, Markdown for docs."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from benchmarks.plan import CUT_OFF, TARGET
from benchmarks.settings import OURS, SYSTEMS

Row = dict[str, Any]
WIDTH = 118  # of a note in a terminal
PHASES = ("generation", "scoring", "update")


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def text(table: Table) -> str:
    """Columns as wide as what is in them, words to the left, numbers to the right.

    A line of one cell is a heading within the table and may be wider than its column.
    """
    lines = [line for line in [table.head, *table.body] if len(line) > 1]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    left = [all(not is_number(line[i]) for line in lines[1:]) for i in range(len(widths))]

    def aligned(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [aligned(line) if len(line) > 1 else line[0] for line in table.body]
    notes = [textwrap.fill(note, WIDTH) for note in table.notes]
    return "\n".join([table.title, "", aligned(table.head), rule, *body, "", *notes])


def markdown(table: Table) -> str:
    width = len(table.head)
    full = [[*line, *[""] * (width - len(line))] for line in table.body]
    lines = [table.head, ["---"] * width, *full]
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([f"### {table.title}", "", *rows, "", *(f"- {note}" for note in table.notes)])


def is_number(cell: str) -> bool:
    return cell.strip().lstrip(">")[:1].isdigit()


# -- numbers of a row ------------------------------------------------------------------------------


def counted(row: Row) -> list[Row]:
    """The iterations that count: all but the first, which also warms up."""
    return row["iterations"][1:] or row["iterations"]


def middle(row: Row, name: str) -> float:
    return median(x.get(name, 0.0) for x in counted(row))


def spread(row: Row, name: str = "total") -> str:
    """Least and most of the counted iterations."""
    values = [x[name] for x in counted(row)]
    return f"{number(min(values))}-{number(max(values))}"


def number(x: float) -> str:
    """Three digits, no exponent."""
    if x >= 100:
        return f"{x:.0f}"
    return f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def groups(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


# -- the tables ------------------------------------------------------------------------------------


def systems(rows: Sequence[Row], has_bfloat16: bool = True) -> Table:
    head = ["system", "gen s", "score s", "upd s", "total s", "min-max", "tok/s", "gen t/s",
            "peak GB", "ours x", "x floor", "load"]  # fmt: skip
    body: list[list[str]] = []
    for name, group in groups(rows, lambda r: r["name"]).items():
        own = [r for r in group if r["setting"]["system"] == OURS and r["iterations"]]
        base = fmean(middle(r, "total") for r in own) if own else None
        body += [[name], *(system_line(row, base) for row in group)]
        in_bfloat16 = name.replace("float32", "bfloat16")
        if not has_bfloat16 and all(row["name"] != in_bfloat16 for row in rows):
            body.append([f"{in_bfloat16}: no bf16 units"])
    return Table("Seconds of an iteration, by system and phase", head, body, SYSTEM_NOTES)


SYSTEM_NOTES = (
    "Medians without the first iteration. 'score' is rewards, reference, old log-probabilities "
    "and values.",
    "'ours x': total over the mean of ours before and after. 'tok/s' counts real tokens, "
    "through EOS, over the whole iteration; 'gen t/s' over its generation.",
    "TRL's PPO collects garbage twice an iteration; in brackets its total and ratio without that.",
    "TRL's PPO has a critic that is a separate full model; GRPO has none and draws 4 responses a "
    "prompt.",
    "In bfloat16 TRL holds whole models that learn in it; ours keeps their weights in float32.",
    "'load' is the machine's load average before the row.",
)


def system_line(row: Row, base: float | None) -> list[str]:
    setting, name = row["setting"], row["setting"]["system"]
    if not row["iterations"]:
        return [f"  {name}: {row['status']}"]
    phases = [middle(row, phase) for phase in PHASES]
    total, gc, tokens = (middle(row, x) for x in ("total", "gc", "tokens"))
    floors = row.get("floors")
    if setting["system"] == OURS:
        name += " (again)" if row["repeat"] else ""

    def without_gc(whole: float, scale: float = 1.0) -> str:
        return number(whole / scale) + (f" ({number((whole - gc) / scale)})" if gc else "")

    return [
        f"  {name}",
        *map(number, phases),
        without_gc(total),
        spread(row),
        number(tokens / total),
        number(tokens / phases[0]),
        peak(row),
        without_gc(total, base) if base else "",
        number(total / floors["total"]) if floors else "",
        f"{row['load_average']:.1f}",
    ]


def peak(row: Row) -> str:
    return f"{max(x['peak_mb'] for x in row['iterations']) / 1024:.2f}"


def floor_table(rows: Sequence[Row]) -> Table:
    """Ours phase by phase over its floor, and the rates that the floors rest on."""
    head = ["setting", "phase", "measured s", "floor s", "x floor"]
    body, notes = [], []
    for row in rows:
        floors = row.get("floors")
        if not floors or not row["iterations"]:
            continue
        for phase in (*PHASES, "total"):
            measured, floor = middle(row, phase), floors[phase]
            body.append([row["name"], phase, *map(number, (measured, floor, measured / floor))])
        rates = ", ".join(
            f"{x} {floors[f'{x}_gflop_s']:.0f}" for x in ("decode", "forward", "update")
        )
        notes.append(
            f"{row['name']}: a decode step {1000 * floors['decode_step']:.1f} ms, its weights read "
            f"alone {1000 * floors['weight_read']:.1f} ms; GFLOP/s in {rates}."
        )
    note = "The floor is the matrix products alone, from the same process and threads."
    return Table("Ours over its floor", head, body, [note, *notes])


def growth(rows: Sequence[Row]) -> Table:
    head = ["what", "gen s", "score s", "upd s", "total s", "min-max", "tok/s", "peak GB", "load"]
    body = []
    for row in rows:
        if not row["iterations"]:
            body.append([f"{row['name']}: {row['status']}"])
            continue
        numbers = [number(middle(row, p)) for p in (*PHASES, "total")]
        rate = number(middle(row, "tokens") / middle(row, "total"))
        load = f"{row['load_average']:.1f}"
        body.append([row["name"], *numbers, spread(row), rate, peak(row), load])
    base = rows[0]["setting"] if rows else {}
    note = (
        f"From {base.get('model')}, prompts of {base.get('prompt_length')}, responses of "
        f"{base.get('response_length')}, {base.get('samples')} samples, 1 process; the first row "
        "is that base."
    )
    return Table("How ours grows", head, body, [note] if rows else [])


def reached(row: Row) -> Row | None:
    """The iteration at which the score was reached, if it was."""
    setting, found = row["setting"], row["iterations"]
    window = setting["window"]
    for i in range(window, len(found) + 1):
        if sum(x["score"] for x in found[i - window : i]) / window >= setting["target"]:
            return found[i - 1]
    return None


def score(rows: Sequence[Row]) -> Table:
    head = ["seed", "system", "start", "end", "iterations", "samples", "seconds", "ours x"]
    body = []
    for name, group in groups(rows, lambda r: r["name"]).items():
        own = next((reached(r) for r in group if r["setting"]["system"] == OURS), None)
        order = {s: i for i, s in enumerate(SYSTEMS)}
        for row in sorted(group, key=lambda r: order[r["setting"]["system"]]):
            body.append([name, *score_line(row, own)])
    target = rows[0]["setting"]["target"] if rows else TARGET
    window = rows[0]["setting"]["window"] if rows else 0
    return Table(
        f"Time until {target:g} different words of twenty are used",
        head,
        body,
        [
            f"Mean of the last {window} iterations' responses. A system is stopped at {CUT_OFF} "
            "times our seconds. Model loading is not counted.",
            "Learning rates and batches: benchmarks/settings.py says which, and why.",
        ],
    )


def score_line(row: Row, own: Row | None) -> list[str]:
    found, samples = row["iterations"], row["setting"]["samples"]
    system = row["setting"]["system"]
    if not found:
        return [f"{system}: {row['status']}", *[""] * 6]
    window = found[-row["setting"]["window"] :]
    ends = [f"{found[0]['score']:.2f}", f"{sum(x['score'] for x in window) / len(window):.2f}"]
    at = reached(row)
    if at is not None:
        ratio = number(at["spent"] / own["spent"]) if own else ""
        counts = [str(at["iteration"]), str(at["iteration"] * samples), number(at["spent"])]
        return [system, *ends, *counts, ratio]
    last = found[-1]
    return [system, *ends, str(last["iteration"]), f">{last['iteration'] * samples}",
            f">{number(last['spent'])}", cut_off_mark(last["spent"], own)]  # fmt: skip


def cut_off_mark(spent: float, own: Row | None) -> str:
    """'>5x' for a system that had its whole time; what it had, for one that was stopped before."""
    if own is None:
        return "not reached"
    return f">{CUT_OFF}x" if spent >= CUT_OFF * own["spent"] else f">{spent / own['spent']:.1f}x"


def ablation(rows: Sequence[Row]) -> Table:
    from benchmarks.ablation import TECHNIQUES

    head = ["technique", "what", "phase", "off s", "on s", "off/on", "on min-max", "load"]
    body = []
    for row in rows:
        what, phase = TECHNIQUES[row["name"]].what, TECHNIQUES[row["name"]].phase
        rounds = [x for x in row["iterations"] if x["iteration"] > 1] or row["iterations"]
        arms = {a: [x["seconds"] for x in rounds if x["arm"] == a] for a in ("on", "off")}
        if not all(arms.values()):
            body.append([f"{row['name']}: {row['status']}"])
            continue
        on, off = median(arms["on"]), median(arms["off"])
        ends = f"{number(min(arms['on']))}-{number(max(arms['on']))}"
        load = f"{row['load_average']:.1f}"
        cells = [number(off), number(on), f"{off / on:.2f}", ends, load]
        body.append([row["name"], what, phase, *cells])
    note = "Medians of interleaved rounds on the same responses; 'learning' is all but generation."
    return Table("What each technique is worth", head, body, [note])


def all_tables(rows: Sequence[Row], has_bfloat16: bool = True) -> list[Table]:
    """Every table that has a row."""
    makers: list[tuple[str, Callable[[Sequence[Row]], Table]]] = [
        ("systems", lambda rows: systems(rows, has_bfloat16)),
        ("systems", floor_table),
        ("score", score),
        ("ablation", ablation),
        ("growth", growth),
    ]
    of = groups(rows, lambda r: r["table"])
    made = [make(of[name]) for name, make in makers if name in of]
    return [table for table in made if table.body]
