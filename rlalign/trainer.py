"""One iteration in two halves: collect responses, learn from them. One process or many."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlalign.dual import change_of_log_z, moved
from rlalign.exits import DivergedError
from rlalign.fitting import Feasibility, fit_target
from rlalign.masking import SumOverRanks
from rlalign.partition import Gather
from rlalign.policy import Policy, micro_batches, tensors
from rlalign.scoring import score_given, score_rollout
from rlalign.sections import RunConfig
from rlalign.session import Session
from rlalign.types import LossOutput, Norm, PromptBatch, Rollout, ScoredRollout

logger = logging.getLogger(__name__)

MAX_SKIPPED = 5  # optimiser steps in a row with a gradient that is not finite, before the run stops


class Objective(Protocol):
    """An algorithm: how a scored rollout becomes a batch, and a batch a loss.

    `batch` is the algorithm's own dataclass; `rows(index)` cuts samples out of it.
    """

    sum_over_ranks: SumOverRanks  # set by the trainer
    budget: int  # tokens of a pass, set by the trainer
    gather: Gather  # set by the trainer
    warnings: list[str]  # settings that move the optimum away from the target

    name: str  # of its section in the configuration
    title: str  # what a reader calls it
    smooths: bool  # whether what is hard must be possible, however unlikely
    reads_tokens: bool  # whether it matters which token a reward is paid at

    @property
    def kl_coef(self) -> float: ...  # beta of the target that is approached now
    @property
    def last_kl(self) -> Tensor: ...  # (B,) nats to the reference of the responses prepared last
    @property
    def last_log_ratio(self) -> Tensor: ...  # (B,) log reference / what drew them

    def proposal(self, policy: Policy) -> AbstractContextManager[None]: ...  # what draws, within it

    def prepare(self, policy: Policy, scored: ScoredRollout) -> tuple[Any, dict[str, float]]: ...
    def minibatches(self, batch: Any, generator: torch.Generator) -> Iterator[Tensor]: ...
    def loss(self, policy: nn.Module, batch: Any, norm: Norm) -> LossOutput: ...
    def stops_early(self, stats: dict[str, float]) -> bool: ...
    def after_iteration(self, samples: int) -> None: ...
    def retarget(self, log_z: float) -> None: ...  # the target moved, and log Z by this
    def learning_rates(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def tensors(self) -> dict[str, Tensor]: ...  # the part of its state that is no JSON
    def load_state_dict(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None: ...


class Trainer:
    """Collects responses and learns from them.

    `loop.train` drives it through a whole run; `.generate()` and `.step()` serve loops of your own.
    """

    def __init__(self, session: Session, objective: Objective) -> None:
        self.session, self.objective = session, objective
        objective.sum_over_ranks, objective.budget = session.ranks.sum, session.budget
        objective.gather = session.ranks.gather
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
        self.wrapped, self.optimizer = session.ranks.accelerator.prepare(policy, optimizer)

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
            return session.engine.generate(prompts, n, generator)

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
        """One optimiser step a minibatch; the means of its statistics."""
        seen: list[dict[str, float]] = []
        generator = self.session.generator("minibatches", self.iteration)
        stopped = False
        for rows in self.objective.minibatches(batch, generator):
            seen.append(self._step(batch, rows))
            if self.objective.stops_early(seen[-1]):
                stopped = True
                break
        stats = {name: sum(s[name] for s in seen) / len(seen) for name in seen[0]}
        return stats | {
            "ppo/stopped_early": float(stopped),
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def _step(self, batch: Any, rows: Tensor) -> dict[str, float]:
        """Gradients of one minibatch over every rank, then one optimiser step."""
        ranks, accelerator = self.session.ranks, self.session.ranks.accelerator
        counts = torch.stack(
            [batch.rollout.action_mask[rows].sum(), torch.tensor(len(rows), device=rows.device)]
        )
        tokens, sequences = ranks.sum(counts.double()).tolist()
        norm = Norm(tokens=max(tokens, 1.0), sequences=sequences)
        micros = micro_batches(batch.rollout.lengths[rows], self.session.budget)
        # Every rank runs as many micro-batches as the longest one, or their collectives never meet.
        count = ranks.max(len(micros))
        totals: dict[str, Tensor] = {}
        for i in range(count):
            part = batch.rows(rows[micros[min(i, len(micros) - 1)]])
            weight = float(i < len(micros))
            is_last = i == count - 1
            with nullcontext() if is_last else accelerator.no_sync(self.wrapped):
                out = self.objective.loss(self.wrapped, part, norm)
                # DDP averages over ranks; the denominators already count all of them.
                accelerator.backward(out.loss * (weight * ranks.size))
            for name, x in out.stats.items():
                totals[name] = totals.get(name, torch.zeros_like(x)) + weight * x
        grad_norm = self._apply_gradients()
        summed = ranks.sum(torch.stack(list(totals.values()))).tolist()
        return dict(zip(totals, summed, strict=True)) | grad_norm

    def _apply_gradients(self) -> dict[str, float]:
        """Clip and step, once; a gradient that is not finite is dropped, on all ranks alike."""
        accelerator, bound = self.session.ranks.accelerator, self.session.config.optim.max_grad_norm
        for group in self.optimizer.param_groups:
            if group["lr"] == 0.0:  # waiting: zero gradients would run down Adam's warm start
                for parameter in group["params"]:
                    parameter.grad = None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = accelerator.clip_grad_norm_(parameters, math.inf if bound is None else bound)
        grad_norm = float(norm) if norm is not None else 0.0  # None: DeepSpeed clips by itself
        is_finite = math.isfinite(grad_norm)
        if is_finite:
            self.optimizer.step()
            self.optimizer_steps += 1
            self.skipped_in_a_row = 0
        else:
            self.skipped_in_a_row += 1
            logger.warning("gradient norm is %s: optimiser step skipped", grad_norm)
            if self.skipped_in_a_row >= MAX_SKIPPED:
                raise DivergedError(
                    f"{MAX_SKIPPED} optimiser steps in a row had a gradient that is not finite; "
                    f"lower {self.objective.name}.lr, or look for a reward with extreme values"
                )
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "ppo/grad_norm": grad_norm if is_finite else 0.0,
            "ppo/skipped_steps": float(not is_finite),
        }


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
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def stats(self) -> dict[str, float]:
        return {f"time/{phase}": seconds for phase, seconds in self.seconds.items()}
