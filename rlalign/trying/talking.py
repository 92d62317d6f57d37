"""Prompts that somebody types, each answered by both models; nothing typed ends it but the end."""

import contextlib
import json
import re
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from rlalign.columns import check_columns, parsed_columns
from rlalign.config import ConfigError
from rlalign.exits import last_line
from rlalign.terminal import printable
from rlalign.trying import shown
from rlalign.trying.asked import check_text
from rlalign.trying.drawing import Trial

HELP = """\
a text        both models answer it; in it \\n is a line break, \\\\ a backslash
nothing       the last prompt again, with other random numbers
:samples 3    so many responses of each model
:seed 7       other random numbers from now on; the same ones for the same number
:columns {…}  the data's columns that rewards read, as JSON
:help :quit   this, and the end; Ctrl-D and Ctrl-C end it, too
\\:…           a prompt that begins with a colon"""
ESCAPES = {"n": "\n", "\\": "\\", ":": ":", "t": "\t"}


class Leave(Exception):
    """Whoever types wants to go."""


class Talk:
    """What a conversation remembers from one prompt to the next."""

    def __init__(self, trial: Trial, samples: int, columns: dict[str, Any], console: Console):
        self.trial, self.samples, self.columns, self.console = trial, samples, columns, console
        self.last: str | None = None
        self.times: dict[str, int] = {}  # how often each prompt was drawn: the next is another

    def take(self, line: str) -> None:
        """Do what a line says; ConfigError where it makes no sense."""
        if line.startswith(":"):
            self._command(*line[1:].strip().partition(" ")[::2])
            return
        prompt = unescaped(line) if line.strip() else self.last
        if prompt is None:
            raise ConfigError("type a prompt first; :help says what else there is")
        self.last = check_text(prompt)
        self._answer(prompt)

    def _answer(self, prompt: str) -> None:
        row = {self.trial.session.config.prompts.column: prompt, **self.columns}
        key = json.dumps([prompt, self.trial.seed])
        draw = self.times.get(key, 0)
        for pair in self.trial.pairs([row], self.samples, draw):
            shown.put(
                self.console,
                shown.pair(pair, self.console, samples=self.samples, with_prompt=False),
            )
        self.times[key] = draw + 1
        shown.put(self.console, Text())

    def _command(self, name: str, rest: str) -> None:
        rest = rest.strip()
        if name in ("quit", "q", "exit"):
            raise Leave
        if name in ("help", "h", "?"):
            shown.put(self.console, Text(HELP))
        elif name == "samples":
            self.samples = whole(name, rest, least=1)
        elif name == "seed":
            self.trial.seed = whole(name, rest, least=0)
        elif name == "columns":
            columns = parsed_columns(rest)
            check_columns(columns, self.trial.session.reward_set.entries)
            self.columns = columns
        else:
            raise ConfigError(f":{name} is unknown; there are :samples, :seed, :columns, :help "
                              "and :quit")  # fmt: skip


def talk(
    trial: Trial,
    console: Console,
    about: Text,
    samples: int,
    columns: dict[str, Any],
    ask: Callable[[str], str] = input,
) -> None:
    """Answer prompts until the end of the input; no error but the end of the terminal ends it."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - its import gives `input` its editing and history
    shown.put(console, about)
    shown.put(
        console, Text("Type a prompt; an empty line draws again, :help lists more, Ctrl-D ends.")
    )
    here = Talk(trial, samples, columns, console)
    while True:
        try:
            line = ask("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError as error:
            tell(error)
            continue
        try:
            here.take(line)
        except Leave:
            return
        except KeyboardInterrupt:
            print("\nstopped")
        except BrokenPipeError:
            raise
        except Exception as error:
            tell(error)


def tell(error: Exception) -> None:
    """One line on what went wrong; whoever types goes on."""
    known = last_line(error).partition("; the traceback is above")[0]
    print(printable(known), file=sys.stderr, flush=True)


def unescaped(line: str) -> str:
    """What was typed, with the line breaks and backslashes that it spells out."""
    return re.sub(r"\\([n\\:t])", lambda match: ESCAPES[match[1]], line)


def whole(name: str, text: str, least: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise ConfigError(f":{name} {text}: give a whole number from {least} on, as :{name} 3")
    return int(text)
