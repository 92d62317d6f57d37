"""`report.html`: one file that needs nothing beside it, of a run or of several."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rlalign.report.markup import safe
from rlalign.report.page import charts, sections
from rlalign.report.page.embedded import compressed, samples, script_json
from rlalign.report.page.record import RunRecord
from rlalign.report.page.tables import changes_of

STATIC = Path(__file__).parent / "static"
LIBRARIES = ("d3.min.js", "plot.umd.min.js")
SCRIPTS = ("report.js", "samples.js")
NAMED = 4  # runs whose names make a title
# Plot puts a style sheet into each picture; with its class fixed it is always this one.
PLOTS_STYLE = "sha256-zrfVyvY1E/5V+DXZunsRZW8XTqTsuIZzp8dBDThhSn8="


def document(records: Sequence[RunRecord], most: int) -> str:
    """The page, with at most `most` samples in it."""
    found = [changes_of(record) for record in records]
    labels = [record.label for record in records]
    title = ", ".join(labels) if len(labels) <= NAMED else f"{len(labels)} runs"
    parts = {
        "asked": ("What was asked", sections.asked(records)),
        "outcome": ("What came out", sections.outcome(records, found)),
        "warnings": ("Warnings", sections.warnings(records)),
        "curves": ("Curves", CURVES),
        "frontier": ("Reward against KL", FRONTIER),
        "histograms": ("How they are spread", HISTOGRAMS),
        "samples": ("Samples", static("samples.html")),
        "again": ("To run it again", sections.again(records)),
    }
    links = "".join(f'<a href="#{name}">{safe(t)}</a>' for name, (t, _) in parts.items())
    body = "".join(
        f'<section id="{name}"><h2>{safe(t)}</h2>{part}</section>'
        for name, (t, part) in parts.items()
    )
    drawn = {
        "runs": labels,
        "curves": charts.curves(records),
        "frontiers": charts.frontiers(records, found),
        "histograms": charts.histograms(records),
    }
    style, *scripts = (static(name) for name in ("report.css", *LIBRARIES, *SCRIPTS))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(style, scripts)}">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{safe(title)} · rlalign</title><style>{style}</style></head><body>"
        f"<header><h1>{safe(title)}</h1>{THEME}</header>"
        f"{sections.opening(records, found)}<nav>{links}</nav>"
        "<noscript><p class=warn>Charts and samples need JavaScript.</p></noscript>"
        f"<main>{body}</main>"
        f'<script type="application/json" id="charts">{script_json(drawn)}</script>'
        f'<script type="text/plain" id="packed">{compressed(samples(records, most))}</script>'
        f"{''.join(f'<script>{each}</script>' for each in scripts)}</body></html>\n"
    )


def policy(style: str, scripts: Sequence[str]) -> str:
    """What the page may do: run and look as these very texts say, and ask nobody for anything."""
    allowed = " ".join(f"'{hash_of(each)}'" for each in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src '{hash_of(style)}' '{PLOTS_STYLE}'; "
        "base-uri 'none'; form-action 'none'"
    )


def hash_of(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


THEME = '<button type="button" id="theme" hidden>Theme: auto</button>'
CURVES = (
    '<div class="panels" data-charts="curves"></div><p class="note">Lines are the training '
    "(the score's band: 95% of an iteration's mean, its responses taken as independent), "
    "circles the evaluations with their 95% intervals.</p>"
)
FRONTIER = (
    '<div class="panels" data-charts="frontiers"></div><p class="note">What each nat of KL bought. '
    "The line is the way through the training, circles are evaluations; the crosses at the ends "
    "are 95% intervals, grey the reference, in colour where the run ended.</p>"
)
HISTOGRAMS = (
    '<div class="panels" data-charts="histograms"></div><p class="note">Shares of the responses: '
    "grey before, in colour after.</p>"
)
