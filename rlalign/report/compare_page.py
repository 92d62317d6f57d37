"""The page of `rlalign compare`: one HTML file that needs nothing beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlalign.report.compare_pictures import GREY, frontier, sign
from rlalign.report.compare_readings import (
    WATCHED,
    Run,
    all_features,
    change,
    clear_least,
    distance,
    drawn,
    mean,
    moved,
    notes,
    settings,
    text_number,
    titled,
)
from rlalign.report.markup import lines_of, paragraphs, plain, safe, table, text, value
from rlalign.report.yardstick_table import (
    DASH,
    DIVERGENCES,
    TEXTS,
    TO_REFERENCE,
    asked,
    number,
    with_error,
)

PROMPTS, DRAWS = 6, 3  # shown side by side
STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ddd; --mark: #dff0e3;
        --warn: #fff3d6; --soft: #666; --code: #f3f3f3 }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #16181c; --line: #3a3d44;
        --mark: #1f3a27; --warn: #47391a; --soft: #9a9a9a; --code: #22252b } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1200px; margin: 0 auto; padding: 1.2rem; overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.wide { overflow-x: auto; margin-top: .8rem } table { border-collapse: collapse; font-size: .86rem }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); vertical-align: top;
         text-align: left; overflow-wrap: normal }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } td.n { white-space: nowrap }
.numbers td:first-child, .numbers th:first-child { position: sticky; left: 0; min-width: 6rem;
         max-width: 14rem; overflow-wrap: anywhere; background: var(--paper) }
td.least, td.moved { background: var(--mark); font-weight: 600 }
td.moved { background: var(--warn) }
.warn { background: var(--warn); padding: .5rem .8rem; border-radius: 4px }
.soft, .note { color: var(--soft); font-size: .88rem } .note { margin: .4rem 0 }
pre { white-space: pre-wrap; background: var(--code); padding: .6rem .8rem; border-radius: 4px }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 10rem }
.panels { display: grid; gap: 1rem; margin: 0;
         grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }
figure { margin: 0 } figcaption { font-size: .88rem } img { width: 100%; height: auto }
.legend span { display: inline-block; margin-right: 1.2rem } summary { cursor: pointer }
"""


def compare_page(runs: Sequence[Run], warnings: Sequence[str]) -> str:
    """The whole page; everything that comes from a run is escaped."""
    sections = {
        "Reward against KL": picture(runs),
        "Distances": distances(runs),
        "Features": features(runs),
        "What was forgotten": forgotten(runs),
        "Diversity": diversity(runs),
        "Samples side by side": side_by_side(runs),
        "Witnesses": witnesses(runs),
    }
    title = "Comparison of " + ", ".join(run.label for run in runs)
    body = "".join(f"<section><h2>{t}</h2>{part}</section>" for t, part in sections.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
        f"<title>{safe(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{safe(title)}</h1>{opening(runs, warnings)}{body}</body></html>\n"
    )


# -- the sections ----------------------------------------------------------------------------------


def opening(runs: Sequence[Run], warnings: Sequence[str]) -> str:
    """Warnings, the target of each setting, and what each run is."""
    parts = [f'<p class="warn">{safe(line)}</p>' for line in warnings]
    firsts = settings(runs)
    for run in firsts:
        if len(firsts) > 1:
            parts.append(f'<p class="soft">the target of {safe(run.label)}</p>')
        parts.append(f"<pre>{lines_of(run.content['target']['formula'])}</pre>")
    rows = []
    for run in runs:
        about, target = run.content, run.content["target"]
        lambdas = ", ".join(f"{name} {at:.4g}" for name, at in target["lambdas"].items())
        told = about.get("measured"), about.get("method"), lambdas, "; ".join(target["notes"])
        rows.append([plain(run.label), *(text(each or DASH) for each in told)])
    titles = ["run", "what was measured", "method", "λ", "about the target"]
    first = runs[0].content
    said = (
        f"π is a run's policy, a its reference ({first['reference_model']}), "
        f"P_T the target. {first['samples']} responses of each to {first['prompts']} prompt(s); ± "
        f"is half of a 95% interval, of the responses; {DASH} is a number that is not known."
    )
    return "".join(parts) + table(titles, rows, numbers=False) + paragraphs([said])


