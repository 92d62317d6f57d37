"""Pairs of responses in the terminal: side by side where it is wide, else one below the other."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlalign.report.marked import listed, marked
from rlalign.report.visible import visible
from rlalign.trying.drawing import Pair, Tried

WIDE = 100  # columns from which two texts stand beside each other
WIDEST = 140
OF_A_PIPE = 200
NONE = "–"  # noqa: RUF001 - a dash is meant
GAP = 3
DOT = " · "
STYLES = {"reference": "bold", "policy": "bold cyan"}


def console() -> Console:
    """The terminal, or a pipe, which has no width to fold lines to."""
    made = Console(markup=False, highlight=False, emoji=False)
    made.width = min(made.width, WIDEST) if made.is_terminal else OF_A_PIPE
    return made


def has_colour(of: Console) -> bool:
    return of.color_system is not None and not of.no_color


def put(of: Console, what: RenderableType) -> None:
    """Print; in a pipe without the spaces that fill a terminal's lines."""
    if of.is_terminal:
        of.print(what)
        return
    with of.capture() as captured:
        of.print(what)
    of.file.write(re.sub(" +\n", "\n", captured.get()))
    of.file.flush()


def pair(given: Pair, of: Console, *, samples: int = 1, with_prompt: bool = True) -> RenderableType:
    """A prompt, and what reference and policy wrote to it."""
    lines: list[RenderableType] = []
    if with_prompt:
        lines += [Text(), Text("▸ " + broken(given.prompt), style="bold")]
    elif given.number:
        lines.append(Text())
    both = [given.reference, given.policy]
    which = f" {given.number + 1} of {samples}" if samples > 1 else ""
    coloured = has_colour(of)
    if of.width < WIDE or not of.is_terminal:
        for one in both:
            below = Group(response(one, coloured), numbers(one, of.width - 2))
            lines += [heading(one, which), Padding(below, (0, 0, 0, 2))]
        return Group(*lines)
    table = Table.grid(padding=(0, GAP, 0, 0), expand=True)
    for _ in both:
        table.add_column(ratio=1, overflow="fold")
    table.add_row(*(heading(one, which) for one in both))
    table.add_row(*(response(one, coloured) for one in both))
    table.add_row(*(numbers(one, of.width // 2 - GAP) for one in both))
    return Group(*lines, table)


def heading(one: Tried, which: str) -> Text:
    name = one.row["drawn_by"]
    return Text.assemble((name, STYLES[name]), (which, "dim"))


def response(one: Tried, coloured: bool) -> RenderableType:
    """The text with what earns or costs score in colour, or else listed below it."""
    row = one.row
    spans = [span for span in one.spans if span.credit]
    shown = marked(row["response"], spans if coloured else (), breaks=True)
    if not row["response"]:
        shown = Text("(empty)", style="dim")
    if not row["finished"]:
        shown.append(" …", style="dim")  # it was cut at the longest length
    if coloured or not spans:
        return shown
    return Group(shown, Text("credit: " + listed(row["response"], spans)))


def numbers(one: Tried, width: int) -> Text:
    """`score 2.500 · colours 1.000 · KL 3.12 · 24 tokens`, no number apart from its name."""
    row = one.row
    named = {"score": row["score"], **row["rewards"]}
    if one.by_policy:
        named["KL"] = row["kl"]
    parts = [f"{visible(name)} {number(value)}" for name, value in named.items()]
    parts.append(f"{row['length']} tokens")
    lines: list[list[str]] = [[]]
    for part in parts:
        if lines[-1] and cell_len(DOT.join([*lines[-1], part])) > width:
            lines.append([])
        lines[-1].append(part)
    shown = Text("\n".join(map(DOT.join, lines)), style="dim")
    shown.stylize("not dim bold", 0, len(parts[0]))
    return shown


def means(pairs: Sequence[Pair]) -> Table:
    """Each reward's mean over all pairs, of the reference and of the policy, and the difference."""
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="ellipsis", no_wrap=True, max_width=34)
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    title = f"means of {len(pairs)} responses"
    table.add_row(*(Text(t, style="bold") for t in (title, "reference", "policy", "change")))
    for name, of_reference, of_policy in compared(pairs):
        change = None
        if of_reference is not None and of_policy is not None:
            change = of_policy - of_reference
        cells = [number(of_reference), number(of_policy), number(change, sign=True)]
        table.add_row(Text(visible(name)), *map(Text, cells))
    return table


def compared(pairs: Sequence[Pair]) -> list[tuple[str, float | None, float | None]]:
    """(name, mean of the reference, mean of the policy) of score, rewards, KL and length."""
    rows = [[p.reference.row for p in pairs], [p.policy.row for p in pairs]]
    names = list(rows[1][0]["rewards"])
    score, length = ([mean(r[key] for r in side) for side in rows] for key in ("score", "length"))
    found = [("score", score[0], score[1])]
    for name in names:
        of_reference, of_policy = (mean(r["rewards"][name] for r in side) for side in rows)
        found.append((name, of_reference, of_policy))
    found.append(("KL, nats per response", None, mean(r["kl"] for r in rows[1])))
    found.append(("length, tokens", length[0], length[1]))
    return found


def mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def number(value: float | None, sign: bool = False) -> str:
    if value is None:
        return NONE
    digits = 3 if abs(value) < 9.9995 else 2 if abs(value) < 99.995 else 1
    return f"{value:{'+' if sign else ''}.{digits}f}"


def broken(text: str) -> str:
    """Text on as many lines as it has, each break shown."""
    return visible(text).replace("⏎ ", "⏎\n")


def as_lines(given: Pair) -> str:
    """Both responses as JSON, a line each; nothing in it acts on a terminal."""
    rows: list[Mapping[str, Any]] = [given.reference.row, given.policy.row]
    return "\n".join(json.dumps(row, ensure_ascii=True, allow_nan=False) for row in rows)
