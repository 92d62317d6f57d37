"""GRPO and RLOO by TRL's trainers, from the configuration of a PPO run and into the same folder."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig

from rlalign.api import no_progress_bars
from rlalign.checkpoints.saving import save_model
from rlalign.config import ConfigError, load_config, to_flat
from rlalign.evaluate import Evaluation, evaluate
from rlalign.exits import Preempted, exit_code, last_line
from rlalign.files import write_atomically
from rlalign.guard import endings, stopping
from rlalign.guard.whereabouts import Interrupted
from rlalign.models import load_lm, lora_config, silence_dropout
from rlalign.prompts import scheduled
from rlalign.ranks import Ranks
from rlalign.redact import redacted_yaml
from rlalign.report.card import write_model_card
from rlalign.report.live import LiveView
from rlalign.report.page.at_end import write_report
from rlalign.report.plots import draw_plots
from rlalign.run_method import as_command
from rlalign.runs import RunFolder, check_run, command_line
from rlalign.session import Session, open_folder
from rlalign.settings.method_sections import PPORun
from rlalign.startup import QUICKSTART, config_stem, is_rank_zero, say
from rlalign.tracking import CLOSE_SECONDS, Trackers, build_trackers
from rlalign.trainer import schedule
from rlalign.trl_bridge import remove_printer, trainer_classes
from rlalign.trl_trainers.record import Recorder
from rlalign.trl_trainers.rewards import BatchScorer
from rlalign.trl_trainers.settings import (
    Method,
    prompts_needed,
    refuse,
    trainer_arguments,
    warnings,
)

ROW = "rlalign_row"  # the column that says which prompt of the set a sample answers


@dataclass(frozen=True)
class Result:
    """What a finished run leaves behind."""

    folder: Path
    trainer: Any  # TRL's
    before: Evaluation | None
    after: Evaluation | None


def main(method: Method, argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit code of `rlalign.exits`."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def job() -> None:
        config = load_config(PPORun, arguments, default=QUICKSTART)
        with endings.watched(config.run) as ranks, stopping.interruptible():
            train(config, method, stem=config_stem(arguments, QUICKSTART), ranks=ranks)

    return as_command(job)


def train(
    config: PPORun,
    method: Method,
    *,
    stem: str = "run",
    rewards: Sequence[Callable[..., Any]] = (),
    prompts: Sequence[str | Mapping[str, Any]] | None = None,
    quiet: bool = False,
    ranks: Ranks | None = None,
) -> Result:
    """A whole run of GRPO or RLOO.

    Raises ConfigError, before a model is loaded, for settings that would mean another run under
    TRL, and warns of those without counterpart.
    """
    refuse(config)
    caveats = warnings(config, method)
    for line in caveats:
        say(f"warning: {line}")
    if is_rank_zero():
        check_run(config.run)
    with Session(config, prompts=prompts, rewards=rewards, ranks=ranks) as session:
        run = _Run(session, method, open_folder(session, f"{stem}-{method}"), caveats, quiet)
        try:
            with run.view:
                result = run.to_the_end()
        except Interrupted:
            stopped = Preempted("stopped; TRL's trainers keep no checkpoint", can_go_on=False)
            run.ended(stopped)
            raise stopped from None
        except BaseException as error:
            run.ended(error)
            raise
        run.ended()
    return result


class _Run:
    """One call of `train`: what is written where, and when."""

    def __init__(
        self,
        session: Session,
        method: Method,
        folder: RunFolder,
        caveats: Sequence[str],
        quiet: bool,
    ) -> None:
        self.session, self.method, self.folder, self.caveats = session, method, folder, caveats
        self.is_main = session.ranks.is_main
        self.trackers: Trackers | None = None
        self.before: Evaluation | None = None
        self.view = LiveView(
            session.config.train.iterations,
            list(session.reward_set.names),
            quiet=quiet or not self.is_main,
        )

    def to_the_end(self) -> Result:
        config, session = self.session.config, self.session
        assert isinstance(config, PPORun)
        self._open(config)
        with no_progress_bars():
            if config.eval.every:
                self.before = evaluate(session, config.kl.coef, of_reference=True)
                row = {"iteration": 0, "samples": 0} | self.before.stats
                self._record(row, self._eval_rows(self.before, 0))
            recorder = Recorder(session, self._record)
            trainer = build_trainer(session, self.method, self.folder, recorder)
            trainer.train()
            with contextlib.suppress(OSError):
                (self.folder.path / "trl").rmdir()  # TRL makes it; no checkpoint goes there
            take_over(session, trainer)
            after = evaluate(session, config.kl.coef) if config.eval.every else None
            last, rows = recorder.last, recorder.last_rows
            if after is not None:
                last = last | after.stats
                rows = rows + self._eval_rows(after, config.train.iterations)
            self._record(last, rows)
            if self.is_main:
                self._save(config, after)
        session.ranks.wait()
        return Result(self.folder.path, trainer, self.before, after)

    def _open(self, config: PPORun) -> None:
        if not self.is_main:
            return
        endings.found(self.folder.path)
        write_atomically(self.folder.config_yaml, redacted_yaml(config))
        self.folder.start(
            argv=command_line(),
            world_size=self.session.ranks.size,
            seeds={"train.seed": config.train.seed},
            reward_files=config.reward_files,
            method=self.method,
        )
        self.folder.write_run_json({"target": {"formula": str(self.session.target)}})
        self.trackers = build_trackers(
            config.trackers, self.folder, to_flat(config), redacted_yaml(config)
        )

    def _record(self, row: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
        if self.trackers is None or not row:
            return
        step = int(row["iteration"])
        self.trackers.log(step, row)
        self.trackers.samples(step, rows)
        self.view.iteration(dict(row))

    def _eval_rows(self, evaluation: Evaluation, step: int) -> list[dict[str, Any]]:
        if self.is_main:
            self.view.samples(evaluation.rows)
        return [{"iteration": step, "split": "eval"} | row for row in evaluation.rows]

    def _save(self, config: PPORun, after: Evaluation | None) -> None:
        save_model(self.session, self.folder.model, value_head=False)
        write_model_card(
            self.folder.model,
            config,
            self.before,
            after,
            config.train.iterations,
            config.kl.coef,
            [name for name in self.session.reward_set.names if name not in config.rewards],
            caveats=self.caveats,
            method=self.method.upper(),
        )
        try:
            draw_plots(self.folder.metrics_jsonl, self.folder.plots)
        except Exception as error:  # the run is done and saved: a picture must not fail it
            say(f"warning: no plots were drawn: {error}")
        self.view.final(self.folder, self.before, after)

    def ended(self, error: BaseException | None = None) -> None:
        if error is None and self.is_main:
            self.folder.finish("done", 0)
        elif error is not None:
            ending = endings.ended(error, self.session.ranks.rank)
            if self.is_main:
                code, where = exit_code(ending.error), (ending.rank, ending.where)
                self.folder.finish(ending.status, code, last_line(ending.error), where)
        if self.trackers is not None:
            self.trackers.close(CLOSE_SECONDS if error is None else 3.0)
        if self.is_main:
            write_report(self.folder)


def build_trainer(session: Session, method: Method, folder: RunFolder, recorder: Recorder) -> Any:
    """TRL's trainer with this run's model, prompts, rewards and schedule."""
    config = session.config
    assert isinstance(config, PPORun)
    prompts, device = session.prompts, session.ranks.device
    longest = max(map(len, prompts.ids))
    arguments = trainer_arguments(config, method, session.ranks.size, longest, device)
    config_class, trainer_class = trainer_classes(method)
    scorer = BatchScorer(
        session.reward_set,
        config.score,
        config.steps_per_iteration,
        int(session.tokenizer.eos_token_id),
        columns_of=lambda given: _columns(session, given[ROW]),
        on_scored=recorder.scored,
        together=session.ranks.together,
        seed_of=partial(session.seed, "rewards"),
    )
    funcs, weights = scorer.rewards()
    lora = config.model.lora
    trainer = trainer_class(
        model=language_model(session),
        reward_funcs=funcs,
        args=config_class(output_dir=str(folder.path / "trl"), reward_weights=weights, **arguments),
        train_dataset=dataset(session),
        processing_class=session.tokenizer,
        callbacks=[recorder],
        peft_config=None if lora is None else lora_config(lora),
    )
    remove_printer(trainer)
    optimizer = trainer.create_optimizer()
    steps = config.steps_per_iteration
    trainer.lr_scheduler = LambdaLR(optimizer, lambda step: schedule(config, step // steps))
    return trainer


def language_model(session: Session) -> nn.Module:
    """The model without adapters, in the precision in which PPO would train it."""
    model, tokenizer = session.config.model, session.tokenizer
    lm = load_lm(model, session.ranks.device)
    silence_dropout(lm)
    lm = lm.float() if model.lora is None else lm
    # Whatever the model brings, such as a top-p or further ends, is no part of the run.
    lm.generation_config = GenerationConfig(  # type: ignore[assignment]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=session.prompts.pad_id,
    )
    return lm


def dataset(session: Session) -> Any:
    """The prompts as PPO would meet them, one row for each group; columns stay in the session.

    datasets would give every row of a nested column the keys of all the others.
    """
    config, prompts = session.config, session.prompts
    assert isinstance(config, PPORun)
    order = scheduled(len(prompts), config.train.seed, 0, prompts_needed(config))
    given = prompts.messages or prompts.texts
    if any(one is None for one in given):  # TRL looks at the first prompt of a batch alone
        raise ConfigError(
            f"prompts.path={config.prompts.path} mixes chats and plain texts, which TRL's trainers "
            "take for one kind; write all as messages, or set prompts.chat=true"
        )
    return datasets.Dataset.from_list([{"prompt": given[i], ROW: i} for i in order])


def _columns(session: Session, rows: Sequence[int]) -> dict[str, list[Any]]:
    return {n: [c[i] for i in rows] for n, c in session.prompts.columns.items()}


@torch.no_grad()
def take_over(session: Session, trainer: Any) -> None:
    """Put what TRL trained into the session's policy, which evaluates and saves it."""
    trained = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    for name, parameter in session.policy.lm.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(trained[name])
