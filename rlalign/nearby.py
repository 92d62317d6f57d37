"""The file or run that a misspelt path most likely meant, as the end of a message about it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rlalign.settings.schema import nearest

RUN_FILES = ("run.json", "eval.json", "config.yaml")
MOST = 2000  # entries of a folder that are compared


def file_hint(path: str | Path, elsewhere: str = "experiments") -> str:
    """`; did you mean experiments/a.yaml?`, or nothing; a bare name is looked for there, too."""
    return _hint(path, Path.is_file, elsewhere)


def folder_hint(path: str | Path) -> str:
    return _hint(path, Path.is_dir, "")


def run_hint(path: str | Path) -> str:
    """The run that was meant: by its path, or by its name alone, which lies in `runs`."""
    return _hint(path, is_run, "runs")


def checkpoint_hint(path: str | Path) -> str:
    return _hint(path, lambda found: (found / "manifest.json").is_file(), "")


def is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in RUN_FILES)


def _hint(path: str | Path, fits: Callable[[Path], bool], elsewhere: str) -> str:
    typed = Path(path)
    places = [typed]
    if elsewhere and typed.parent == Path():
        places.append(Path(elsewhere) / typed)
    for place in places:
        try:
            found = _walk(place)
        except (OSError, RuntimeError, ValueError):  # too long, NUL, no such user
            return ""
        if found is not None and found != typed and fits(found.expanduser()):
            return f"; did you mean {found}?"
    return ""


def _walk(path: Path) -> Path | None:
    """The path with each part that is not there replaced by the nearest one that is."""
    here = Path(path.anchor) if path.is_absolute() else Path()
    parts = path.parts[1:] if path.is_absolute() else path.parts
    for part in parts:
        if (here / part).expanduser().exists():
            here /= part
            continue
        names = sorted(entry.name for entry in here.expanduser().iterdir())[:MOST]
        close = _nearest_name(part, names)
        if close is None:
            return None
        here /= close
    return here


def _nearest_name(name: str, names: Sequence[str]) -> str | None:
    """By what comes before the ending, which all files of a kind share."""
    stem, ending = Path(name).stem, Path(name).suffix
    stems = {Path(other).stem: other for other in names if Path(other).suffix == ending}
    if close := nearest(stem, stems):
        return stems[close]
    return next((other for other in names if Path(other).stem == stem), None)
