"""What `rlalign rewards train` is told, and which of it does not go together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlalign.problems import ConfigError

Kind = Literal["topic", "style"]
Method = Literal["tfidf", "embedding", "encoder"]
Features = Literal["words", "characters"]
MODEL = "all-minilm-l6-v2"  # 22 million weights from a package: sentence encoder, or base to tune
LR, BATCH_SIZE, MAX_LENGTH = 5e-5, 16, 256
HELD_OUT = (0.05, 0.5)
# Of which methods a setting is.
BELONGS = {
    "features": ("tfidf",),
    "model": ("embedding", "encoder"),
    "epochs": ("encoder",),
    "lr": ("encoder",),
    "batch_size": ("encoder",),
    "max_length": ("encoder",),
}


@dataclass(frozen=True)
class Settings:
    """What `rlalign rewards train` takes; None is the method's own default."""

    data: Path
    out: Path
    text: str = "text"
    label: str = "label"
    kind: Kind = "topic"
    method: Method = "tfidf"
    features: Features | None = None
    model: str | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    max_length: int | None = None
    held_out: float = 0.2
    seed: int = 0
    balanced: bool = False
    overwrite: bool = False


def check(settings: Settings) -> None:
    """Refuse settings that do not go together, before anything is read."""
    for name, methods in BELONGS.items():
        value = getattr(settings, name)
        if value is not None and settings.method not in methods:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value} belongs to --method {' or '.join(methods)}, "
                f"and the method is {settings.method}; remove it"
            )
    low, high = HELD_OUT
    if not low <= settings.held_out <= high:
        raise ConfigError(
            f"--held-out {settings.held_out:g} is the share of texts to measure on; give "
            f"{low:g} to {high:g}"
        )
    if settings.lr is not None and not 0 < settings.lr < 1:
        raise ConfigError(f"--lr {settings.lr:g} must lie between 0 and 1; {LR:g} is usual")
    if settings.text == settings.label:
        raise ConfigError(
            f"--text {settings.text} and --label {settings.label} are the same column; name two"
        )


def locate(model: str) -> str:
    """An embedded name or a hub id as it is; a directory as an absolute path, to be found later."""
    from rewards import embedded  # late: `--help` and completion need none of it

    path = Path(model).expanduser()
    if embedded.is_embedded(model) or not path.is_dir():
        return model
    return str(path.absolute())
