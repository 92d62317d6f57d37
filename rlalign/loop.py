"""A whole run: collect, score, prepare, update, log; evaluate and save as it goes."""

import logging
import math
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from rlalign.audit import Audit
from rlalign.checkpoint import (
    best,
    load_checkpoint,
    mark_best,
    newest_sound,
    rewind,
    save_checkpoint,
)
from rlalign.config import to_flat
from rlalign.evaluate import Evaluation, evaluate, rescored, sample_rows
from rlalign.exits import AuditStop, Preempted, exit_code
from rlalign.metrics import peak_memory_mb
from rlalign.redact import redacted_yaml
from rlalign.report.card import GIVEN_PROMPTS, name_of_given, write_model_card
from rlalign.report.live import LiveView
from rlalign.report.plots import draw_plots
from rlalign.runs import RunFolder, command_line
from rlalign.saving import restore_training, save_model, training_state
from rlalign.scoring import logged_stats, rollout_stats
from rlalign.session import open_folder
from rlalign.symptoms import marked
from rlalign.tracking import Trackers, build_trackers
from rlalign.trainer import Clock, Trainer
from rlalign.trust import changed_settings
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
    run = _Run(trainer, open_folder(trainer.session, stem), quiet)
    try:
        result = run.to_the_end()
    except BaseException as error:
        run.failed(error)
        raise
    run.done(result.stopped)
    return result


