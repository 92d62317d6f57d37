"""Pieces of a page: whatever text goes into them comes out as text."""

import html
from collections.abc import Iterable, Sequence

from rlalign.report.visible import visible

LONGEST = 600  # characters of a text that are shown


def safe(content: object, most: int = LONGEST) -> str:
    """Text of a run: control characters shown, nothing of it markup, not too long."""
    shown = visible(str(content))
    return html.escape(shown if len(shown) <= most else f"{shown[:most]} …")


def lines_of(content: str) -> str:
    """The same of several lines, which are kept: a formula may be long."""
    return "\n".join(safe(line, 10 * LONGEST) for line in content.split("\n"))


def paragraphs(lines: Iterable[str]) -> str:
    return "".join(f'<p class="note">{safe(line, 10 * LONGEST)}</p>' for line in lines)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Titles are escaped here, cells are cells already."""
    kind = ' class="n"' if numbers else ""
    head = "".join(f"<th{kind if i else ''}>{safe(title)}</th>" for i, title in enumerate(titles))
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    around = "wide numbers" if numbers else "wide"
    return f'<div class="{around}"><table><tr>{head}</tr>{body}</table></div>'


def plain(content: str) -> str:
    return f"<td>{safe(content)}</td>"


def value(content: str, kind: str = "") -> str:
    return f'<td class="{("n " + kind).strip()}">{safe(content)}</td>'


def text(content: str) -> str:
    """What a model wrote, or was asked."""
    return f'<td class="text">{safe(content) or "<i>empty</i>"}</td>'
