"""`rlalign sweep FILE --local`: a W&B sweep file run on this machine, without an account."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from rlalign.files import make_folder
from rlalign.problems import ConfigError
from rlalign.settings.run_section import RunSection
from rlalign.sweeps.file import Sweep, command_line, read_sweep
from rlalign.terminal import printable

if TYPE_CHECKING:
    from rlalign.sweeps.queue import Told

ROOT = Path("runs/sweeps")


def main(file: str, local: bool, trials: int | None, name: str | None, grace: int) -> int:
    """Work on the sweep until all its trials are done, and print them.

    0 done, 1 where no trial gave a value, 130 and 143 stopped; ConfigError before anything starts.
    """
    if not local:
        raise ConfigError(
            f"rlalign sweep {file} needs --local; W&B's own way is: wandb sweep {file}, "
            "then wandb agent ID"
        )
    from rlalign.sweeps.queue import Queue
    from rlalign.sweeps.worker import Stopped, Worker

    sweep = read_sweep(Path(file))
    folder = ROOT / _checked_name(Path(file), name)
    total = _total(sweep, trials)
    _check_program(sweep, folder)
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
    table = queue.table()
    print(printable(table_text(sweep, table, folder)))
    return code or int(not any(trial.state == "done" for trial in table))


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


def _check_program(sweep: Sweep, folder: Path) -> None:
    """Refuse a command that would fail in every trial alike."""
    if sweep.program is not None and not Path(sweep.program).is_file():
        raise ConfigError(
            f"program={sweep.program!r} is no file here; start this where it is one, or correct it"
        )
    first = [*command_line(sweep, {}, folder), ""][0]
    if not any(shutil.which(first, path=path) for path in (None, str(Path(sys.executable).parent))):
        raise ConfigError(
            f"command begins with {sweep.command[0]!r}, which is no program here; install it, or "
            "correct the command"
        )


def table_text(sweep: Sweep, table: Sequence["Told"], folder: Path) -> str:
    """The trials a line each, then why some failed, then the best."""
    rows = [["trial", "state", sweep.metric, "folder", "parameters"]]
    for trial in table:
        value = "-" if trial.value is None else f"{trial.value:.6g}"
        values = " ".join(f"{name}={each}" for name, each in trial.values.items())
        rows.append([str(trial.number), trial.state, value, str(folder / trial.folder), values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [f"trial {trial.number}: {trial.reason}" for trial in table if trial.reason]
    done = {trial.number: trial.value for trial in table if trial.value is not None}
    if done:
        pick = max if sweep.goal == "maximize" else min
        best = pick(done, key=lambda number: done[number])
        lines.append(f"best: trial {best}, {sweep.metric}={done[best]:.6g}")
    else:
        lines.append(f"no trial gave a value of {sweep.metric}")
    return "\n".join(lines)
