"""A run's checkpoints: when one is due, which one is best, from which one it goes on."""

import logging
import math
from pathlib import Path
from typing import Any

from rlalign.audit import Audit
from rlalign.checkpoint import (
    best,
    load_checkpoint,
    mark_best,
    newest_sound,
    rewind,
    save_checkpoint,
)
from rlalign.evaluate import Evaluation
from rlalign.runs import RunFolder
from rlalign.saving import restore_training, training_state
from rlalign.tracking import finite
from rlalign.trainer import Trainer

logger = logging.getLogger(__name__)
# An iteration's row of metrics and its samples' rows.
Learned = tuple[dict[str, float], list[dict[str, Any]]]


class RunCheckpoints:
    """Saves and restores all that a run's next iteration depends on; only rank 0 writes."""

    def __init__(self, trainer: Trainer, audit: Audit, folder: RunFolder) -> None:
        self.trainer, self.audit, self.folder = trainer, audit, folder
        self.config, self.ranks = trainer.session.config, trainer.session.ranks
        self._saved = -1  # the iteration that was saved last

    def save_if_due(self, evaluation: Evaluation | None, is_last: bool) -> None:
        """After an iteration: where the settings ask for one, and where it is the best so far."""
        iteration, metric = self.trainer.iteration, self.config.checkpoint.best
        if self.trainer.target.moments and metric in ("eval/score", "eval/objective"):
            metric = None  # lambdas move, so scores of two evaluations are of two targets
        value = evaluation.stats.get(metric) if evaluation and metric else None
        if evaluation and metric and value is None and self.ranks.is_main:
            logger.warning(
                "checkpoint.best=%s is no metric of an evaluation; there are: %s",
                metric,
                ", ".join(evaluation.stats),
            )
        is_best = value is not None and math.isfinite(value) and self._beats_best(metric, value)
        every = self.config.checkpoint.every
        is_due = (every and iteration % every == 0) or is_last
        if not (is_due or is_best):
            return
        path = self.save()
        if path is not None and is_best and metric is not None and value is not None:
            mark_best(self.folder.checkpoints, path, metric, value)

    def save_before_stop(self, learned: Learned | None) -> None:
        """Save where the last checkpoint is older, with what an iteration has still to record."""
        if learned is not None or self._saved != self.trainer.iteration:
            self.save(learned)

    def save(self, learned: Learned | None = None) -> Path | None:
        """Write a checkpoint now; its folder, on rank 0."""
        tensors, state = training_state(self.trainer)
        state["audit"] = self.audit.state_dict()
        if learned is not None:
            state["learned"] = {"row": finite(learned[0]), "rows": finite(learned[1])}
        self._saved = self.trainer.iteration
        path = None
        if self.ranks.is_main:
            root, keep = self.folder.checkpoints, self.config.checkpoint.keep
            path = save_checkpoint(root, self.trainer.iteration, tensors, state, keep=keep)
        self.ranks.wait()
        return path

    def resume(self) -> Learned | None:
        """Go on from the checkpoint that run.resume asks for.

        Returned is what was learned when the run was stopped, but neither evaluated nor recorded.
        """
        resume = self.config.run.resume
        if resume == "never":
            return None
        answer: tuple[str, str] = ("", "")
        if self.ranks.is_main:
            found = newest_sound(self.folder.checkpoints) if resume == "auto" else Path(resume)
            answer = ("" if found is None else str(found), "")
        path, _ = self.ranks.from_main(answer)
        if not path:
            logger.info("%s has no checkpoint yet: starting fresh", self.folder.path)
            return None
        checkpoint = load_checkpoint(Path(path))
        restore_training(self.trainer, checkpoint)
        if "audit" in checkpoint.state:  # else it is older than the audit, which begins here
            self.audit.load_state_dict(checkpoint.state["audit"])
        if self.ranks.is_main:
            # Later checkpoints belong to a future that this run has left.
            rewind(self.folder.checkpoints, self.trainer.iteration)
        self._saved = self.trainer.iteration
        logger.info("resumed from %s after iteration %d", path, self.trainer.iteration)
        learned = checkpoint.state.get("learned")
        if learned is None:
            return None
        row = {name: math.nan if x is None else x for name, x in learned["row"].items()}
        return row, learned["rows"]

    def _beats_best(self, metric: str | None, value: float) -> bool:
        held = best(self.folder.checkpoints) if self.ranks.is_main else None
        is_better = held is None or held.metric != metric or value > held.value
        return bool(self.ranks.from_main(is_better))
