"""`rlalign doctor`: whether a run can start here, what it will take, and what to change.

The machine is looked at without torch, in about a second; what a configuration asks of it takes
longer, and only where settings are given.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from rlalign.config import ConfigError, load_config
from rlalign.doctor.checks import Check, Finding, exit_code
from rlalign.doctor.machine import look
from rlalign.doctor.showing import count, make_console, show_checks
from rlalign.settings.method_sections import AnyRun
from rlalign.startup import QUICKSTART


def main(
    argv: Sequence[str], is_probing: bool = True, processes: int = 1, as_json: bool = False
) -> int:
    """Print the report; 0 where the run can start, 2 wrong configuration, 4 too few resources."""
    console = make_console()
    console.quiet = as_json
    checks = look(*surroundings(argv), processes)
    show_checks(console, "This machine", checks)
    found = [finding for check in checks for finding in check.findings]
    can_import = len(checks) > 5  # else `look` has stopped at the packages
    run: dict[str, Any] | None = None
    code = exit_code(found)
    if argv and can_import:
        from rlalign.doctor.for_run import report

        run = report(console, argv, is_probing, processes, found)
        code = run["exit_code"]
    if as_json:
        print(as_text(checks, code, run))
    else:
        conclude(console, found, code, run)
    return code


def surroundings(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Where the run would write and what it would log to; the defaults where it cannot be read."""
    try:
        config = load_config(AnyRun, argv, default=QUICKSTART)
    except ConfigError:  # told by whoever looks at the run
        config = AnyRun(rewards={})
    return config.run.dir, config.trackers


def conclude(
    console: Console, found: Sequence[Finding], code: int, run: dict[str, Any] | None
) -> None:
    what = "A run" if run is None else "This run"
    if code:
        says, style = f"{what} cannot start: see the problems.", "bold red"
    else:
        says, style = f"{what} can start.", "bold green"
    console.print(f"\n{says}", style=style, end="")
    console.print(f" The machine: {count(found)}.")
    if run is None:
        how = "For the memory and the time of a run name it: rlalign doctor --config FILE"
        console.print(how, style="dim")


def as_text(checks: Sequence[Check], code: int, run: dict[str, Any] | None) -> str:
    """Everything as JSON; `run` is null where no settings were given."""
    content = {
        "can_start": code == 0,
        "exit_code": code,
        "checks": [{"state": check.state, **asdict(check)} for check in checks],
        "run": run,
    }
    return json.dumps(content, indent=1, ensure_ascii=False)
