"""Text that a model wrote, made harmless for a terminal and for Markdown."""

import re
import unicodedata

# Joiners belong to ordinary Persian, Hindi and emoji, and move nothing.
KEPT = {"\u200c", "\u200d"}
# `:` and `@` and the dot after www, because GitHub makes links of bare addresses.
MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$:@]|(?<=www)\.)", re.I)
ENTITIES = {"<": "&lt;", "&": "&amp;"}  # behind a backslash they would be HTML to some readers


def visible(text: str) -> str:
    """`text` on one line, control, direction and other unseen characters shown as symbols.

    A line break becomes ⏎ and a tab ⇥; an escape sequence turns into its letters.
    """
    return "".join(_shown(character) for character in text)


def escape_markdown(text: str) -> str:
    """`text` on one line, in which nothing means anything to Markdown or HTML.

    For use inside a line: at its start, `-` or `1.` would make a list.
    """
    return MARKDOWN.sub(lambda found: ENTITIES.get(found[1], f"\\{found[1]}"), visible(text))


def _shown(character: str) -> str:
    if character == "\n":
        return "⏎ "
    if character == "\t":
        return "⇥ "
    if character in KEPT or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the symbol for that control character
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
