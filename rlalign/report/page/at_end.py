"""The report that a run writes of itself."""

import logging

from rlalign.files import write_atomically
from rlalign.report.page.document import document
from rlalign.report.page.record import read_run
from rlalign.runs import RunFolder

logger = logging.getLogger(__name__)

SAMPLES = 5000  # in a page, unless somebody asks for more


def write_report(folder: RunFolder) -> None:
    """`report.html` of a run that is over: a failure is said, and takes nothing from the run.

    A run that ended before its first row has none.
    """
    try:
        if not folder.metrics_jsonl.exists() or not folder.metrics_jsonl.stat().st_size:
            return
        record = read_run(folder.path, folder.name, SAMPLES)
        write_atomically(folder.report_html, document([record], SAMPLES))
        logger.info("the run as a page: %s", folder.report_html)
    except Exception as error:
        logger.warning("no report.html was written: %s", error)
