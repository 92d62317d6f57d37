"""The faults of one configuration: gathered, told apart by setting, raised together."""

import reprlib
from collections.abc import Sequence

Path = Sequence[str | int]

SHOWN = 50  # messages, after which no more are looked for


class _Repr(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write out what has more than 4300 digits."""
        return repr(x) if x.bit_length() <= 256 else f"(an integer of {x.bit_length()} bits)"


_repr = _Repr()
_repr.maxstring = _repr.maxother = 80
_repr.maxlist = _repr.maxdict = 8


class ConfigError(ValueError):
    """A configuration is wrong; each line names a setting, its value, the rule and the fix."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written whole, or is not what was written."""


class Problems:
    """Messages by setting, in the order found; the first about a setting stays."""

    def __init__(self, messages: Sequence[str] = ()) -> None:
        self._messages = {message: message for message in messages}

    def add(self, path: Path, message: str) -> None:
        self._add(dotted(path), message)

    def say(self, message: str) -> None:
        """Add a message that belongs to no one setting."""
        self._add(message, message)

    def are_about(self, path: Path) -> bool:
        """Whether there is a message about a setting or a part of it."""
        here = dotted(path)
        return any(
            key == here or key.startswith((f"{here}.", f"{here}[")) for key in self._messages
        )

    def raise_if_any(self) -> None:
        if self._messages:
            messages = list(self._messages.values())
            more = ["and more"] if len(messages) > SHOWN else []
            raise ConfigError("\n".join([*messages[:SHOWN], *more]))

    def _add(self, key: str, message: str) -> None:
        self._messages.setdefault(key, message)
        if len(self._messages) > SHOWN:  # finding the nearest setting takes a while for each
            self.raise_if_any()


def dotted(path: Path) -> str:
    """A path as one types it, `rewards.space.words[0]`; a line break in a name is spelt out."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    typed = "".join(parts).removeprefix(".")
    return typed if typed.isprintable() and (typed or not path) else repr(typed)


def shown(value: object) -> str:
    """A value as it stands in a message, long ones cut."""
    return _repr.repr(value)
