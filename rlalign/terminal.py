"""Showing text that others wrote: its markup is not read, its control characters are spelt out."""

from rich.text import Text


def printable(text: str) -> str:
    """The text with every unprintable character but the line break spelt out, as `\\x1b`."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def plain_text(text: str) -> Text:
    """The text for rich, which reads markup in strings but never in a `Text`."""
    return Text(printable(text))
