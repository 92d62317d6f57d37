"""Secrets out of what a run writes down: command lines, configurations, messages."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "[hidden]"
# `token` at the end hides hub_token and leaves max_new_tokens and micro_batch_tokens alone.
SECRET_NAME = re.compile(
    r"(key|token|secret|secrets|password|passwd|passphrase|pwd|credential|credentials|auth)$", re.I
)
SECRET_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|wandb_v1_[A-Za-z0-9_]{16,}|gh[pousr]_\w{20,}"
    r"|AKIA[A-Z0-9]{12,})|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
# `api_key: x` in YAML, JSON, a URL or a message; a lone "key:" is too common in ordinary text.
# From the beginning of a run of such letters only: else each of them is a start, in vain.
INLINE = re.compile(
    r"(?P<name>(?<![\w.-])[\w.-]*(?:(?:api|access|auth|hub|hf|private|secret|wandb)[_-]?(?:key|token)"
    r"|password|passwd|passphrase|secret)[\"']?[ \t]*[:=][ \t]*)"
    r"(?P<value>[\"']?[^\s\"',;&}\]]+[\"']?)",
    re.I,
)
ASSIGNMENT = re.compile(r"(?P<name>-{0,2}[\w.-]+)=(?P<value>.*)", re.S)
SHORTEST = 8  # a shorter value in the environment is too likely to be an ordinary word


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name holds a secret: its last word is key, token, password …"""
    return SECRET_NAME.search(name.rstrip("_-. ")) is not None


def redact_command(argv: Sequence[str]) -> list[str]:
    """A command line with `[hidden]` for the values of options that look like secrets."""
    shown: list[str] = []
    hide_next = False
    for argument in argv:
        match = ASSIGNMENT.fullmatch(argument)
        if hide_next and not argument.startswith("--"):
            shown.append(HIDDEN)
        elif match and is_secret_name(match["name"]):
            shown.append(f"{match['name']}={HIDDEN}")
        else:
            shown.append(redact_text(argument))
        hide_next = argument.startswith("-") and match is None and is_secret_name(argument)
    return shown


def redact_text(text: str) -> str:
    """`text` without the secrets of this process's environment and what has a key's known form."""
    for name, value in os.environ.items():
        is_folder = name in ("PWD", "OLDPWD")  # no password, but the working directory
        if is_secret_name(name) and not is_folder and len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    text = INLINE.sub(_hide_value, text)
    return SECRET_VALUE.sub(HIDDEN, text)


def _hide_value(match: re.Match[str]) -> str:
    """What names a variable of the environment is no secret, and a resumed run needs it."""
    value = match["value"].strip("\"'")
    is_harmless = value in os.environ or HIDDEN.startswith(value)
    return match[0] if is_harmless else match["name"] + HIDDEN


def redact_mapping(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration with `[hidden]` for its secrets, told by name or by form."""
    return {
        name: HIDDEN
        if isinstance(value, str) and is_secret_name(name)
        else redact_text(value)
        if isinstance(value, str)
        else value
        for name, value in flat.items()
    }
