"""Our rewards for TRL's trainers: the same numbers as in a PPO run of the same configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rewards.compose import RewardOutput, RewardSet, parse_entries
from rewards.contract import RewardConfigError, RewardError
from rewards.entries import Ramp
from rewards.trl_style import Logged, context, plain_text, prompt_text
from rlalign.config import from_mapping
from rlalign.models import load_tokenizer
from rlalign.scoring import potential, watched
from rlalign.settings.method_sections import PPORun
from rlalign.settings.sections import ScoreSection

BOUNDS = "clip_and_eos"  # the function that stands for score.clip and score.missing_eos_penalty
RewardFunction = Callable[..., list[float | None]]


class TRLRewards(NamedTuple):
    """`funcs, weights = trl_reward_funcs(config)`: `reward_funcs` and `reward_weights` of TRL."""

    funcs: list[RewardFunction]
    weights: list[float]


@dataclass(frozen=True)
class ScoredBatch:
    """One call of TRL, B samples."""

    prompts: Sequence[str]
    completions: Sequence[str]
    completion_ids: Sequence[Sequence[int]] | None
    finished: Sequence[bool]
    output: RewardOutput
    score: Sequence[float]  # as PPO's: clipped, less the penalty
    logged: Logged


def trl_reward_funcs(
    config: PPORun | Mapping[str, Any] | str | Path,
    *,
    rewards: Sequence[Callable[..., Any]] = (),
    overrides: Mapping[str, Any] | Sequence[str] = (),
    steps_per_iteration: int | None = None,
) -> TRLRewards:
    """The rewards of a configuration as TRL's `GRPOTrainer` and `RLOOTrainer` take them.

    One function for each reward, named after it, whose values are shaped (threshold, scale, clip)
    but not weighed, None where the reward does not apply; and the weights. Where the configuration
    has `score.clip` or `score.missing_eos_penalty`, one more function adds what these change, so
    that the weighted sum is the score that PPO learns from. `rewards` are functions to add.

    A weight on a schedule is a function of the iteration. TRL counts optimiser steps in
    `trainer_state.global_step`, so say by `steps_per_iteration` how many are one iteration; the
    function then weighs its values itself, and its weight is 1.

    Raises ConfigError or RewardConfigError before any reward is called.
    """
    settings = from_mapping(PPORun, config, overrides, rewards_given=True)
    reward_set = RewardSet(parse_entries(settings.rewards), extra=list(rewards))
    needs_eos = settings.score.missing_eos_penalty > 0
    eos = load_tokenizer(settings.model).eos_token_id if needs_eos else None
    return BatchScorer(reward_set, settings.score, steps_per_iteration, eos).rewards()


class BatchScorer:
    """Scores a batch once for all the functions that TRL calls on it, one by one.

    `columns_of` replaces the columns that TRL hands over; `on_scored` sees every batch;
    `together` makes a failure on one process that of all; `seed_of` gives the seed of what rewards
    draw at random in the nth call.
    """

    def __init__(
        self,
        reward_set: RewardSet,
        score: ScoreSection,
        steps_per_iteration: int | None = None,
        eos_id: int | None = None,
        columns_of: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        on_scored: Callable[[ScoredBatch], None] | None = None,
        together: Callable[[Callable[[], ScoredBatch]], ScoredBatch] = lambda job: job(),
        seed_of: Callable[[int], int | None] = lambda call: None,
    ) -> None:
        for entry in reward_set.entries:
            if entry.is_constraint:
                wish = "hard" if entry.hard else "moment"
                raise RewardConfigError(
                    f"rewards.{entry.name}.{wish} is fitted by this project's own loop, and TRL's "
                    "trainers know weights alone; use launch/ppo.py, launch/dpg.py or "
                    "launch/reinforce.py, or a weight"
                )
            if isinstance(entry.weight, Ramp) and steps_per_iteration is None:
                raise RewardConfigError(
                    f"rewards.{entry.name}.weight={entry.settings()['weight']} moves with the "
                    "iteration, and TRL counts optimiser steps; give "
                    "trl_reward_funcs(..., steps_per_iteration=N), or a weight that is a number"
                )
        self._set, self._section = reward_set, score
        self._steps, self._eos = steps_per_iteration, eos_id
        self._columns_of, self._on_scored, self._together = columns_of, on_scored, together
        self._seed_of, self._calls = seed_of, 0
        self._batch: ScoredBatch | None = None
        self._of: object = None  # the completions that `_batch` scores
        self._read: set[str] = set()  # by which functions

    def rewards(self) -> TRLRewards:
        entries = self._set.entries
        weights = [1.0 if isinstance(e.weight, Ramp) else e.weight_at(None) for e in entries]
        functions = [self._reward(i) for i in range(len(entries))]
        if self._section.clip is not None or self._section.missing_eos_penalty > 0:
            functions.append(self._bounds())
            weights.append(1.0)
        return TRLRewards(functions, weights)

    def _reward(self, index: int) -> RewardFunction:
        entry = self._set.entries[index]

        def function(*, completions: Sequence[Any], **given: Any) -> list[float | None]:
            output = self._scored(entry.name, completions, given).output
            factor = output.weights.get(entry.name, 1.0)  # of a weight that moves
            return [
                factor * entry.shaped(float(value)) if valid else None
                for value, valid in zip(
                    output.values[:, index], output.valid[:, index], strict=True
                )
            ]

        function.__name__ = function.__qualname__ = entry.name
        return function

    def _bounds(self) -> RewardFunction:
        def function(*, completions: Sequence[Any], **given: Any) -> list[float | None]:
            batch = self._scored(BOUNDS, completions, given)
            return [
                after - float(b) for after, b in zip(batch.score, batch.output.score, strict=True)
            ]

        function.__name__ = function.__qualname__ = BOUNDS
        return function

    def _scored(
        self, reader: str, completions: Sequence[Any], given: Mapping[str, Any]
    ) -> ScoredBatch:
        """The batch's scores; new ones for another batch, or where the same function asks again."""
        if self._batch is None or self._of is not completions or reader in self._read:
            self._batch = self._together(partial(self._score, completions, **given))
            self._of, self._read = completions, set()
            if self._on_scored is not None:
                self._on_scored(self._batch)
        self._read.add(reader)
        return self._batch

    def _score(
        self,
        completions: Sequence[Any],
        *,
        prompts: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **given: Any,
    ) -> ScoredBatch:
        texts, size = [plain_text(item) for item in completions], len(completions)
        asked = [prompt_text(item) for item in prompts]
        if self._columns_of is not None:
            given = dict(self._columns_of(given))
        columns = {k: v for k, v in given.items() if isinstance(v, list | tuple) and len(v) == size}
        logged = Logged()
        messages = [None if isinstance(item, str) else item for item in prompts]
        handed = context(completion_ids or [[]] * size, messages, trainer_state, logged)
        if completion_ids is None:
            del handed["completion_ids"]
        iteration, seed = self._iteration(trainer_state), self._seed_of(self._calls)
        self._calls += 1
        with watched():
            output = self._set(asked, texts, {**columns, **handed}, iteration, seed=seed)
        finished = self._finished(completion_ids, size)
        score = potential(torch.as_tensor(output.score), torch.tensor(finished), self._section)
        if log_extra is not None:
            for column, items in logged.extra.items():
                log_extra(column, items)
        if log_metric is not None:
            for name, numbers in logged.metrics.items():
                log_metric(name, sum(numbers) / len(numbers))
        return ScoredBatch(asked, texts, completion_ids, finished, output, score.tolist(), logged)

    def _iteration(self, state: Any) -> int | None:
        if not any(isinstance(entry.weight, Ramp) for entry in self._set.entries):
            return None
        if state is None:
            raise RewardError(
                "a weight on a schedule needs trainer_state.global_step, which TRL's trainers "
                "hand over; the call had no trainer_state"
            )
        assert self._steps is not None
        return int(state.global_step) // self._steps

    def _finished(self, ids: Sequence[Sequence[int]] | None, size: int) -> list[bool]:
        if self._eos is None:
            return [True] * size
        if ids is None:
            raise RewardError(
                "score.missing_eos_penalty needs completion_ids, which TRL's trainers hand over"
            )
        return [bool(row) and row[-1] == self._eos for row in ids]