class _Run:
    """One call of `train`: what is written where, and when."""

    def __init__(self, trainer: Trainer, folder: RunFolder, quiet: bool) -> None:
        session = trainer.session
        self.session, self.trainer, self.folder = session, trainer, folder
        self.is_main = session.ranks.is_main
        self.trackers: Trackers | None = None
        self.stop_requested = False
        self.is_begun = False  # whether run.json speaks of this call
        self.before: Evaluation | None = None
        self.after: Evaluation | None = None
        rewards = session.reward_set.entries
        self.audit = Audit(session.config.audit, rewards, session.config.train.samples)
        total, names = session.config.train.iterations, list(session.reward_set.names)
        self.view = LiveView(total, names, quiet=quiet or not self.is_main)

    @property
    def coef(self) -> float:
        return self.trainer.objective.kl_coef

    # -- the run -------------------------------------------------------------------------------

    def to_the_end(self) -> Result:
        config, trainer = self.session.config, self.trainer
        previous = signal.signal(signal.SIGTERM, self._on_sigterm) if in_main_thread() else None
        try:
            self._resume()
            self._open()
            self._fit_target()
            self._start_trackers()
            if config.eval.every:
                self.before = self._measured(of_reference=True)
                if trainer.iteration > 0:
                    self.view.samples(self.before.rows)  # a resumed run has shown them before
                else:
                    self._record({"iteration": 0, "samples": 0}, [], self.before)
            is_over = trainer.iteration >= config.train.iterations
            while not is_over:
                is_over = self._iterate()
            return self._finish()
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)

    def _iterate(self) -> bool:
        """One iteration; whether it was the last."""
        config, trainer, ranks = self.session.config, self.trainer, self.session.ranks
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
        is_last = trainer.iteration >= config.train.iterations or bool(self.audit.stopping)
        evaluation = self._evaluate_if_due(is_last)
        self._record(row, marked(rows, rewards.names, config.audit.top), evaluation)
        self._save_if_due(evaluation, is_last)
        if ranks.any(self.stop_requested):
            self._save()
            raise Preempted(
                f"stopped after iteration {trainer.iteration} of {config.train.iterations}"
            )
        return is_last

    def _look(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Audit an iteration's samples, and say which warnings begin and end."""
        before, iteration = list(self.audit.warned), self.trainer.iteration
        stats = self.audit.look(rows, iteration)
        if self.is_main and self.audit.warned != before:
            for warned in self.audit.warned:
                if warned.began == iteration:
                    logger.warning("audit: %s", warned)
                elif warned.ended == iteration:
                    logger.info("audit: %s is over", warned.name)
            self.folder.write_run_json({"warnings": [asdict(each) for each in self.audit.warned]})
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
        return evaluate(self.session, self.coef, target, of_reference=of_reference)

    def _finish(self) -> Result:
        folder, config = self.folder, self.session.config
        warned = [str(each) for each in self.audit.warned]
        if config.eval.every and self.after is None:
            self.after = self._measured()  # resumed at its end
        if self.before is not None and self.trainer.target.moments:
            self.before = rescored(self.before, self.trainer.target, self.coef)
        self.session.ranks.wait()
        if self.is_main:
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
            self.view.final(folder, self.before, self.after, warned)
        self.session.ranks.wait()
        stopped = next((str(each) for each in self.audit.stopping), None)
        return Result(folder.path, self.trainer, self.before, self.after, stopped)

    def _draw(self) -> None:
        try:
            draw_plots(self.folder.metrics_jsonl, self.folder.plots)
        except Exception as error:  # the run is done and saved: a picture must not fail it
            logger.warning("no plots were drawn: %s", error)

    # -- what is written -----------------------------------------------------------------------

    def _open(self) -> None:
        """Write down what is about to run."""
        config, folder = self.session.config, self.folder
        if not self.is_main:
            return
        if changed := changed_settings(config, folder.config_yaml):
            logger.warning("resumed with other settings than before: %s", ", ".join(changed))
        self.is_begun = True
        folder.config_yaml.write_text(redacted_yaml(config), encoding="utf-8")
        folder.start(
            argv=command_line(),
            world_size=self.session.ranks.size,
            seeds={"train.seed": config.train.seed},
            reward_files=config.reward_files,
            method=self.trainer.objective.name,
        )

    def _fit_target(self) -> None:
        """Fit what is left to fit, and say what was asked and what can be had."""
        self.trainer.fit_target()
        if self.is_main:
            target, feasibility = self.trainer.target, self.trainer.feasibility
            self.folder.write_run_json({"target": {"formula": str(target), **target.state_dict()}})
            if feasibility is not None:
                logger.info("%s\n%s", feasibility, target)

    def _start_trackers(self) -> None:
        """After the fit: a wish that cannot be had leaves nothing behind."""
        if self.is_main:
            config, step = self.session.config, self.trainer.iteration
            told = to_flat(config), redacted_yaml(config)
            self.trackers = build_trackers(config.trackers, self.folder, *told, step)

    def _record(
        self,
        row: dict[str, float],
        train_rows: list[dict[str, Any]],
        evaluation: Evaluation | None,
    ) -> None:
        if not self.is_main:
            return
        assert self.trackers is not None
        step = int(row["iteration"])
        rows = [{"iteration": step, "split": "train"} | r for r in train_rows]
        if evaluation is not None:
            row = row | evaluation.stats
            rows += [{"iteration": step, "split": "eval"} | r for r in evaluation.rows]
        self.trackers.log(step, row)
        self.trackers.samples(step, rows)
        self.view.iteration(row)
        if evaluation is not None:
            self.view.samples(evaluation.rows)

    def _save_if_due(self, evaluation: Evaluation | None, is_last: bool) -> None:
        config, iteration = self.session.config, self.trainer.iteration
        metric = config.checkpoint.best
        if self.trainer.target.moments and metric in ("eval/score", "eval/objective"):
            metric = None  # lambdas move, so scores of two evaluations are of two targets
        value = evaluation.stats.get(metric) if evaluation and metric else None
        if evaluation and metric and value is None and self.is_main:
            logger.warning(
                "checkpoint.best=%s is no metric of an evaluation; there are: %s",
                metric,
                ", ".join(evaluation.stats),
            )
        is_best = value is not None and math.isfinite(value) and self._beats_best(metric, value)
        every = config.checkpoint.every
        is_due = (every and iteration % every == 0) or is_last
        if not (is_due or is_best):
            return
        path = self._save()
        if path is not None and is_best and metric is not None and value is not None:
            mark_best(self.folder.checkpoints, path, metric, value)

    def _beats_best(self, metric: str | None, value: float) -> bool:
        held = best(self.folder.checkpoints) if self.is_main else None
        is_better = held is None or held.metric != metric or value > held.value
        return bool(self.session.ranks.from_main(is_better))

    def _save(self) -> Path | None:
        tensors, state = training_state(self.trainer)
        state["audit"] = self.audit.state_dict()
        path = None
        if self.is_main:
            root, keep = self.folder.checkpoints, self.session.config.checkpoint.keep
            path = save_checkpoint(root, self.trainer.iteration, tensors, state, keep=keep)
        self.session.ranks.wait()
        return path

    def _resume(self) -> None:
        """Go on from the checkpoint that run.resume asks for."""
        resume = self.session.config.run.resume
        if resume == "never":
            return
        answer: tuple[str, str] = ("", "")
        if self.session.ranks.is_main:
            found = newest_sound(self.folder.checkpoints) if resume == "auto" else Path(resume)
            answer = ("" if found is None else str(found), "")
        path, _ = self.session.ranks.from_main(answer)
        if not path:
            logger.info("%s has no checkpoint yet: starting fresh", self.folder.path)
            return
        checkpoint = load_checkpoint(Path(path))
        restore_training(self.trainer, checkpoint)
        if "audit" in checkpoint.state:  # else it is older than the audit, which begins here
            self.audit.load_state_dict(checkpoint.state["audit"])
        if self.session.ranks.is_main:
            # Later checkpoints belong to a future that this run has left.
            rewind(self.folder.checkpoints, self.trainer.iteration)
        logger.info("resumed from %s after iteration %d", path, self.trainer.iteration)

    # -- how it ends ---------------------------------------------------------------------------

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        logger.warning("SIGTERM: saving after this iteration, then stopping")

    def done(self, stopped: str | None) -> None:
        # run.json first: W&B reads from it how the run ended.
        if self.is_main and stopped is None:
            self.folder.finish("done", 0)
        elif self.is_main:
            self.folder.finish("stopped", exit_code(AuditStop()), stopped)
        if self.trackers is not None:
            self.trackers.close()

    def failed(self, error: BaseException) -> None:
        is_preempted = isinstance(error, Preempted)
        if self.is_main and (self.is_begun or not self.folder.run_json.exists()):
            message = str(error) or type(error).__name__
            status: Literal["preempted", "failed"] = "preempted" if is_preempted else "failed"
            self.folder.finish(status, exit_code(error), message)
        if self.trackers is not None:
            self.trackers.close(10.0 if is_preempted else 60.0)


def in_main_thread() -> bool:
    """Whether signal handlers can be set here."""
    return threading.current_thread() is threading.main_thread()