def picture(runs: Sequence[Run]) -> str:
    """A panel for each thing asked for, under one legend."""
    legend = f'<span><b style="color:{GREY}">●</b> reference</span>' + "".join(
        f'<span><b style="color:{color}">{shape}</b> {safe(run.label)}</span>'
        for run, (color, shape) in zip(runs, map(sign, range(len(runs))), strict=True)
    )
    panels = "".join(
        f"<figure><figcaption>{safe(panel.title)}</figcaption><picture>"
        f'<source srcset="{panel.dark}" media="(prefers-color-scheme: dark)">'
        f'<img alt="{safe(panel.title)} against KL to the reference" src="{panel.light}">'
        "</picture></figure>"
        for panel in frontier(runs)
    )
    return f'<p class="soft legend">{legend}</p><div class="panels">{panels}</div>' + paragraphs([
        "The large sign is where a run ended, with 95% intervals; the line is its way there in "
        "training, smoothed; small circles are its held-out prompts; dotted is what was asked. "
        "A reward with a scale, clip or threshold has no way there: a run logs the value itself."
    ])  # fmt: skip


def distances(runs: Sequence[Run]) -> str:
    """The divergence table; what was refused in words below it."""
    firsts = settings(runs)
    columns = [*DIVERGENCES, *TO_REFERENCE]
    sources = [*((run, "reference") for run in firsts), *((run, "policy") for run in runs)]
    # Distances to different targets do not compare, so nothing is the smallest of them.
    least = {
        name: clear_least([distance(run, name, of) for run, of in sources])
        for name in columns
        if len(firsts) == 1
    }
    rows = []
    for i, (run, of) in enumerate(sources):
        shown = [(with_error(distance(run, n, of)), "least" * (least.get(n) == i)) for n in columns]
        label = run.label if of == "policy" else titled("reference", run, firsts)
        last = support_cells(run.content) if of == "policy" else [value("")] * 3
        rows.append([plain(label), *(value(*each) for each in shown), *last])
    titles = [*DIVERGENCES.values(), *TO_REFERENCE.values(), "ESS", "Pareto k", "log Z"]
    mark = (
        "A marked number is the smallest of its column, and its interval overlaps no other's, the "
        "reference's included. A small KL to the reference alone may be a run that did nothing."
        if len(firsts) == 1
        else "Nothing is marked: these are distances to different targets, references or prompts."
    )
    said: dict[str, list[str]] = {}
    for run in runs:
        for note in dict.fromkeys(notes(run)):
            said.setdefault(note, []).append(run.label)
    return table(["", *titles], rows) + paragraphs(
        [mark, *(f"{of_runs(labels, runs)}: {note}" for note, labels in said.items())]
    )


def features(runs: Sequence[Run]) -> str:
    """Each feature's mean under the reference, the runs and the target."""
    found = all_features(runs)
    rows = [
        [plain(f"{name} ({asked(feature)})"), *mean_cells(runs, name)]
        for name, feature in found.items()
    ]
    said = [
        f"{name}, the target's mean: {note}"
        for name in found
        for run in settings(runs)
        if (note := mean(run, name, "target").get("note", ""))
        and note != run.content["support"]["refusal"]
    ]
    arrow = "An arrow: what nobody asked for left the target's interval, see below."
    return table(["", *mean_titles(runs)], rows) + paragraphs([arrow, *said])


def forgotten(runs: Sequence[Run]) -> str:
    """What moved although nobody asked for it: beyond what the target itself moves."""
    firsts, parts = settings(runs), []
    watched = {n: f for n, f in all_features(runs).items() if f["role"] in WATCHED}
    rows = [
        [plain(f"{name} ({asked(feature)})"), *mean_cells(runs, name)]
        for name, feature in watched.items()
    ]
    if rows:
        parts.append(table(["", *mean_titles(runs)], rows) + paragraphs([
            "Marked with an arrow: outside of the target's own interval (where that is unknown, "
            "the reference's). The target may move what nobody named, and that is no loss; what "
            "a run moves beyond it is."
        ]))  # fmt: skip
    else:
        parts.append(paragraphs([
            "No reward was only watched: give some weight 0, or name audit.judges."
        ]))  # fmt: skip
    rows = []
    for key, title in TEXTS.items():
        numbers = [[text_number(run, of, key) for of in ("policy", "reference")] for run in runs]
        before = [number(text_number(run, "reference", key)) for run in firsts]
        rows.append(
            [plain(title), *map(value, before), *(value(change(*each)) for each in numbers)]
        )
    titles = [*(titled("reference", run, firsts) for run in firsts), *(run.label for run in runs)]
    parts.append(table(["of the texts", *titles], rows))
    return "".join(parts) + paragraphs([
        "Change against the run's own reference, in percent; the number itself where that is 0. "
        "Texts have no interval here, and the target may move them too."
    ])  # fmt: skip


