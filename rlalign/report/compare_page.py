"""The page of `rlalign compare`: one HTML file that needs nothing beside it."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlalign.report.compare_pictures import Run, frontier
from rlalign.report.visible import visible
from rlalign.report.yardstick_table import (
    DIVERGENCES,
    TEXTS,
    TO_REFERENCE,
    asked,
    number,
    with_error,
)

LONGEST = 600  # characters of a text that are shown
PROMPTS, DRAWS = 6, 3  # shown side by side
STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ddd; --mark: #e8f4ea;
        --warn: #fff3d6; --soft: #666 }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #16181c; --line: #3a3d44;
        --mark: #1f3a27; --warn: #47391a; --soft: #9a9a9a } img { filter: brightness(.88) } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1200px; margin: 0 auto; padding: 1.2rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .88rem }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top;
         text-align: left } td.n, th.n { text-align: right; white-space: nowrap;
         font-variant-numeric: tabular-nums }
td.best, td.moved { background: var(--mark); font-weight: 600 } td.moved { background: var(--warn) }
.warn { background: var(--warn); padding: .5rem .8rem; border-radius: 4px }
.soft, .note { color: var(--soft); font-size: .88rem } pre, .text { white-space: pre-wrap;
         overflow-wrap: anywhere } pre { background: color-mix(in srgb, var(--ink) 6%, transparent);
         padding: .6rem .8rem; border-radius: 4px } img { max-width: 100%; height: auto }
details { margin: .5rem 0 } td.text { min-width: 13rem }
"""
Estimate = Mapping[str, Any]


