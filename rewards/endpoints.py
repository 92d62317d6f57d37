"""Addresses and secrets of servers: settings checked, secrets kept out of what is shown."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from rewards.contract import RewardConfigError, brief

# Capitals only, so that most secrets that are put here in place of a name are refused unseen.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a token of RFC 9110
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


def check_url(setting: str, url: str) -> str:
    """`url`, or RewardConfigError where it is none or holds a password."""
    import httpx

    # Only a part is shown: before an @ may be a password, behind a ? a key.
    shown = f"{setting}={brief(re.sub('//.*@', '//[hidden]@', url, flags=re.DOTALL).split('?')[0])}"
    try:
        parts = urlsplit(url)
        has_user, _ = "@" in parts.netloc, parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        raise RewardConfigError(f"{shown} is no URL") from None  # the cause repeats parts of it
    if has_user:
        raise RewardConfigError(
            f"{shown} holds a user or password; send it in a header whose value is in an "
            "environment variable"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RewardConfigError(f"{shown} must start with http:// or https://")
    if not url.isprintable() or " " in url or parts.fragment:
        raise RewardConfigError(f"{shown} must have no space and no #fragment")
    return url


def check_variable(setting: str, variable: str) -> None:
    """Raise RewardConfigError, without `variable` in it: it may be the secret itself.

    `setting` is the start of the message, as "api_key_env=[hidden]".
    """
    if not _VARIABLE.fullmatch(variable):
        raise RewardConfigError(
            f"{setting} is no name of an environment variable (A-Z, 0-9, _); put the secret into "
            "one and its name here"
        )


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """`headers`, names of headers -> names of environment variables; or RewardConfigError."""
    for name, variable in headers.items():
        if not _HEADER.fullmatch(name):
            raise RewardConfigError(f"headers={{{brief(name)}: …}} is no name of a header")
        check_variable(f"headers={{{name!r}: [hidden]}}", variable)
    return dict(headers)


def from_environment(setting: str, variable: str) -> str:
    """A header's value from the environment, without space around it; or RewardConfigError.

    `setting` is the start of the message, as "api_key_env='OPENAI_API_KEY'".
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise RewardConfigError(f"{setting}: the environment variable {variable} is not set")
    if not _HEADER_VALUE.fullmatch(value):
        raise RewardConfigError(
            f"{setting}: the value of {variable} holds characters that no header can carry; it "
            "must be printable ASCII"
        )
    return value


class Hider:
    """Takes secrets out of what a server or a library says."""

    def __init__(self, values: Iterable[str]) -> None:
        # "Bearer abc" hides a lone abc as well: a server that echoes a key drops what is before it.
        whole = list(values)
        words = {*whole, *(word for value in whole for word in value.split() if len(word) >= 4)}
        words |= {json.dumps(word)[1:-1] for word in words} | {repr(word)[1:-1] for word in words}
        self._words = sorted(words, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for word in self._words:
            text = text.replace(word, "[hidden]")
        return text

    def brief(self, said: object) -> str:
        """Escaped and cut, after the secrets are out: half a secret is one still."""
        if isinstance(said, str):
            return brief(self(said), 200)
        try:
            return brief(_AsItIs(self(repr(said))), 200)
        except RecursionError:  # lists in lists, a thousand deep
            return type(said).__name__


class _AsItIs(str):
    """Text that is a `repr` already."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
