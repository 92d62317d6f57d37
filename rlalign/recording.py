"""What a run writes as it goes: its settings, run.json, a row an iteration, samples."""

import logging
from collections.abc import Sequence
from typing import Any

from rlalign.config import to_flat
from rlalign.evaluate import Evaluation
from rlalign.exits import AuditStop, Preempted, exit_code, last_line
from rlalign.files import write_atomically
from rlalign.guard.endings import Ending, found
from rlalign.redact import redacted_yaml
from rlalign.report.live import LiveView
from rlalign.report.page.at_end import write_report
from rlalign.runs import RunFolder, command_line
from rlalign.session import Session
from rlalign.tracking import Trackers, build_trackers
from rlalign.trust import changed_settings

logger = logging.getLogger(__name__)


class RunRecorder:
    """The files of a run, its trackers and the terminal; on other ranks than the first, nothing."""

    def __init__(self, session: Session, folder: RunFolder, quiet: bool) -> None:
        self.config, self.ranks, self.folder = session.config, session.ranks, folder
        self.is_main = session.ranks.is_main
        self.held_out = session.evaluates_on_held_out
        self.is_begun = False  # whether run.json speaks of this call
        self._trackers: Trackers | None = None
        total, names = session.config.train.iterations, list(session.reward_set.names)
        self.view = LiveView(total, names, quiet=quiet or not self.is_main)

    def begin(self, method: str) -> None:
        """Write down what is about to run."""
        config, folder = self.config, self.folder
        if not self.is_main:
            return
        if changed := changed_settings(config, folder.config_yaml):
            logger.warning("resumed with other settings than before: %s", ", ".join(changed))
        self.is_begun = True
        found(folder.path)
        write_atomically(folder.config_yaml, redacted_yaml(config))
        folder.start(
            argv=command_line(),
            world_size=self.ranks.size,
            seeds={"train.seed": config.train.seed},
            reward_files=config.reward_files,
            method=method,
        )
        self.note(held_out_prompts=self.held_out)

    def start_trackers(self, kept: int) -> None:
        """Rows up to iteration `kept` stay. After the fit: what cannot be had leaves nothing."""
        if self.is_main:
            told = to_flat(self.config), redacted_yaml(self.config)
            self._trackers = build_trackers(self.config.trackers, self.folder, *told, kept)

    def note(self, **fields: Any) -> None:
        """Merge fields into run.json."""
        if self.is_main:
            self.folder.write_run_json(fields)

    def record(
        self,
        row: dict[str, float],
        train_rows: Sequence[dict[str, Any]],
        evaluation: Evaluation | None,
    ) -> None:
        """A row of metrics, and the samples that it speaks of."""
        if not self.is_main:
            return
        assert self._trackers is not None
        step = int(row["iteration"])
        rows = [{"iteration": step, "split": "train"} | r for r in train_rows]
        if evaluation is not None:
            row = row | evaluation.stats
            rows += [{"iteration": step, "split": "eval"} | r for r in evaluation.rows]
        self._trackers.log(step, row)
        self._trackers.samples(step, rows)
        self.view.iteration(row)
        if evaluation is not None or not self.config.eval.every:
            self.view.samples(train_rows if evaluation is None else evaluation.rows)

    def done(self, stopped: str | None) -> None:
        """The run came to its end, or was stopped by a warning of the audit."""
        # run.json first: W&B reads from it how the run ended.
        if self.is_main and stopped is None:
            self.folder.finish("done", 0)
        elif self.is_main:
            self.folder.finish("stopped", exit_code(AuditStop()), stopped)
        if self.is_main:
            write_report(self.folder)
        if self._trackers is not None:
            self._trackers.close()

    def failed(self, ending: Ending) -> None:
        """The run ends badly."""
        if self.is_main and (self.is_begun or not self.folder.run_json.exists()):
            error, where = ending.error, (ending.rank, ending.where)
            is_told = isinstance(error, Preempted)  # that it can go on is what its status says
            message = str(error) if is_told else last_line(error)
            self.folder.finish(ending.status, exit_code(error), message, where)
        if self._trackers is not None:
            # Seconds for W&B to upload the rest; who waits for this process would kill it.
            self._trackers.close(10.0 if ending.status == "preempted" else 3.0)
        if self.is_main and self.is_begun:
            write_report(self.folder)  # last: of all that is written it may best be missing
