"""Secrets out of what a run writes down: command lines, configurations, messages."""

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from rlalign.settings.fields import Section
from rlalign.settings.overrides import dump_yaml

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
IN_URL = re.compile(
    r"(?P<name>[?&;][\w.-]*(?:key|token|secret|password|passwd|auth|sig|signature|credential)s?=)"
    r"(?P<value>[^&;#\s\"']+)",
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
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    text = INLINE.sub(_hide_value, IN_URL.sub(_hide_value, text))
    return SECRET_VALUE.sub(HIDDEN, text)


def _secrets() -> Iterator[str]:
    """Values of the environment's secrets, as they are and as JSON, URLs and base64 write them."""
    for name, value in os.environ.items():
        is_folder = name in ("PWD", "OLDPWD")  # no password, but the working directory
        if is_secret_name(name) and not is_folder and len(value) >= SHORTEST:
            content = value.encode("utf-8", "surrogateescape")
            yield value
            yield json.dumps(value)[1:-1]
            yield quote(content, safe="")
            yield quote(content)  # as a path, with its slashes
            yield base64.b64encode(content).decode().rstrip("=")


def _hide_value(match: re.Match[str]) -> str:
    value = match["value"].strip("\"'")
    return match[0] if is_harmless(value) or HIDDEN.startswith(value) else match["name"] + HIDDEN


def is_harmless(value: str) -> bool:
    """Whether this names a variable of the environment, which a resumed run needs."""
    return value in os.environ


def redact_mapping(given: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, flat or nested, with `[hidden]` for secrets, told by name or by form."""
    return {name: _redacted(value, str(name)) for name, value in given.items()}


def redacted_yaml(config: Section) -> str:
    """`resolved_yaml` without the secrets, which have to be given anew to whoever reads it."""
    return dump_yaml(redact_mapping(config.model_dump(mode="json")))


def _redacted(value: Any, name: str) -> Any:
    if isinstance(value, str):
        is_secret = is_secret_name(name) and not is_harmless(value)
        return HIDDEN if is_secret else redact_text(value)
    if isinstance(value, Mapping):
        return redact_mapping(value)
    if isinstance(value, list | tuple):
        return [_redacted(item, name) for item in value]
    return value
