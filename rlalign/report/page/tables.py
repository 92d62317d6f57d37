"""The tables of a report: what came out with its intervals, runs, settings that differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlalign.metrics import distinct_n
from rlalign.report.changes import Change, Mean, change, changes
from rlalign.report.live_text import duration
from rlalign.report.markup import plain, safe
from rlalign.report.page.record import RunRecord
from rlalign.report.yardstick_table import (
    DASH,
    DIVERGENCES,
    TEXTS,
    TO_REFERENCE,
    number,
    places,
    with_error,
)

WIDTH, HEIGHT = 150, 22  # of the picture beside a row


def changes_of(record: RunRecord) -> list[Change]:
    """Score, KL, each reward, length, the share that ends by itself, diversity."""
    before, after = record.before, record.after
    if not before or not after:
        return []

    def both(name: str, key: str) -> Change:
        first, second = (
            [None if row[key] is None else float(row[key]) for row in rows]
            for rows in (before, after)
        )
        asked = ([row["prompt"] for row in rows] for rows in (before, after))
        return change(name, first, second, *asked)

    found = [*changes(before, after)]
    found += [both("length, tokens", "length"), both("ends by itself", "finished")]
    count = min(len(before), len(after))  # distinct-n of different counts do not compare
    first, second = (
        distinct_n([row["response"] for row in rows], 2, count) for rows in (before, after)
    )
    means = [Mean(value, value, value) for value in (first, second, second - first)]
    return [*found, Change("distinct-2", means[0], means[1], means[2])]


def came_out(records: Sequence[RunRecord], found: Sequence[Sequence[Change]]) -> str:
    """A row for each number, of several runs one for each run, with its picture."""
    has_target = any(record.yardstick for record in records)
    titles = ["", *(["run"] if len(records) > 1 else []), "before", "after", "change", ""]
    titles += ["target"] if has_target else []
    head = "".join(f'<th scope="col"{kind(t)}>{safe(t)}</th>' for t in titles)
    titled = dict.fromkeys((each.name, each.is_reward) for of_run in found for each in of_run)
    body = []
    for name, of_reward in titled:
        alike = [
            [c for c in of_run if (c.name, c.is_reward) == (name, of_reward)] for of_run in found
        ]
        rows = [(i, each) for i, of_run in enumerate(alike) for each in of_run]
        scale = range_of([each for _, each in rows])
        for place, (i, each) in enumerate(rows):
            opens = f'<th scope="row" rowspan="{len(rows)}">{safe(name)}</th>' if not place else ""
            run = run_cell(i, records[i].label) if len(records) > 1 else ""
            target = f'<td class="n">{target_of(records[i], each)}</td>' if has_target else ""
            first = ' class="first"' if not place else ""
            body.append(
                f"<tr{first}>{opens}{run}{numbers(each)}{picture(each, i, scale)}{target}</tr>"
            )
    return (
        f'<div class="wide"><table class="out"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def kind(title: str) -> str:
    return ' class="n"' if title in ("before", "after", "change", "target") else ""


def run_cell(index: int, label: str) -> str:
    return f'<td><span class="key run-{index % 8}"></span>{safe(label)}</td>'


def numbers(each: Change) -> str:
    """Before, after and change, each with its interval; a change beyond it is set in bold."""
    cells = []
    for which, mean in (("", each.before), ("", each.after), ("change", each.difference)):
        clear = which and mean is not None and mean.low < mean.high and not within(mean)
        shown = with_interval(mean, signed=bool(which))
        cells.append(f'<td class="n{" clear" if clear else ""}">{shown}</td>')
    return "".join(cells)


def within(mean: Mean) -> bool:
    """Whether 0 lies in the interval."""
    return mean.low <= 0.0 <= mean.high


def with_interval(mean: Mean | None, signed: bool = False) -> str:
    """A value, and its interval behind it in small."""
    if mean is None:
        return DASH
    digits = places((mean.high - mean.low) / 2, 2) if mean.high > mean.low else 3
    shown = f"{mean.value + 0.0:{'+' if signed else ''}.{digits}f}"
    if mean.high <= mean.low:
        return shown
    return f"{shown} <small>{mean.low:.{digits}f} … {mean.high:.{digits}f}</small>"


def target_of(record: RunRecord, change: Change) -> str:
    """The target's own mean of a reward, where `rlalign eval` has measured it."""
    features = record.yardstick["features"] if record.yardstick else {}
    if not change.is_reward or change.name not in features:
        return DASH
    return safe(with_error(features[change.name]["target"]))


def range_of(rows: Sequence[Change]) -> tuple[float, float]:
    """From the lowest end to the highest of all intervals of a number."""
    means = [mean for each in rows for mean in (each.before, each.after) if mean is not None]
    low, high = (
        min((m.low for m in means), default=0.0),
        max((m.high for m in means), default=1.0),
    )
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room


