"""Folders that a run reads and writes: room, file systems, models and caches; and the terminal."""

import contextlib
import locale
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rewards import embedded
from rlalign.doctor.checks import GIB, Check, Finding

LITTLE = 1 * GIB  # a run of the quickstart writes a third of that
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "fuse.s3fs"}
NETWORK |= {"fuse.gcsfuse", "fuse.rclone", "fuse.goofys", "fuse.blobfuse2"}
# They hold files together, but not as a local disk does: a rename may be seen late elsewhere.
IN_MEMORY = {"tmpfs", "ramfs"}
NARROW = 60  # columns; tables fold below


def hub_home(environment: Mapping[str, str]) -> Path:
    """The folder of Hugging Face's libraries: what they keep, and accelerate's settings."""
    users = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("HF_HOME") or f"{users}/huggingface").expanduser()


def disk(folder: str) -> Check:
    """Room for the runs, and whether files can be put there whole: fsync, then rename."""
    place = existing(folder)
    free = shutil.disk_usage(place).free
    kind = file_system(place)
    says = f"{free / GIB:.1f} GiB free for {folder}/" + (f" ({kind})" if kind else "")
    findings = []
    if fault := try_writing(place):
        fix = "name a folder that you can write to: --run.dir=FOLDER"
        findings.append(Finding(f"{place}: {fault}", fix, 4))
    elif kind in NETWORK:
        what = f"{folder}/ lies on a network file system ({kind}): saving waits for it, and after "
        what += "a crash there may be less than was saved"
        findings.append(Finding(what, "keep runs on a local disk, --run.dir=FOLDER; copy later"))
    elif kind in IN_MEMORY:
        what = f"{folder}/ lies in memory ({kind}): it takes RAM, and a restart empties it"
        findings.append(Finding(what, "name a disk: --run.dir=FOLDER"))
    if free < LITTLE and not fault:
        fix = "make room, or name another disk: --run.dir=FOLDER"
        findings.append(Finding(f"{free / GIB:.1f} GiB is little for checkpoints", fix))
    return Check("disk", says, findings)


def existing(folder: str | Path) -> Path:
    """The folder, or the nearest above it that is there."""
    path = Path(folder).expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def disk_free(folder: str) -> int:
    """Bytes free where the folder is or would be."""
    return shutil.disk_usage(existing(folder)).free


def try_writing(folder: Path) -> str:
    """What goes wrong when a file is written, flushed and renamed in a folder; "" if nothing."""
    try:
        with tempfile.TemporaryDirectory(prefix=".rlalign-doctor-", dir=folder) as scratch:
            written = Path(scratch, "written")
            with written.open("wb") as file:
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
            written.replace(Path(scratch, "renamed"))
            descriptor = os.open(scratch, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        return f"a file cannot be written there whole: {error.strerror}"
    return ""


def file_system(place: Path, root: Path = Path("/")) -> str:
    """The kind of file system that a path lies on, as the kernel names it; "" where unknown."""
    try:
        text = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    best, kind = -1, ""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        mounted = fields[4].replace("\\040", " ")
        # A later line with the same place is mounted over the earlier one.
        if place.is_relative_to(mounted) and len(mounted) >= best:
            best, kind = len(mounted), after.split()[0]
    return kind


# -- caches ----------------------------------------------------------------------------------------


def models() -> Check:
    """Embedded models that are at hand, whole by their hashes; a run fetches the others."""
    folder = embedded.cache_dir()
    present: list[str] = []
    absent: list[str] = []
    damaged: list[str] = []
    for name in embedded.names():
        if embedded.is_prepared(name):
            present.append(name)
        else:
            (damaged if embedded.is_there(name) else absent).append(name)
    findings = []
    for names, what in ((absent, "not in the cache yet"), (damaged, "damaged in the cache")):
        if names:
            fix = f"to fetch now: python -m rewards.embedded {' '.join(names)}"
            findings.append(Finding(f"{', '.join(names)}: {what}", fix))
    if (absent or damaged) and (fault := try_writing(existing(folder))):
        fix = "export RLALIGN_CACHE=FOLDER, one that you can write to"
        findings.append(Finding(f"{existing(folder)}: {fault}", fix, 4))
    says = f"{', '.join(present)}: whole" if present else "none"
    return Check("models", f"{says}, in {short(folder)}", findings)


def hub_cache(environment: Mapping[str, str]) -> Check:
    """Where models of the hub are kept, and whether they can be."""
    home = hub_home(environment)
    folder = Path(environment.get("HF_HUB_CACHE") or home / "hub").expanduser()
    says, findings = short(folder), []
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        says += "; HF_HUB_OFFLINE: only what is there is used"
    elif fault := try_writing(existing(folder)):
        what = f"{short(existing(folder))}: {fault}; models of the hub cannot be fetched"
        findings.append(Finding(what, "export HF_HOME=FOLDER, one that you can write to"))
    if fault := try_writing(Path(tempfile.gettempdir())):
        what = f"{tempfile.gettempdir()}, the folder for temporary files: {fault}"
        findings.append(Finding(what, "export TMPDIR=FOLDER, one that you can write to", 4))
    return Check("hub cache", says, findings)


def short(path: Path) -> str:
    """A path as one types it, with ~ for the home folder."""
    with contextlib.suppress(ValueError, RuntimeError):
        return f"~/{path.relative_to(Path.home())}"
    return str(path)


# -- the terminal ----------------------------------------------------------------------------------


def terminal(environment: Mapping[str, str]) -> Check:
    encoding = (sys.stdout.encoding or "ascii").lower()
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return judge_terminal(environment, encoding, locale.getpreferredencoding(False), columns)


def judge_terminal(
    environment: Mapping[str, str], encoding: str, files: str, columns: int | None
) -> Check:
    """`files` is the encoding in which Python opens a file that names none."""
    findings = []
    names = {name.lower().replace("_", "-").replace("utf8", "utf-8") for name in (encoding, files)}
    if names != {"utf-8"}:
        what = f"text is {' and '.join(sorted(names))} here, not UTF-8: samples are shown as \\x.."
        findings.append(Finding(what, "export PYTHONUTF8=1 LANG=C.UTF-8"))
    if columns is not None and columns < NARROW:
        what = f"{columns} columns are few: tables fold"
        findings.append(Finding(what, "widen the window to 80 columns"))
    where = f"{columns} columns" if columns is not None else "not a terminal"
    dumb = ", TERM=dumb: no colours" if environment.get("TERM") == "dumb" else ""
    return Check("terminal", f"{where}, {encoding}{dumb}", findings)
