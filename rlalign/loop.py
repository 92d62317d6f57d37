"""A whole run: collect, score, prepare, update, log; evaluate and save as it goes."""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from rlalign.audit import Audit
from rlalign.checkpoints.resuming import Learned, RunCheckpoints
from rlalign.checkpoints.saving import save_model
from rlalign.evaluate import Evaluation, evaluate, rescored, sample_rows
from rlalign.exits import Preempted
from rlalign.guard import stopping
from rlalign.guard.endings import ended
from rlalign.guard.whereabouts import HERE, Interrupted
from rlalign.metrics import peak_memory_mb
from rlalign.recording import RunRecorder
from rlalign.report.card import GIVEN_PROMPTS, name_of_given, write_model_card
from rlalign.report.plots import draw_plots
from rlalign.runs import RunFolder
from rlalign.scoring import logged_stats, rollout_stats
from rlalign.session import open_folder
from rlalign.symptoms import marked
from rlalign.trainer import Clock, Trainer
from rlalign.types import ScoredRollout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a finished run leaves behind."""

    folder: Path
    trainer: Trainer
    before: Evaluation | None  # the reference on the held-out prompts
    after: Evaluation | None  # the policy on the same prompts with the same random numbers
    stopped: str | None = None  # the warning that ended it early, as `audit.stop` asks


def train(trainer: Trainer, stem: str = "run", quiet: bool = False) -> Result:
    """Run a configuration to its end, in its folder, resuming where it says so."""
    HERE.begin()
    run = _Run(trainer, open_folder(trainer.session, stem), quiet)
    try:
        with run.recorder.view, stopping.listening(pass_on=True):
            result = run.to_the_end()
    except BaseException as error:
        ending = ended(error, trainer.session.ranks.rank)
        run.recorder.failed(ending)
        if ending.error is error:
            raise
        raise ending.error from error
    run.recorder.done(result.stopped)
    return result


class _Run:
    """One call of `train`: what is written where, and when."""

    def __init__(self, trainer: Trainer, folder: RunFolder, quiet: bool) -> None:
        session = trainer.session
        self.session, self.trainer, self.folder = session, trainer, folder
        self.before: Evaluation | None = None
        self.after: Evaluation | None = None
        rewards = session.reward_set.entries
        self.audit = Audit(session.config.audit, rewards, session.config.train.samples)
        self.recorder = RunRecorder(session, folder, quiet)
        self.checkpoints = RunCheckpoints(trainer, self.audit, folder)

    @property
    def coef(self) -> float:
        return self.trainer.objective.kl_coef

    # -- the run -------------------------------------------------------------------------------

    def to_the_end(self) -> Result:
        config, trainer = self.session.config, self.trainer
        with HERE.within("resume"):
            learned = self.checkpoints.resume()
        self.recorder.begin(trainer.objective.name)
        try:
            with HERE.within("fit"):
                self._fit_target()
            # Of an iteration that was learned and no more, the row is still to be written; and a
            # start from 0 writes row 0 again.
            kept = trainer.iteration - (learned is not None) if trainer.iteration else -1
            self.recorder.start_trackers(kept)
            if config.eval.every:
                self._measure_reference()
        except Interrupted:
            raise Preempted(f"stopped before iteration {trainer.iteration + 1}") from None
        is_over = trainer.iteration >= config.train.iterations
        if learned is not None:
            is_over = self._conclude(*learned)
        while not is_over:
            is_over = self._iterate()
        HERE.iteration = None
        return self._finish()

    def _measure_reference(self) -> None:
        self.before = self._measured(of_reference=True)
        if self.trainer.iteration > 0:
            self.recorder.view.samples(self.before.rows)  # a resumed run has recorded them before
        else:
            self.recorder.record({"iteration": 0, "samples": 0}, [], self.before)

    def _iterate(self) -> bool:
        """One iteration; whether it was the last."""
        HERE.iteration = self.trainer.iteration + 1
        rewards = self.session.reward_set
        before = rewards.state_dict()
        try:
            row, rows = self._learn()
        except Interrupted:  # as if it had not begun: all that is drawn in it is of its number
            rewards.load_state_dict(before)
            self._stop()
        return self._conclude(row, rows)

    def _learn(self) -> Learned:
        """Collect, score and update: a row of metrics, and a row of each sample."""
        trainer, ranks = self.trainer, self.session.ranks
        clock, start = Clock(), time.perf_counter()
        with clock("generate"):
            rollout = trainer.generate()
        with clock("score"):
            scored = ranks.together(lambda: trainer.score(rollout))
        stats = trainer.step(scored)
        row: dict[str, float] = {"iteration": trainer.iteration, "samples": trainer.samples}
        row |= self._rollout_stats(scored) | stats | clock.stats()
        row["optimizer_steps"] = trainer.optimizer_steps
        row["time/total"] = time.perf_counter() - start
        row["tokens_per_second"] = row["tokens"] / row["time/total"]
        row["memory/peak_mb"] = peak_memory_mb()
        rewards = self.session.reward_set
        rows = ranks.gather(sample_rows(rewards, scored, trainer.objective.last_kl))
        row |= self._look(rows)
        return row, marked(rows, rewards.names, self.session.config.audit.top)

    def _conclude(self, row: dict[str, float], rows: list[dict[str, Any]]) -> bool:
        """Evaluate, record and save what is due after an iteration; whether it was the last."""
        total = self.session.config.train.iterations
        is_last = self.trainer.iteration >= total or bool(self.audit.stopping)
        try:
            evaluation = self._evaluate_if_due(is_last)
        except Interrupted:
            self._stop((row, rows))
        with HERE.within("save"):
            self.recorder.record(row, rows, evaluation)
            self.checkpoints.save_if_due(evaluation, is_last)
        if not is_last and self.session.ranks.any(HERE.stop_requested):
            self._stop()
        return is_last

    def _stop(self, learned: Learned | None = None) -> NoReturn:
        """Save and end, because the run is told to; `learned` is not evaluated and recorded yet."""
        done, total = self.trainer.iteration, self.session.config.train.iterations
        with HERE.within("save"):
            self.checkpoints.save_before_stop(learned)
        raise Preempted(f"stopped after iteration {done} of {total}")

    def _look(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Audit an iteration's samples, and say which warnings begin and end."""
        before, iteration = list(self.audit.warned), self.trainer.iteration
        stats = self.audit.look(rows, iteration)
        if self.session.ranks.is_main and self.audit.warned != before:
            for warned in self.audit.warned:
                if warned.began == iteration:
                    logger.warning("audit: %s", warned)
                elif warned.ended == iteration:
                    logger.info("audit: %s is over", warned.name)
            self.recorder.note(warnings=[asdict(each) for each in self.audit.warned])
        return stats

    def _rollout_stats(self, scored: ScoredRollout) -> dict[str, float]:
        skipping = [e.name for e in self.session.reward_set.entries if e.on_error != "raise"]
        names, ranks = self.session.reward_set.names, self.session.ranks
        stats = rollout_stats(scored, names, skipping, ranks.sum)
        return stats | logged_stats(ranks.gather([scored.logged.metrics]))

    def _evaluate_if_due(self, is_last: bool) -> Evaluation | None:
        every = self.session.config.eval.every
        if not every or (self.trainer.iteration % every and not is_last):
            return None
        self.after = self._measured()
        return self.after

    def _measured(self, of_reference: bool = False) -> Evaluation:
        target = self.trainer.target
        with HERE.within("evaluate"):
            return evaluate(self.session, self.coef, target, of_reference=of_reference)

    def _finish(self) -> Result:
        folder, config = self.folder, self.session.config
        warned = [str(each) for each in self.audit.warned]
        if config.eval.every and self.after is None:
            try:
                self.after = self._measured()  # resumed at its end
            except Interrupted:
                raise Preempted(f"stopped after iteration {self.trainer.iteration}") from None
        if self.before is not None and self.trainer.target.moments:
            self.before = rescored(self.before, self.trainer.target, self.coef)
        self.session.ranks.wait()
        if self.session.ranks.is_main:
            save_model(self.session, folder.model)
            write_model_card(
                folder.model,
                config,
                self.before,
                self.after,
                self.trainer.iteration,
                self.coef,
                [name for name in self.session.reward_set.names if name not in config.rewards],
                base=name_of_given(self.session.policy.lm) if self.session.given_lm else None,
                prompts=GIVEN_PROMPTS if self.session.given_prompts else None,
                caveats=self.trainer.objective.warnings,
                audit=warned,
                method=self.trainer.objective.title,
                target=str(self.trainer.target),
            )
            self._draw()
            self.recorder.view.final(folder, self.before, self.after, warned)
        self.session.ranks.wait()
        stopped = next((str(each) for each in self.audit.stopping), None)
        return Result(folder.path, self.trainer, self.before, self.after, stopped)

    def _draw(self) -> None:
        try:
            draw_plots(self.folder.metrics_jsonl, self.folder.plots)
        except Exception as error:  # the run is done and saved: a picture must not fail it
            logger.warning("no plots were drawn: %s", error)

    def _fit_target(self) -> None:
        """Fit what is left to fit, and say what was asked and what can be had."""
        self.trainer.fit_target()
        target, feasibility = self.trainer.target, self.trainer.feasibility
        self.recorder.note(target={"formula": str(target), **target.state_dict()})
        if feasibility is not None and self.session.ranks.is_main:
            logger.info("%s\n%s", feasibility, target)
