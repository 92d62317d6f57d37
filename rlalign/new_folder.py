"""A folder that a command makes: nothing is overwritten, and it is there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlalign.files import fsync, make_folder, writing_to
from rlalign.problems import ConfigError, shown

ADVICE = "make room there, or name another folder"


def new_folder(name: str) -> Path:
    """The path, which is not there yet or empty; ConfigError says what else it is."""
    if not name.strip():
        raise ConfigError("the folder's name is empty; name one, such as my-folder")
    if any(not c.isprintable() for c in name):
        raise ConfigError(f"{shown(name)}: the name holds a character that cannot be shown; leave "
                          "line breaks and control characters out")  # fmt: skip
    try:
        path = Path(name).expanduser()
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"{name} is a link to nothing; remove it, or name another folder")
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{name} is a file; name a folder that is not there yet")
        if path.is_dir() and any(path.iterdir()):
            raise ConfigError(f"{name} holds files already, and none is overwritten; name another "
                              "folder")  # fmt: skip
        above = next(folder for folder in path.absolute().parents if folder.exists())
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{shown(name)} is no name for a folder: {reason}") from error
    if not above.is_dir():
        raise ConfigError(f"{name} would lie in {above}, which is a file; name another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{name} would lie in {above}, where you may not write; name another "
                          "place")  # fmt: skip
    return path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` at the end, or is gone after an error.

    DiskError where something does not fit.
    """
    with writing_to(path, ADVICE):
        make_folder(path.absolute().parent)
        writing = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.absolute().parent))
        try:
            yield writing
            mask = os.umask(0)
            os.umask(mask)
            writing.chmod(0o777 & ~mask)  # mkdtemp and safetensors let only the owner in
            for file in sorted(writing.rglob("*")):
                file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
                fsync(file)
            fsync(writing)
            if path.is_dir():  # empty, and perhaps where somebody stands
                for file in sorted(writing.iterdir()):
                    os.rename(file, path / file.name)
                fsync(path)
            else:
                os.rename(writing, path)
            fsync(path.absolute().parent)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