def picture(each: Change, run: int, scale: tuple[float, float]) -> str:
    """Before in grey, after in the run's colour, each a point on its interval."""
    low, high = scale

    def x(value: float) -> str:
        return f"{WIDTH * (value - low) / (high - low):.1f}"

    marks = []
    for mean, y, name in ((each.before, 7, "before"), (each.after, 15, f"run-{run % 8}")):
        if mean is not None:
            ends = f'x1="{x(mean.low)}" x2="{x(mean.high)}" y1="{y}" y2="{y}"'
            point = f'cx="{x(mean.value)}" cy="{y}" r="3.5"'
            marks.append(f'<g class="{name}"><line {ends}/><circle {point}/></g>')
    label = "before and after with their intervals, on one scale"
    return (
        f'<td class="dots"><svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(marks)}</svg></td>"
    )


def measured(records: Sequence[RunRecord]) -> str:
    """What `rlalign eval` measured beside the means: distances and diversity; or nothing."""
    known = [(record.label, record.yardstick) for record in records if record.yardstick]
    if not known:
        return ""
    rows: dict[str, list[str]] = {}
    for _, content in known:
        for key, title in DIVERGENCES.items():
            both = content["to_target"][key]
            cells = [with_error(both[of]) for of in ("reference", "policy")]
            rows.setdefault(title, []).extend(cells)
        for key, title in TO_REFERENCE.items():
            rows.setdefault(title, []).extend([DASH, with_error(content["to_reference"][key])])
        for key, title in TEXTS.items():
            cells = [number(content["texts"][of][key]) for of in ("reference", "policy")]
            rows.setdefault(title, []).extend(cells)
    heads = [
        f"{of} of {label}" if len(records) > 1 else of
        for label, _ in known
        for of in ("reference", "policy")
    ]
    head = "".join(f'<th scope="col" class="n">{safe(title)}</th>' for title in heads)
    body = "".join(
        f'<tr><th scope="row">{safe(title)}</th>'
        + "".join(f'<td class="n">{safe(cell)}</td>' for cell in cells)
        + "</tr>"
        for title, cells in rows.items()
    )
    return (
        f'<div class="wide"><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def of_runs(records: Sequence[RunRecord], found: Sequence[Sequence[Change]]) -> str:
    """What each of several runs is, and how it ended."""
    titles = ["run", "method", "status", "iterations", "score", "KL, nats", "time"]
    rows = []
    for i, (record, of_run) in enumerate(zip(records, found, strict=True)):
        score, kl = (of_run[0].after, of_run[1].after) if of_run else (None, None)
        told = str(record.about.get("method") or DASH), str(record.about.get("status") or DASH)
        last = max((row["iteration"] for row in record.metrics), default=0)
        rows.append(
            f"<tr>{run_cell(i, record.label)}{''.join(map(plain, told))}"
            f'<td class="n">{last:g}</td><td class="n">{with_interval(score)}</td>'
            f'<td class="n">{with_interval(kl)}</td><td class="n">{safe(time_of(record))}</td></tr>'
        )
    right = {"iterations", "score", "KL, nats", "time"}
    head = "".join(
        f'<th scope="col"{" class=n" * (title in right)}>{safe(title)}</th>' for title in titles
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def time_of(record: RunRecord) -> str:
    """Seconds of all iterations together, as people say them."""
    seconds = [row.get("time/total") for row in record.metrics]
    known = [each for each in seconds if isinstance(each, int | float)]
    return duration(sum(known)) if known else DASH


def differing(records: Sequence[RunRecord]) -> str:
    """The settings in which several runs differ, a column each."""
    flat = [dict(leaves(record.config)) for record in records]
    keys = dict.fromkeys(key for each in flat for key in each)
    own = ("run.name", "run.dir", "run.resume")
    different = [k for k in keys if k not in own and len({each.get(k) for each in flat}) > 1]
    if not different:
        return '<p class="note">Their settings are the same.</p>'
    head = "".join(
        f'<th scope="col"><span class="key run-{i % 8}"></span>{safe(record.label)}</th>'
        for i, record in enumerate(records)
    )
    rows = [
        f'<tr><th scope="row"><code>{safe(key)}</code></th>'
        + "".join(plain(each.get(key, DASH)) for each in flat)
        + "</tr>"
        for key in different
    ]
    return (
        f'<div class="wide"><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a configuration, the values as text."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(item, ensure_ascii=False, default=str)


def pairs(rows: Mapping[str, str]) -> str:
    """Names and values, one below the other."""
    cells = "".join(f"<dt>{safe(k)}</dt><dd>{safe(v)}</dd>" for k, v in rows.items())
    return f'<dl class="pairs">{cells}</dl>'
