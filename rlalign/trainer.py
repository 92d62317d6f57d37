"""One iteration in two halves: collect responses, learn from them. One process or many."""

import gc
import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlalign.dual import change_of_log_z, moved
from rlalign.exits import DivergedError
from rlalign.fitting import Feasibility, fit_target
from rlalign.guard.whereabouts import HERE
from rlalign.heap import is_out_of_memory
from rlalign.objective import Objective
from rlalign.policy import micro_batches, tensors
from rlalign.ranks import OutOfMemory
from rlalign.scoring import score_given, score_rollout
from rlalign.session import Session
from rlalign.settings.sections import RunConfig
from rlalign.types import Norm, PromptBatch, Rollout, ScoredRollout

logger = logging.getLogger(__name__)


class Trainer:
    """Collects responses and learns from them.

    `loop.train` drives it through a whole run; `.generate()` and `.step()` serve loops of your own.
    """

    def __init__(self, session: Session, objective: Objective) -> None:
        self.session, self.objective = session, objective
        objective.sum_over_ranks, objective.budget = session.ranks.sum, session.budget
        objective.gather = session.ranks.gather
        self.budget = session.budget  # tokens of a micro-batch of the update
        self.target = session.target
        section = session.config.score
        self.score_section = (
            section if objective.reads_tokens else section.model_copy(update={"credit": "last"})
        )
        self.feasibility: Feasibility | None = None  # once the target's moments are fitted
        self.iteration = 0  # finished iterations
        self.samples = 0
        self.optimizer_steps = 0
        self.skipped_in_a_row = 0
        self._draws = 0  # calls of generate since the last step
        policy, optim = session.policy, session.config.optim
        session.engine.sync(policy)  # an engine of another process starts now, and fails now
        head = [p for p in policy.value_head.parameters()]
        lm = [p for p in policy.lm.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            [{"params": lm, "name": "lm"}, {"params": head, "name": "value_head"}],
            lr=0.0,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self.optimizer = optimizer
        session.ranks.from_main_tensors(policy.parameters())

    # -- the two halves of an iteration --------------------------------------------------------

    def generate(
        self, prompts: Sequence[str] | PromptBatch | None = None, n: int | None = None
    ) -> Rollout:
        """Responses of the current policy: `n` to each prompt.

        `prompts`: texts, a batch, or None for this iteration's share of the run's own prompts.
        """
        session = self.session
        self.fit_target()
        if prompts is None:
            prompts = session.prompt_batch(self.iteration)
        elif not isinstance(prompts, PromptBatch):
            prompts = session.encode(prompts)
        n = session.config.sampling.samples_per_prompt if n is None else n
        generator = session.generator("generate", self.iteration, self._draws)
        self._draws += 1
        with self.objective.proposal(session.policy):
            session.engine.sync(session.policy, self.optimizer_steps)
            draw = partial(session.engine.generate, prompts, n, generator)
            return draw() if session.engine.talks else session.ranks.together(draw)

    def score(self, rollout: Rollout) -> ScoredRollout:
        """The rollout with this iteration's rewards and the reference's log-probabilities."""
        session = self.session
        return score_rollout(
            rollout,
            session.reward_set,
            self.score_section,
            session.policy,
            session.tokenizer,
            session.budget,
            self.iteration,
            session.trainer_state(self.optimizer_steps, self.samples),
            self.target,
            self.objective.kl_coef,
            self.objective.smooths,
            session.seed("rewards", self.iteration, self._draws),
        )

    def fit_target(self) -> None:
        """Fit the moments to the reference, once; InfeasibleError where a wish cannot be met."""
        if not self.target.is_fitted:
            self.target, self.feasibility = fit_target(self.session, self.target)

    def step(
        self, rollout: Rollout | ScoredRollout, scores: Sequence[float] | None = None
    ) -> dict[str, float]:
        """Learn from one rollout; what happened, by metric key.

        `scores`, one a response, replace the run's rewards: use them where the judge is outside.
        """
        clock = Clock()
        if isinstance(rollout, ScoredRollout) and scores is not None:
            raise ValueError("step was given a scored rollout and scores; give one of the two")
        if isinstance(rollout, Rollout):
            with clock("score"):
                rollout = self._scored(rollout, scores)
        return self._learn(rollout, clock) | clock.stats()

    def _scored(self, rollout: Rollout, scores: Sequence[float] | None) -> ScoredRollout:
        ranks, session = self.session.ranks, self.session
        sizes = ranks.gather([len(rollout)])
        if len(set(sizes)) > 1:
            raise ValueError(f"every process must learn from equally many responses, not {sizes}")
        if scores is None:
            self.fit_target()
            return ranks.together(lambda: self.score(rollout))
        beta = self.objective.kl_coef
        return score_given(rollout, scores, session.policy, session.budget, beta)

    def _learn(self, scored: ScoredRollout, clock: "Clock") -> dict[str, float]:
        """Prepare and update; counts the iteration."""
        self._set_learning_rates()
        with clock("prepare"):
            batch, stats = self.objective.prepare(self.session.policy, self._unless_stale(scored))
        with clock("update"):
            stats |= self._update(batch)
        stats |= self._move_target(scored)
        self.iteration += 1
        self._draws = 0
        self.samples += len(scored) * self.session.ranks.size
        self.objective.after_iteration(len(scored) * self.session.ranks.size)
        return stats

    def _move_target(self, scored: ScoredRollout) -> dict[str, float]:
        """The moments' lambdas after these samples, and what to log of them."""
        if not self.target.moments or not scored.features.shape[1]:
            return {}
        section = self.session.config.target
        if section.update != "none":
            rate = section.rate * schedule(self.session.config, self.iteration)
            ratios = self.objective.last_log_ratio, self.objective.last_kl
            before, gather = self.target, self.session.ranks.gather
            self.target = moved(before, scored, *ratios, section.update, rate, gather)
            self.objective.retarget(change_of_log_z(before, self.target))
        return {f"target/lambda/{name}": x for name, x in self.target.lambdas.items()}

    def _unless_stale(self, scored: ScoredRollout) -> ScoredRollout:
        """Without what the sampler noted, where it was of other weights or of other tokens."""
        rollout, weights = scored.rollout, self.session.policy.weights_id
        if rollout.recorded is None:
            return scored
        # Steps count too: a fused optimiser leaves torch's own count of changes as it was.
        is_of_now = rollout.policy_step == self.optimizer_steps
        if is_of_now and rollout.recorded.holds(weights, tensors(rollout)):
            return scored
        return replace(scored, rollout=replace(rollout, recorded=None))

    # -- the update ----------------------------------------------------------------------------

    def _set_learning_rates(self) -> None:
        factor = schedule(self.session.config, self.iteration)
        peaks = self.objective.learning_rates()
        for group in self.optimizer.param_groups:
            group["lr"] = peaks[group["name"]] * factor

    def _update(self, batch: Any) -> dict[str, float]:
        """One optimiser step a minibatch; the means of its statistics, but of skipped steps."""
        seen: list[dict[str, float]] = []
        skipped, stopped = 0, False
        generator = self.session.generator("minibatches", self.iteration)
        for rows in self.objective.minibatches(batch, generator):
            stats = self._step(batch, rows)
            if stats is None:
                skipped += 1
                continue
            seen.append(stats)
            if self.objective.stops_early(stats):
                stopped = True
                break
        means = {name: sum(s[name] for s in seen) / len(seen) for name in (seen or [{}])[0]}
        return means | {
            "ppo/stopped_early": float(stopped),
            "ppo/skipped_steps": skipped / (skipped + len(seen)),
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def _step(self, batch: Any, rows: Tensor) -> dict[str, float] | None:
        """Gradients of one minibatch over every rank, then one optimiser step; None if skipped."""
        ranks = self.session.ranks
        counts = torch.stack(
            [batch.rollout.action_mask[rows].sum(), torch.tensor(len(rows), device=rows.device)]
        )
        tokens, sequences = ranks.sum(counts.double()).tolist()
        norm = Norm(tokens=max(tokens, 1.0), sequences=sequences)
        totals = self._accumulate(batch, rows, norm)
        ranks.sum_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        own = torch.stack(list(totals.values()))
        norm_of_all = self._apply_gradients()
        if norm_of_all is None:
            self._count_skipped(bool(own.isfinite().all()))
            return None
        summed = ranks.sum(own).tolist()
        return dict(zip(totals, summed, strict=True)) | {"ppo/grad_norm": norm_of_all}

    def _accumulate(self, batch: Any, rows: Tensor, norm: Norm) -> dict[str, Tensor]:
        """This rank's part of a minibatch's gradients, and its statistics.

        Where memory runs out on one rank all of them begin again, first with micro-batches of the
        same size, because others may have held the memory, then of half of it.
        """
        ranks, lengths = self.session.ranks, batch.rollout.lengths[rows]
        for attempt in itertools.count():
            totals = ranks.together(lambda: self._passes(batch, rows, norm), stoppable=False)
            if not ranks.any(totals is None):
                assert totals is not None
                return totals
            self.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if attempt == 0:
                continue
            longest = ranks.max(int(lengths.max()))
            if self.budget <= longest:
                raise OutOfMemory(f"out of memory with one response at a time (in {HERE})")
            self.budget = max(self.budget // 2, longest)
            logger.warning(
                "out of memory in the update: micro-batches of %d tokens from now on; set "
                "optim.micro_batch_tokens to begin with them", self.budget,
            )  # fmt: skip
        raise AssertionError("unreachable")

    def _passes(self, batch: Any, rows: Tensor, norm: Norm) -> dict[str, Tensor] | None:
        """Forward and backward, a micro-batch at a time; None where memory ran out."""
        totals: dict[str, Tensor] = {}
        try:
            for micro in micro_batches(batch.rollout.lengths[rows], self.budget):
                HERE.tick()
                out = self.objective.loss(self.session.policy, batch.rows(rows[micro]), norm)
                torch.autograd.backward(out.loss)
                for name, x in out.stats.items():
                    totals[name] = totals.get(name, torch.zeros_like(x)) + x
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return totals

    def _apply_gradients(self) -> float | None:
        """Clip and step; the gradient's norm, or None where it is not finite and was dropped."""
        bound = self.session.config.optim.max_grad_norm
        for group in self.optimizer.param_groups:
            if group["lr"] == 0.0:  # waiting: zero gradients would run down Adam's warm start
                for parameter in group["params"]:
                    parameter.grad = None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, math.inf if bound is None else bound))
        if math.isfinite(norm):
            self.optimizer.step()
            self.optimizer_steps += 1
            self.skipped_in_a_row = 0
        self.optimizer.zero_grad(set_to_none=True)
        return norm if math.isfinite(norm) else None

    def _count_skipped(self, own_is_finite: bool) -> None:
        """Log a step that was dropped on all ranks; DivergedError after too many in a row."""
        ranks, most = self.session.ranks, self.session.config.optim.max_skipped
        self.skipped_in_a_row += 1
        faulty = ranks.gather([] if own_is_finite else [ranks.rank])
        where = f"the loss of rank {', '.join(map(str, faulty))}" if faulty else "the gradient"
        logger.warning("%s is not finite: optimiser step skipped", where)
        if self.skipped_in_a_row >= most:
            raise DivergedError(
                f"{where} is not finite, {self.skipped_in_a_row} optimiser steps in a row "
                f"(optim.max_skipped={most}); lower {self.objective.name}.lr, or look for a reward "
                "with extreme values"
            )


def schedule(config: RunConfig, iteration: int) -> float:
    """An iteration's learning rate as a share of its peak; a closed form, so it needs no state."""
    optim, total = config.optim, config.train.iterations
    warmup = optim.warmup_iterations
    if iteration < warmup:
        return float((iteration + 1) / (warmup + 1))
    if optim.schedule == "constant":
        return 1.0
    progress = min((iteration - warmup) / max(total - warmup, 1), 1.0)
    shape = (
        1.0 - progress if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    )
    return float(optim.final_lr_fraction + (1.0 - optim.final_lr_fraction) * shape)


class Clock:
    """Seconds spent in each named phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        with HERE.within(phase):
            yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def stats(self) -> dict[str, float]:
        return {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
