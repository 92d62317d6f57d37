"""`rlalign sweep`: a W&B sweep file, on line or on this machine; and a folder's results again."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlalign.files import make_folder
from rlalign.problems import ConfigError
from rlalign.settings.run_section import RunSection
from rlalign.sweeps.file import DEFAULT_COMMAND, Sweep, parse_sweep, read_content
from rlalign.terminal import printable

ROOT = Path("runs/sweeps")
RESOURCES = 4  # exit code; see rlalign.exits


def main(
    file: str, local: bool, trials: int | None, name: str | None, grace: int, has_agent: bool = True
) -> int:
    """Work on a file's sweep until all its trials are done; or show what is in a folder.

    0 done, 1 where no trial gave a value, 4 where W&B's server cannot be had, 130 and 143 stopped;
    ConfigError before anything starts.
    """
    if Path(file).is_dir():
        return _show(Path(file))
    content = read_content(Path(file))
    if local:
        return _run_here(Path(file), content, trials, name, grace)
    if name is not None:
        raise ConfigError(f"--name {name!r} is the folder of a local sweep; add --local")
    from rlalign.sweeps.online import Unreachable, start
    from rlalign.sweeps.settings_check import check_settings

    _check_program(content.get("program"), content.get("command") or DEFAULT_COMMAND)
    if (sweep := _if_ours(content)) is not None:
        check_settings(sweep, needs_wandb=True)
    try:
        start(Path(file), content, trials, has_agent)
    except Unreachable as error:
        print(printable(str(error)), file=sys.stderr)
        return RESOURCES
    return 0


def _run_here(
    file: Path, content: Mapping[str, Any], trials: int | None, name: str | None, grace: int
) -> int:
    from rlalign.sweeps.queue import Queue
    from rlalign.sweeps.results import results
    from rlalign.sweeps.settings_check import check_settings
    from rlalign.sweeps.worker import Stopped, Worker

    sweep = parse_sweep(content)
    folder = ROOT / _checked_name(file, name)
    total = _total(sweep, trials)
    _check_program(sweep.program, sweep.command)
    check_settings(sweep)
    try:
        make_folder(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error}; run this elsewhere") from error
    queue = Queue(folder, sweep, total, grace)
    code = 0
    try:
        Worker(queue, sweep, folder).work()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        code = stopped.exit_code
    text, has_value = results(queue, folder)
    print(text)
    return code or int(not has_value)


def _if_ours(content: Mapping[str, Any]) -> Sweep | None:
    """The sweep; None where W&B takes more than is understood here."""
    try:
        return parse_sweep(content)
    except ConfigError:
        return None


def _show(folder: Path) -> int:
    """What is in a folder, whether its sweep is over or still runs."""
    from rlalign.sweeps.queue import Queue, sweep_in
    from rlalign.sweeps.results import results

    text, has_value = results(Queue(folder, sweep_in(folder), total=0, grace=60), folder)
    print(text)
    return int(not has_value)


def _checked_name(file: Path, name: str | None) -> str:
    try:
        return RunSection(name=file.stem if name is None else name).name
    except ValidationError as error:
        typed = f"the name {file.stem!r}, of the file," if name is None else f"--name {name!r}"
        raise ConfigError(
            f"{typed} cannot be a folder's: up to 64 letters, digits, '.', '_' and '-', a letter "
            "or digit first; give another --name"
        ) from error


def _total(sweep: Sweep, trials: int | None) -> int:
    asked = sweep.run_cap if trials is None else trials
    if sweep.method == "grid":
        return sweep.grid_size if asked is None else min(sweep.grid_size, asked)
    if asked is None:
        raise ConfigError(
            f"method={sweep.method} has no end of its own; give --trials N, or run_cap in the file"
        )
    return asked


def _check_program(program: object, command: Any) -> None:
    """Refuse a command that would fail in every trial alike."""
    is_used = isinstance(command, list | tuple) and "${program}" in map(str, command)
    if is_used and program is not None and not Path(str(program)).is_file():
        raise ConfigError(
            f"program={program!r} is no file here; start this where it is one, or correct it"
        )
    first = str(command[0]) if isinstance(command, list | tuple) else ""
    word = {"${env}": "env", "${interpreter}": "python", "${program}": str(program)}.get(
        first, first
    )
    paths = (None, str(Path(sys.executable).parent))
    if not word.startswith("${") and not any(shutil.which(word, path=path) for path in paths):
        raise ConfigError(
            f"command begins with {first!r}, which is no program here; install it, or correct the "
            "command"
        )
