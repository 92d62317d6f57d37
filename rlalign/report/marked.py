"""A response with the words that earn or cost it a reward marked."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from rich.text import Text

from rewards.contract import Span
from rlalign.report.visible import visible

FAINT = 0.25  # of the largest credit in a text: what is smaller is marked less
MOST = 6  # credits that are listed where there are no colours


def marked(text: str, spans: Iterable[Span], *, breaks: bool = False) -> Text:
    """The text with each character in the colour of what the spans over it add up to.

    Green earns, red costs, bold where it is much. A line break is a symbol, and with `breaks` a
    new line behind it.
    """
    shown = Text()
    for credit, part in pieces(text, spans):
        colour = "green" if credit > 0 else "red"
        style = "" if credit == 0 else colour if abs(credit) < FAINT else f"bold {colour}"
        seen = visible(part)
        shown.append(seen.replace("⏎ ", "⏎\n") if breaks else seen, style=style)
    return shown


def pieces(text: str, spans: Iterable[Span]) -> Iterator[tuple[float, str]]:
    """The text in pieces, each with its credit as a share of the largest, -1 to 1."""
    credit = [0.0] * len(text)
    for span in spans:
        for at in range(span.start, span.end):
            credit[at] += span.credit
    largest = max(map(abs, credit), default=0.0) or 1.0
    shares = [each / largest for each in credit]
    for share, piece in groupby(zip(shares, text, strict=True), itemgetter(0)):
        yield share, "".join(character for _, character in piece)


def listed(text: str, spans: Sequence[Span]) -> str:
    """The largest credits without colours, as they stand in the text: `+0.500 "red", …`"""
    by_size = sorted(spans, key=lambda span: -abs(span.credit))
    chosen = sorted(by_size[:MOST], key=lambda span: (span.end, span.start))
    shown = [f'{span.credit:+.3f} "{visible(text[span.start : span.end])}"' for span in chosen]
    more = [f"and {len(spans) - MOST} smaller"] if len(spans) > MOST else []
    return ", ".join(shown + more)