def diversity(runs: Sequence[Run]) -> str:
    """The numbers of the texts themselves."""
    firsts, rows = settings(runs), []
    sources = [*((run, "reference") for run in firsts), *((run, "policy") for run in runs)]
    for run, of in sources:
        label = run.label if of == "policy" else titled("reference", run, firsts)
        cells = [value(number(text_number(run, of, key))) for key in TEXTS]
        rows.append([plain(label), *cells, value(str(run.content["texts"][of]["texts"]))])
    return table(["", *TEXTS.values(), "texts"], rows) + paragraphs([
        "distinct-n and self-BLEU of different counts of texts do not compare."
    ])  # fmt: skip


def side_by_side(runs: Sequence[Run]) -> str:
    """The first draws of reference and runs to the same prompts."""
    answered = [dict.fromkeys(row["prompt"] for row in run.samples) for run in runs if run.samples]
    if not answered:
        return paragraphs(["No run has an eval_samples.jsonl beside its eval.json."])
    first, own = next(run for run in runs if run.samples), list(answered[0])
    shared = [prompt for prompt in own if all(prompt in each for each in answered)]
    rows = []
    for prompt in (shared or own)[:PROMPTS]:
        sources = [drawn(first, "reference", prompt), *(drawn(r, "policy", prompt) for r in runs)]
        for i in range(min(DRAWS, max(map(len, sources)))):
            cells = [text(each[i]) if i < len(each) else plain(DASH) for each in sources]
            rows.append([text(prompt) if i == 0 else plain(""), *cells])
    titles = ["prompt", "reference", *(run.label for run in runs)]
    said = f"The first {DRAWS} draws to the first prompts as they came, not chosen."
    return paragraphs([said]) + table(titles, rows, numbers=False)


def witnesses(runs: Sequence[Run]) -> str:
    """What each run writes most too often and too seldom, by log π / P_T."""
    parts = []
    for run in runs:
        rows = []
        for kind, title in (("too_often", "too often"), ("too_seldom", "too seldom")):
            for row in run.content["witnesses"].get(kind, []):
                ratio = row["log_ratio"]
                shown = "forbidden" if ratio is None else f"{ratio:+.1f}"
                texts = text(row["prompt"]), text(row["response"])
                rows.append([plain(title), value(shown), *texts])
        body = table(["", "log π/P_T", "prompt", "response"], rows, numbers=False)
        none = paragraphs(["None: there is no distance to the target."])
        shown = f"<summary>{safe(run.label)}</summary>{body if rows else none}"
        parts.append(f"<details open>{shown}</details>")
    return "".join(parts)


# -- cells -----------------------------------------------------------------------------------------


def of_runs(labels: Sequence[str], runs: Sequence[Run]) -> str:
    return "every run" if len(labels) == len(runs) > 1 else ", ".join(labels)


def mean_titles(runs: Sequence[Run]) -> list[str]:
    firsts = settings(runs)
    before, after = ([titled(of, run, firsts) for run in firsts] for of in ("reference", "target"))
    return [*before, *(run.label for run in runs), *after]


def mean_cells(runs: Sequence[Run], name: str) -> list[str]:
    """A feature's means in that order; an arrow where one moved though nobody asked for it."""
    firsts, own = settings(runs), []
    for run in runs:
        way = moved(run, name)
        own.append(value(with_error(mean(run, name, "policy")) + way, "moved" * bool(way)))
    before, after = (
        [value(with_error(mean(run, name, of))) for run in firsts] for of in ("reference", "target")
    )
    return [*before, *own, *after]


def support_cells(content: Mapping[str, Any]) -> list[str]:
    """Effective samples of the target, Pareto k, and the bounds on log Z."""
    support, lower, upper = content["support"], content["log_z"]["lower"], content["log_z"]["upper"]
    k, bounds = support["pareto_k"], with_error(lower)
    tail = "no tail" if k is None or support["is_whole"] else f"{k:.2f}"
    if lower["value"] is not None:
        one_sided = upper["value"] is None
        bounds = f"≥ {bounds}" if one_sided else f"{bounds} to {with_error(upper)}"
    return [
        value(f"{support['ess']:.0f}"),
        value(DASH if support["refusal"] and k is None else tail),
        value(bounds),
    ]
