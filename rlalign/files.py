"""Files that are whole or not there: atomic writes, strict JSON, folders sealed by a manifest."""

import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MANIFEST = "manifest.json"
FORMAT = 1
ADVICE = (
    "make room there, or name another folder; a named run goes on from its last checkpoint with "
    "--run.resume=auto"
)


class FileError(RuntimeError):
    """A file is missing, altered, or not of the form that it should have; the message names it."""


class DiskError(OSError):
    """Something could not be written; the message says what, why, and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def writing_to(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Within it a failed write is a DiskError that names `path`."""
    try:
        yield
    except DiskError:
        raise
    except (OSError, SafetensorError) as error:
        raise DiskError(
            number_of(error), f"{path} could not be written: {reason_of(error)}; {advice}"
        ) from error


def number_of(error: OSError | SafetensorError) -> int:
    """The system's number of what went wrong, 0 if unknown; safetensors only writes it out."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0


def reason_of(error: OSError | SafetensorError) -> str:
    number = number_of(error)
    return os.strerror(number) if number else str(error)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a crash, sees the old or the new in whole.

    Several processes may do so at once; the last one's text stays.
    """
    writing = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # each has its own
    with writing_to(path):
        try:
            with open(writing, "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(writing, path)
        except BaseException:
            writing.unlink(missing_ok=True)
            raise
        fsync(path.parent)


def make_folder(path: Path) -> None:
    """`path` and what is missing above it, each entry flushed to the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)


def links_out_of(folder: Path, below: str) -> list[Path]:
    """The symbolic links in a folder, at any depth, through which a write would leave it.

    What lies below its folder `below` is left to whoever keeps that.
    """
    root, left_out = folder.resolve(), folder / below
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    return sorted(
        path
        for path in links
        if left_out not in path.parents and not path.resolve().is_relative_to(root)
    )


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's entries, outlast a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The hash of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; NaN, infinity and a key that stands twice are refused."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice in one of its objects")
        return found

    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("there is no such file")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise FileError(f"{path} holds no JSON object")
    return content


def check_json(value: object, where: str) -> None:
    """Refuse what JSON would alter without a word: NaN, keys that are no strings, other types."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise FileError(f"{where} has the key {key!r}; keys are strings")
            check_json(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_json(item, f"{where}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise FileError(f"{where} is {value}, which JSON does not hold")
    elif not (value is None or isinstance(value, (str, int))):
        raise FileError(f"{where} is a {type(value).__name__}, which JSON does not hold")


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest: size and sha256 of each file in `folder`, all flushed to the disk."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise FileError(f"{path} is a symbolic link; its target would not be kept")
        fsync(path)  # folders too, so that their entries last
        if path.is_file() and path != folder / MANIFEST:
            name = path.relative_to(folder).as_posix()
            files[name] = {"sha256": sha256(path), "size": path.stat().st_size}
    manifest = {"format": FORMAT, **about, "files": files}
    manifest["sha256"] = _hash_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    fsync(folder / MANIFEST)
    fsync(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed folder, its form checked; the files are not."""
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files")
    if manifest.pop("sha256", None) != _hash_of(manifest):
        raise FileError(f"{folder / MANIFEST} is not what was written: its sha256 differs")
    if (
        manifest.get("format") != FORMAT
        or not isinstance(files, dict)
        or not all(_stays_inside(name) and _is_entry(entry) for name, entry in files.items())
    ):
        raise FileError(f"{folder / MANIFEST} is not a manifest of format {FORMAT}")
    return manifest


def has_all_files(folder: Path) -> bool:
    """Whether a folder was sealed and its files still have their sizes; a quick look, no hashes."""
    try:
        files = read_manifest(folder)["files"]
        return all((folder / name).stat().st_size == entry["size"] for name, entry in files.items())
    except (FileError, OSError):
        return False


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed folder, once every file's size and sha256 have been checked.

    Nothing else may lie in the folder, no link, and no pipe.
    """
    manifest = read_manifest(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or name in {*manifest["files"], MANIFEST}):
            raise FileError(f"{path} was not written with the rest; take it out of the folder")
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.exists():
            raise FileError(f"{path} is missing")
        if not stat.S_ISREG(path.lstat().st_mode):
            raise FileError(f"{path} is no regular file")
        size = path.stat().st_size
        if size != entry["size"]:
            raise FileError(f"{path} has {size} bytes; {entry['size']} were written")
        if sha256(path) != entry["sha256"]:
            raise FileError(f"{path} is not what was written: its sha256 differs")
    return manifest


def _hash_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("size"), int)
    )


def _stays_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def encodable(text: str) -> str:
    """`text` with half surrogate pairs, which have no UTF-8, written out as JSON escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
