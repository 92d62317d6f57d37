"""A run's checkpoints: when one is due, which one is best, from which one it goes on."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rewards.contract import RewardError
from rlalign.audit import Audit
from rlalign.checkpoints.fingerprint import differences, fingerprint
from rlalign.checkpoints.folder import (
    Checkpoint,
    CheckpointError,
    best,
    load_checkpoint,
    mark_best,
    newest_first,
    rewind,
    save_checkpoint,
    set_aside,
)
from rlalign.checkpoints.saving import MismatchError, reading, restore_training, training_state
from rlalign.evaluate import Evaluation
from rlalign.runs import RunFolder
from rlalign.tracking import finite
from rlalign.trainer import Trainer

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# An iteration's row of metrics and its samples' rows.
Learned = tuple[dict[str, float], list[dict[str, Any]]]


@dataclass(frozen=True)
class Fault:
    """Why a checkpoint cannot be gone on from."""

    message: str
    is_damage: bool  # its files are not what was written; else they do not fit this run


@dataclass(frozen=True)
class Found:
    """A checkpoint that was restored, and what there is to say of it."""

    path: Path
    mark: tuple[str, float] | None  # it is the best, by this metric
    changed: list[str]  # circumstances, in words
    world_size: int  # of the run that wrote it
    learned: Learned | None  # by its last iteration, and neither evaluated nor recorded
    has_reward_states: bool


class RunCheckpoints:
    """Saves and restores all that a run's next iteration depends on; only rank 0 writes."""

    def __init__(self, trainer: Trainer, audit: Audit, folder: RunFolder) -> None:
        self.trainer, self.audit, self.folder = trainer, audit, folder
        self.session, self.config = trainer.session, trainer.session.config
        self.ranks = trainer.session.ranks
        self._made_with = fingerprint(trainer.session)
        self._saved = -1  # the iteration that was saved last

    # -- saving --------------------------------------------------------------------------------

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
        if is_due or is_best:
            self.save({"metric": metric, "value": value} if is_best else None)

    def save_before_stop(self, learned: Learned | None) -> None:
        """Save where the last checkpoint is older, with what an iteration has still to record."""
        if learned is not None or self._saved != self.trainer.iteration:
            self.save(learned=learned)

    def save(
        self, mark: dict[str, Any] | None = None, learned: Learned | None = None
    ) -> Path | None:
        """Write a checkpoint now; its folder, on rank 0. `mark`: it is the best, and by what."""
        tensors, state = training_state(self.trainer)
        if learned is not None:
            state["learned"] = {"row": finite(learned[0]), "rows": finite(learned[1])}
        self._saved = self.trainer.iteration
        state["audit"] = self.audit.state_dict()
        state["made_with"] = self._made_with
        state["best"] = mark
        state["rewards"] = self.ranks.gather([self.session.reward_set.state_dict()])
        root, iteration = self.folder.checkpoints, self.trainer.iteration

        def write() -> Path:
            path = save_checkpoint(
                root, iteration, tensors, state, keep=self.config.checkpoint.keep
            )
            if mark is not None:
                mark_best(root, path, mark["metric"], mark["value"])
            return path

        return self._on_main(write)

    def _beats_best(self, metric: str | None, value: float) -> bool:
        held = best(self.folder.checkpoints) if self.ranks.is_main else None
        is_better = held is None or held.metric != metric or value > held.value
        return bool(self.ranks.from_main(is_better))

    # -- going on ------------------------------------------------------------------------------

    def resume(self) -> Learned | None:
        """Go on from the checkpoint that run.resume asks for, on all ranks from the same.

        `auto` passes over what is damaged or does not fit, and sets it aside. Returned is what was
        learned when the run was stopped, but neither evaluated nor recorded. Raises
        CheckpointError where there are checkpoints and none can be gone on from.
        """
        resume = self.config.run.resume
        if resume == "never":
            return None
        root = self.folder.checkpoints
        offered: list[Path] = [] if resume == "auto" else [Path(resume)]
        if resume == "auto" and self.ranks.is_main:
            offered = newest_first(root)
        offered = self.ranks.from_main(offered)
        if not offered:
            logger.info("%s has no checkpoint yet: starting fresh", self.folder.path)
            return None
        faults: list[Fault] = []
        for path in offered:
            found = self._try(path)
            if isinstance(found, Found):
                self._go_on(found, offered[: len(faults)])
                return found.learned
            faults.append(found)
            if self.ranks.is_main and resume == "auto":
                logger.warning("a checkpoint was passed over: %s", found.message)
        if resume != "auto" and faults[0].is_damage:
            raise CheckpointError(
                f"{faults[0].message}; name another, or give --run.resume=auto, which goes on from "
                "the newest sound one"
            )
        if not any(fault.is_damage for fault in faults):
            raise CheckpointError(faults[0].message)
        raise CheckpointError(
            f"none of the {len(faults)} checkpoints in {root} is sound, and nothing was changed: "
            + "; ".join(fault.message for fault in faults)
            + f". Put a sound copy back; or start over, under another --run.name, or under this "
            f"one once {self.folder.path} is moved away"
        )

    def _try(self, path: Path) -> Found | Fault:
        """Restore from one checkpoint; why not, if it fails on any rank.

        What a failed try has put in place, the next one replaces.
        """
        found: Found | None = None
        kind = "damage"
        told: list[tuple[str, str]] = []
        try:
            checkpoint = load_checkpoint(path)
            kind = "misfit"
            restore_training(self.trainer, checkpoint)
            found = self._restore_rest(checkpoint)
        except MismatchError as error:
            told.append(("mismatch", str(error)))
        except CheckpointError as error:
            told.append((kind, str(error)))
        except RewardError as error:  # its state is not one that it takes
            told.append((kind, f"{path}: {error}"))
        for kind, message in self.ranks.gather(told):
            if kind == "mismatch":
                raise MismatchError(message)
            return Fault(message, kind == "damage")
        assert found is not None
        return found

    def _restore_rest(self, checkpoint: Checkpoint) -> Found:
        """What is not the trainer's: audit, rewards; after a look at the base model."""
        state, session = checkpoint.state, self.session
        with reading(checkpoint.path):
            if "audit" in state:  # else it is older than the audit, which begins here
                self.audit.load_state_dict(state["audit"])
            rewards = list(state.get("rewards", []))
            if len(rewards) == self.ranks.size:  # else they begin anew, as `_say_elastic` says
                session.reward_set.load_state_dict(rewards[self.ranks.rank])
            saved, now = dict(state.get("made_with", {})), self._made_with
            of_same_type = saved.get("base_dtype") == now["base_dtype"]
            if session.policy.uses_adapter and of_same_type and saved["base"] != now["base"]:
                raise MismatchError(
                    f"{checkpoint.path} holds adapters of another base model than model.name="
                    f"{self.config.model.name} is now: its weights have changed; name the one that "
                    "they were trained on (model.name, model.revision, model.quantization)"
                )
            mark = state.get("best")
            return Found(
                checkpoint.path,
                None if mark is None else (str(mark["metric"]), float(mark["value"])),
                differences(saved, now),
                int(state["world_size"]),
                learned_of(state.get("learned")),
                any(rewards),
            )

    def _go_on(self, found: Found, passed: list[Path]) -> None:
        """Tidy up behind a resume, and say what is not as it was."""
        root, step = self.folder.checkpoints, self.trainer.iteration

        def tidy() -> None:
            for path in passed:
                set_aside(path)
            rewind(root, step)  # later checkpoints belong to a future that this run has left
            if found.mark is not None and found.path.parent == root:
                mark_best(root, found.path, *found.mark)
            for line in found.changed:
                logger.warning("resumed under other circumstances than before: %s", line)
            if found.world_size != self.ranks.size:
                self._say_elastic(found.world_size, found.has_reward_states)

        self._on_main(tidy)
        self._saved = step if found.learned is None else -1  # it has a row to be rid of
        logger.info("resumed from %s after iteration %d", found.path, step)

    def _say_elastic(self, was: int, has_states: bool) -> None:
        """Warn of what a resume by another number of processes changes, and note it in run.json."""
        now, step = self.ranks.size, self.trainer.iteration
        lost = "; the rewards' own states begin anew" if has_states else ""
        logger.warning(
            "resumed by %d process(es) in place of %d (run.allow_elastic): from here on responses "
            "are drawn with other random numbers, which depend on the rank, and sums are taken in "
            "another order%s; the prompts, their order and the learning rates stay, but the run is "
            "no longer the one that %d would have made",
            now, was, lost, was,
        )  # fmt: skip
        before = self.folder.read_run_json().get("elastic", [])
        change = {"after_iteration": step, "from": was, "to": now}
        self.folder.write_run_json({"elastic": [*before, change]})

    def _on_main(self, job: Callable[[], Result]) -> Result | None:
        """The job done by rank 0, and its result there; where it fails, it fails on all ranks."""
        done, fault = None, ""
        if self.ranks.is_main:
            try:
                done = job()
            except (CheckpointError, OSError) as error:
                fault = str(error)
        fault = self.ranks.from_main(fault)
        if fault:
            raise CheckpointError(fault)
        return done


def learned_of(saved: Any) -> Learned | None:
    """What a stopped iteration had still to record; null is JSON's word for NaN."""
    if saved is None:
        return None
    row = {name: math.nan if x is None else x for name, x in saved["row"].items()}
    if not all(isinstance(x, int | float) for x in row.values()):
        raise ValueError("its last iteration's metrics are no numbers")
    return row, [dict(each) for each in saved["rows"]]
