"""Which run of ours a command line starts, if any."""

import re
from collections.abc import Sequence
from pathlib import Path

LAUNCHER = re.compile(r"(?:.*/)?launch/(\w+)\.py|rlalign\.(\w+)")
# What a method's settings are those of; TRL's trainers take a PPO run's.
RUN_OF = {"ppo": "ppo", "dpg": "dpg", "reinforce": "reinforce", "grpo": "ppo", "rloo": "ppo"}


def our_run(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The method that a command line trains by, and the arguments of its run; None if not ours."""
    for index, word in enumerate(words):
        if (found := LAUNCHER.fullmatch(word)) and _is_ours(word):
            method, rest = found[1] or found[2], words[index + 1 :]
        elif Path(word).name == "rlalign" and len(words) > index + 1:
            method, rest = words[index + 1], words[index + 2 :]
        else:
            continue
        if method in RUN_OF:
            return method, list(rest)
    return None


def can_resume(words: Sequence[str]) -> bool:
    """Whether the run of a command line can go on from a checkpoint; TRL's trainers' cannot."""
    found = our_run(words)
    return found is None or found[0] not in ("grpo", "rloo")


def _is_ours(word: str) -> bool:
    """Whether a launcher starts this package, or only has the name of one that does."""
    if not word.endswith(".py"):
        return True
    try:
        return "rlalign" in Path(word).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
