"""`rlalign report`: a run, or several, as one HTML file that needs nothing beside it."""

import logging
from collections.abc import Sequence
from pathlib import Path

from rlalign.compare import labelled
from rlalign.exits import run_safely
from rlalign.files import write_atomically
from rlalign.problems import ConfigError
from rlalign.report.page.document import document
from rlalign.report.page.record import read_run
from rlalign.report.visible import visible
from rlalign.runs import RunFolder

logger = logging.getLogger(__name__)


def main(runs: Sequence[str], out: str | None, samples: int) -> int:
    """Write the page and say where; the exit code of `rlalign.exits`."""
    return run_safely(lambda: report(runs, out, samples))


def report(runs: Sequence[str], out: str | None, samples: int) -> None:
    """Put runs on one page; raises ConfigError where one is none, or nobody said where to."""
    folders = labelled(runs)
    if not folders:
        raise ConfigError("name a run's folder or more, as in `rlalign report runs/NAME`")
    if out is None and len(folders) > 1:
        raise ConfigError(
            f"{len(folders)} runs on one page: say by --out where it goes, as in --out report.html"
        )
    share = samples // len(folders)
    records = [read_run(folder, label, share) for label, folder in folders.items()]
    page = Path(out).expanduser() if out else RunFolder(next(iter(folders.values()))).report_html
    if not page.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {page.parent}; make it first")
    if page.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it, as {out}/report.html")
    write_atomically(page, document(records, samples))
    print(f"report  {visible(str(page))}")
