"""A run's folder: where it is, what lies in it, and run.json, which says how the run was made."""

import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rewards import registry
from rlalign.files import (
    MANIFEST,
    FileError,
    fsync,
    links_out_of,
    make_folder,
    read_json,
    write_atomically,
)
from rlalign.nearby import checkpoint_hint
from rlalign.problems import CheckpointError, ConfigError
from rlalign.redact import redact_command, redact_text
from rlalign.settings.run_section import RunSection

logger = logging.getLogger(__name__)

# Written before the first number; run.json, which tells what became of the start, is the last.
BLANK = ("config.yaml", "metrics.jsonl", "samples.jsonl", "run.json")
_HELD = (
    "run.name={name!r}: {path} holds a run already; give --run.resume=auto to go on with it, "
    "or another --run.name"
)
MEANINGS = {
    0: "done",
    1: "training diverged, or a fault that has no code of its own",
    2: "configuration",
    3: "checkpoint: damaged, of another model, or no room to write it",
    4: "resources: memory, a full disk, an embedded model that cannot be fetched",
    5: "a reward failed",
    6: "a warning named in audit.stop ended the run, after a clean save",
    7: "hung: no sign of life for run.timeout seconds",
    130: "interrupted by hand",
    137: "a process was killed, or crashed",
    143: "pre-empted after a clean save",
}  # of the exit codes
Status = Literal["running", "done", "stopped", "failed", "preempted"]
_WRITING = threading.Lock()
PACKAGES = ("rlalign", "torch", "transformers", "trl", "accelerate", "peft")


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_yaml(self) -> Path:
        return self.path / "config.yaml"

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics_jsonl(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples_jsonl(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    def read_run_json(self) -> dict[str, Any]:
        """What run.json says; nothing if there is none or it is damaged."""
        if not self.run_json.exists():
            return {}
        try:
            return read_json(self.run_json)
        except FileError as error:
            logger.warning("%s; it is begun anew", error)
            return {}

    def write_run_json(self, fields: Mapping[str, Any]) -> None:
        """Merge `fields` into run.json, which a reader sees before or after, never half-written."""
        with _WRITING:  # trackers write their ids from threads of their own
            merged = {**self.read_run_json(), **fields}
            text = json.dumps(merged, indent=1, ensure_ascii=False, allow_nan=False)
            write_atomically(self.run_json, text + "\n")

    def start(
        self,
        *,
        argv: Sequence[str],
        world_size: int,
        seeds: Mapping[str, int],
        reward_files: Sequence[str | Path] = (),
        method: str | None = None,
    ) -> None:
        """Write down what began: versions, command, hashes. A resumed run keeps its first start."""
        now = _now()
        before = self.read_run_json()
        begun = {"started_at": before.get("started_at", now)}
        if before:
            begun["resumed_at"] = now
        self.write_run_json(
            {
                "name": self.name,
                "status": "running",
                "method": method,
                **begun,
                "ended_at": None,
                "exit_code": None,
                "message": None,
                "command": redact_command(argv),
                "world_size": world_size,
                "seeds": dict(seeds),
                "reward_files": {str(path): registry.sha256_of(path) for path in reward_files},
                "plugins": registry.plugins(),
                "versions": versions(),
                "git": git_commit(),
            }
        )

    def finish(
        self,
        status: Status,
        exit_code: int,
        message: str | None = None,
        where: tuple[int, str] | None = None,
    ) -> None:
        """Write down how it ended; launchers swallow the exit code, so this is where it lasts.

        `where`: the rank that ended it, and its iteration and phase. Raises DiskError only for a
        run that is done: where another error ends it, that one is told.
        """
        ended = {
            "status": status,
            "exit_code": exit_code,
            "message": redact_text(message) if message else message,
            "where": None if where is None else {"rank": where[0], "at": where[1]},
            "ended_at": _now(),
        }
        try:
            self.write_run_json(ended)
        except OSError as error:
            if status == "done":
                raise
            logger.warning("how the run ended is not on record: %s", error)


def check_run(run: RunSection) -> None:
    """Refuse what `open_run` would, before a model is loaded.

    CheckpointError where the checkpoint to go on from is none.
    """
    if run.resume not in ("never", "auto"):
        checkpoint = Path(run.resume)
        if not (checkpoint / MANIFEST).is_file():
            raise CheckpointError(
                f"run.resume={run.resume!r}: there is no checkpoint (no {MANIFEST} in it); use "
                "never, auto, or a folder such as runs/NAME/checkpoints/step-000010"
                f"{checkpoint_hint(checkpoint)}"
            )
    path = Path(run.dir) / run.name
    if run.resume == "never" and run.name != "auto" and path.is_dir() and holds_a_run(path):
        raise ConfigError(_HELD.format(name=run.name, path=path))


def open_run(run: RunSection, stem: str) -> RunFolder:
    """Make or reopen the folder of a run under `run.dir`.

    Called by one process, which tells the others the path. `stem` begins an automatic name.
    """
    root = Path(run.dir)
    try:
        make_folder(root)
    except OSError as error:
        raise ConfigError(
            f"run.dir={run.dir!r} cannot be made: {error.strerror}; name another"
        ) from error
    checkpoint = None if run.resume in ("never", "auto") else Path(run.resume)
    if run.name == "auto":
        if run.resume == "auto":
            raise ConfigError("run.resume='auto' needs run.name, to know which run to go on with")
        owner = _run_of(checkpoint) if checkpoint else None
        if owner is not None and owner.is_dir() and owner.parent.resolve() == root.resolve():
            return _without_links(owner)
        return _new_run(root, stem)
    path = root / run.name
    inside = path.resolve().parent == root.resolve()
    if not inside or path.resolve().name != run.name:
        raise ConfigError(f"run.name={run.name!r} leads out of run.dir={run.dir!r}; name a folder")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"run.name={run.name!r}: {path} is a file; choose another name")
    make_folder(path)
    goes_on = run.resume == "auto" or (checkpoint is not None and _is_of(checkpoint, path))
    if not goes_on:
        if holds_a_run(path):
            raise ConfigError(_HELD.format(name=run.name, path=path))
        for name in BLANK:  # of a start that came to nothing
            (path / name).unlink(missing_ok=True)
    return _without_links(path)


def holds_a_run(path: Path) -> bool:
    """Whether a folder has anything to lose; a run that ended before its first number has not."""
    found = {file.name: file.lstat().st_size for file in path.iterdir()}
    empty = found.get("metrics.jsonl", 0) == found.get("samples.jsonl", 0) == 0
    if not empty or found.keys() - set(BLANK):
        return True
    return bool(found) and RunFolder(path).read_run_json().get("status") != "failed"


def versions() -> dict[str, str | None]:
    """Version of Python and of each package that numbers depend on; null if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def command_line() -> list[str]:
    """How this process was started, as Python saw it; `start` hides the secrets in it."""
    return [os.path.basename(sys.executable), *sys.argv]


def git_commit(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit of the working tree, and whether files in it differ; None outside of one."""

    def git(*arguments: str) -> str:
        # A folder's own settings may name a program to run for `status`.
        command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder or Path.cwd()), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return result.stdout.strip()

    try:
        status = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(status)}
    except (OSError, subprocess.SubprocessError):
        return None


def _without_links(path: Path) -> RunFolder:
    """The run's folder; one of somebody else could have its files written over yours by links."""
    # W&B links its logs, which lie in the user's home, into folders that it makes anew each time.
    if links := links_out_of(path, below="wandb"):
        raise ConfigError(
            f"run.name={path.name!r}: {links[0]} is a link to {links[0].resolve()}, out of the "
            "run's folder; put the file there, or remove the link"
        )
    return RunFolder(path)


def _new_run(root: Path, stem: str) -> RunFolder:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:40] or "run"
    name = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    for attempt in range(1, 1000):
        path = root / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir()  # two runs of the same second: the folder tells who was first
        except FileExistsError:
            continue
        fsync(root)
        return RunFolder(path)
    raise ConfigError(f"run.dir={str(root)!r} has too many runs named {name}; give a --run.name")


def _run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in, if it lies in one."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None


def _is_of(checkpoint: Path, run: Path) -> bool:
    owner = _run_of(checkpoint)
    return owner is not None and owner.resolve() == run.resolve()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
