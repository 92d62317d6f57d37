"""Rewards that every configuration on a machine can name, once this package is installed."""

from rewards import Score, Span, reward


@reward("example.exclaims", bounds=(0, 1), example={"most": 2})
def exclaims(completions: list[str], *, most: int = 1) -> list[float]:
    """Number of exclamation marks, up to `most`, over `most`."""
    return [_exclaims(text, most) for text in completions]


def _exclaims(text: str, most: int) -> float:
    marks = [i for i, character in enumerate(text) if character == "!"][:most]
    return Score(len(marks) / most, [Span(i, i + 1, 1 / most) for i in marks])