def compare_page(runs: Sequence[Run], warnings: Sequence[str]) -> str:
    """The whole page; everything that comes from a run is escaped."""
    sections = [
        opening(runs, warnings),
        section("Reward against KL", picture(runs)),
        section("Distances", distances(runs)),
        section("What was asked for", features(runs, ("hard", "moment", "weight"))),
        section("What was forgotten", forgotten(runs)),
        section("Diversity and language", texts(runs)),
        section("Samples side by side", side_by_side(runs)),
        section("Witnesses", witnesses(runs)),
    ]
    title = "Comparison of " + ", ".join(run.label for run in runs)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{safe(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{safe(title)}</h1>{''.join(sections)}</body></html>\n"
    )


# -- the sections ----------------------------------------------------------------------------------


def opening(runs: Sequence[Run], warnings: Sequence[str]) -> str:
    first = runs[0].content
    parts = [f'<p class="warn">{safe(line)}</p>' for line in warnings]
    formulas = {run.content["target"]["formula"]: run.label for run in reversed(runs)}
    for formula, label in formulas.items():
        name = "" if len(formulas) == 1 else f'<p class="soft">{safe(label)}</p>'
        parts.append(f"{name}<pre>{lines_of(formula)}</pre>")
    parts.append(
        f'<p class="soft">π is a run\'s policy, a the reference ({safe(first["reference_model"])})'
        f", P_T the target. {first['samples']} responses of each to {first['prompts']} prompt(s); "
        "± is half of a 95% interval, of the responses.</p>"
    )
    return "".join(parts)


def picture(runs: Sequence[Run]) -> str:
    return (
        f'<img alt="mean of each feature that was asked for against KL to the reference" '
        f'src="{frontier(runs)}"><p class="soft">The thin line is the way there, iteration by '
        "iteration; the dotted one is what was asked.</p>"
    )


def distances(runs: Sequence[Run]) -> str:
    """The divergence table; refusals in words below it."""
    columns = [*DIVERGENCES, *TO_REFERENCE]
    rows = [[plain("reference"), *reference_cells(runs[0].content), *blank(3)]]
    shown = {name: [estimate(run, name) for run in runs] for name in columns}
    best = {name: clear_winner(shown[name]) for name in DIVERGENCES}
    notes = []
    for i, run in enumerate(runs):
        cells = [value(with_error(shown[n][i]), "best" * (best.get(n) == i)) for n in columns]
        support, log_z = run.content["support"], run.content["log_z"]
        rows.append([plain(run.label), *cells, *support_cells(support, log_z)])
        if support["refusal"]:
            notes.append(f"{run.label}: {support['refusal']}")
        elif note := run.content["to_target"]["reverse_kl"]["policy"].get("note"):
            notes.append(f"KL(π‖P_T) is {note}.")
        if log_z["upper"]["value"] is None and not support["refusal"]:
            notes.append(f"{run.label}: log Z {log_z['upper'].get('note', '')}")
    titles = [*DIVERGENCES.values(), *TO_REFERENCE.values(), "worth", "Pareto k", "log Z"]
    marked = "A marked number is the smallest, and its interval overlaps no other's."
    return table(["", *titles], rows) + paragraphs([marked, *dict.fromkeys(notes)])


def features(runs: Sequence[Run], roles: Sequence[str]) -> str:
    """Each feature's mean under the reference, the runs and the target (of the first run)."""
    first = runs[0].content["features"]
    names = [name for name, feature in first.items() if feature["role"] in roles]
    rows = []
    for name in names:
        own = [with_error(r.content["features"][name]["policy"]) if name in r.content["features"]
               else "" for r in runs]  # fmt: skip
        ends = [with_error(first[name]["reference"]), *own, with_error(first[name]["target"])]
        rows.append([plain(f"{name} ({asked(first[name])})"), *map(value, ends)])
    return table(["", "reference", *(run.label for run in runs), "target"], rows)


def forgotten(runs: Sequence[Run]) -> str:
    """What moved although nobody asked for it: beyond what the target itself moves."""
    first = runs[0].content["features"]
    names = [name for name, feature in first.items() if feature["role"] in ("judge", "metric")]
    rows = []
    for name in names:
        wanted = expected(first[name])
        cells = []
        for run in runs:
            mean = run.content["features"].get(name, {}).get("policy")
            has_moved = mean is not None and not overlap(mean, wanted)
            cells.append(value(with_error(mean) if mean else "", "moved" * has_moved))
        rows.append([plain(f"{name} ({asked(first[name])})"),
                     value(with_error(first[name]["reference"])), *cells,
                     value(with_error(first[name]["target"]))])  # fmt: skip
    if not rows:
        return paragraphs(["No reward was only watched: give some weight 0, or name audit.judges."])
    note = (
        "Marked: outside of the target's own interval (where that is unknown, the reference's). "
        "The target may move what nobody named; what a run moves beyond it is lost."
    )
    titles = ["", "reference", *(run.label for run in runs), "target"]
    return table(titles, rows) + paragraphs([note])


def texts(runs: Sequence[Run]) -> str:
    count = runs[0].content["texts"]["policy"]["texts"]
    before, rows = runs[0].content["texts"]["reference"], []
    for key, title in TEXTS.items():
        own = [change(run.content["texts"]["policy"][key], before[key]) for run in runs]
        rows.append([plain(title), value(number(before[key])), *map(value, own)])
    return table(["", "reference", *(run.label for run in runs)], rows) + paragraphs(
        [f"Of {count} texts each: diversity of other counts does not compare."]
    )


def side_by_side(runs: Sequence[Run]) -> str:
    """The first draws of reference and runs to the same prompts."""
    prompts = list(dict.fromkeys(row["prompt"] for row in runs[0].samples))[:PROMPTS]
    rows = []
    for prompt in prompts:
        sources = [drawn(runs[0], "reference", prompt), *(drawn(r, "policy", prompt) for r in runs)]
        for i in range(DRAWS):
            cells = [text(own[i]) if i < len(own) else text("") for own in sources]
            rows.append([text(prompt if i == 0 else ""), *cells])
    if not rows:
        return paragraphs(["There is no eval_samples.jsonl beside eval.json."])
    titles = ["prompt", "reference", *(run.label for run in runs)]
    return table(titles, rows, numbers=False) + paragraphs(["The first draws, not chosen."])


def witnesses(runs: Sequence[Run]) -> str:
    """What each run writes most too often and too seldom, by log π / P_T."""
    parts = []
    for run in runs:
        rows = []
        for kind, title in (("too_often", "too often"), ("too_seldom", "too seldom")):
            for row in run.content["witnesses"].get(kind, []):
                ratio = row["log_ratio"]
                shown = "forbidden" if ratio is None else f"{ratio:+.1f}"
                rows.append(
                    [plain(title), value(shown), text(row["prompt"]), text(row["response"])]
                )
        body = table(["", "log π/P_T", "prompt", "response"], rows, numbers=False)
        none = paragraphs(["None: there is no distance to the target."])
        parts.append(
            f"<details><summary>{safe(run.label)}</summary>{body if rows else none}</details>"
        )
    return "".join(parts)


# -- what the numbers say --------------------------------------------------------------------------


def estimate(run: Run, name: str) -> Estimate:
    own: Estimate
    if name in DIVERGENCES:
        own = run.content["to_target"][name]["policy"]
    else:
        own = run.content["to_reference"][name]
    return own


def clear_winner(estimates: Sequence[Estimate]) -> int | None:
    """The index of the smallest, where its interval lies below all others'."""
    known = [(e["high"], i) for i, e in enumerate(estimates) if e["high"] is not None]
    if len(known) < 2:
        return None
    high, best = min(known)
    others = [e["low"] for i, e in enumerate(estimates) if i != best and e["low"] is not None]
    return best if all(high < low for low in others) else None


def expected(feature: Mapping[str, Any]) -> Estimate:
    """The target's mean of a feature that nobody asked for; the reference's where it is unknown."""
    of: Estimate = (
        feature["target"] if feature["target"]["low"] is not None else feature["reference"]
    )
    return of


def overlap(one: Estimate, other: Estimate) -> bool:
    """Whether two intervals share a point; what has none is taken to overlap."""
    ends = (one["low"], one["high"], other["low"], other["high"])
    return None in ends or (one["low"] <= other["high"] and other["low"] <= one["high"])


def change(after: float | None, before: float | None) -> str:
    if after is None or not before:
        return number(after)
    return f"{number(after)} ({100 * (after / before - 1):+.0f}%)"


def drawn(run: Run, by: str, prompt: str) -> list[str]:
    rows = (row for row in run.samples if row["drawn_by"] == by and row["prompt"] == prompt)
    return [str(row["response"]) for row in rows]


# -- HTML ------------------------------------------------------------------------------------------


def safe(content: object) -> str:
    """Text of a run: control characters shown, nothing of it markup."""
    return html.escape(visible(str(content)))


def lines_of(content: str) -> str:
    """The same of several lines, which are kept."""
    return "\n".join(safe(line) for line in content.split("\n"))


def section(title: str, body: str) -> str:
    return f"<section><h2>{safe(title)}</h2>{body}</section>"


def paragraphs(lines: Iterable[str]) -> str:
    return "".join(f'<p class="note">{safe(line)}</p>' for line in lines)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Titles are escaped here, cells are cells already."""
    kind = ' class="n"' if numbers else ""
    head = "".join(f"<th{kind if i else ''}>{safe(title)}</th>" for i, title in enumerate(titles))
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def plain(content: str) -> str:
    return f"<td>{safe(content)}</td>"


def value(content: str, kind: str = "") -> str:
    return f'<td class="{("n " + kind).strip()}">{safe(content)}</td>'


def text(content: str) -> str:
    cut = content if len(content) <= LONGEST else content[:LONGEST] + " …"
    return f'<td class="text">{safe(cut)}</td>'


def blank(count: int) -> list[str]:
    return [value("")] * count


def reference_cells(content: Mapping[str, Any]) -> list[str]:
    """The reference's own distances to the target."""
    own = [value(with_error(content["to_target"][name]["reference"])) for name in DIVERGENCES]
    return [*own, *blank(len(TO_REFERENCE))]


def support_cells(support: Mapping[str, Any], log_z: Mapping[str, Any]) -> list[str]:
    """Effective samples, Pareto k, and the bounds on log Z."""
    lower, upper = log_z["lower"], log_z["upper"]
    bounds = with_error(lower) if lower["value"] is not None else ""
    bounds = f"{bounds} to {with_error(upper)}" if upper["value"] is not None else f"≥ {bounds}"
    k = support["pareto_k"]
    return [
        value(f"{support['ess']:.0f}"),
        value("none" if k is None else f"{k:.2f}"),
        value(bounds if lower["value"] is not None else ""),
    ]
