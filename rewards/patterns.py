"""Regular expressions from users, in linear time: google-re2 and nothing else runs them."""

import re
from functools import lru_cache
from typing import Annotated, Any

import re2  # type: ignore[import-untyped]
from pydantic import AfterValidator, Field

_SURROGATE = re.compile("[\ud800-\udfff]")


@lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> Any:
    """A compiled google-re2 pattern; ValueError with re2's reason where it is not one."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "unknown"
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(
            f"is no RE2 pattern ({text}); RE2 has no look-around and no back-references"
        ) from error


def _checked(pattern: str) -> str:
    compile_pattern(pattern)
    return pattern


def encodable(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, replaced one for one by U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


Pattern = Annotated[
    str,
    AfterValidator(_checked),
    Field(
        description="an RE2 pattern; `(?i)` in front ignores case, `(?s)` lets . match a newline"
    ),
]
