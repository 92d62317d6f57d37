"""A TRL run's numbers in our form: metrics.jsonl and samples.jsonl as a PPO run writes them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import TrainerCallback

from rlalign.guard.whereabouts import HERE, Interrupted
from rlalign.metrics import peak_memory_mb
from rlalign.scoring import logged_stats
from rlalign.session import Session
from rlalign.trl_trainers.rewards import ScoredBatch

Write = Callable[[Mapping[str, float], Sequence[Mapping[str, Any]]], None]
# Keys of TRL's log that are ours under another name; the others are kept under trl/.
RENAMED = {"entropy": "entropy"}


class Recorder(TrainerCallback):
    """Collects what was scored, and writes a row when TRL logs an iteration.

    The last row waits in `last`, so that the final evaluation can stand in it.
    """

    def __init__(self, session: Session, write: Write) -> None:
        self._session, self._write = session, write
        self._rows: list[dict[str, Any]] = []
        self._logged: list[Mapping[str, Sequence[float]]] = []
        self._failures: dict[str, int] = {}
        self._weights: Mapping[str, float] = {}
        self._lr = math.nan
        self._start = time.perf_counter()
        self.last: dict[str, float] = {}
        self.last_rows: list[dict[str, Any]] = []

    def scored(self, batch: ScoredBatch) -> None:
        """Keep one call's samples."""
        HERE.does("")  # a sign of life
        self._rows += sample_rows(batch)
        self._logged.append(batch.logged.metrics)
        self._weights = batch.output.weights
        for name, count in batch.output.skipped.items():
            self._failures[name] = self._failures.get(name, 0) + count

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        steps = self._session.config.steps_per_iteration
        HERE.iteration = state.global_step // steps + 1
        # SIGTERM, on whichever rank: all leave TRL's loop here together.
        if self._session.ranks.any(HERE.stop_requested):
            raise Interrupted

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "reward" not in (logs or {}):  # the summary at the end
            return
        config, ranks = self._session.config, self._session.ranks
        rows, logged = ranks.gather(self._rows), ranks.gather(self._logged)
        failures = ranks.gather([self._failures])
        iteration = state.global_step // config.steps_per_iteration
        now = time.perf_counter()
        row = {"iteration": iteration, "samples": iteration * config.train.samples}
        row |= reward_stats(rows, self._session.reward_set.names) | logged_stats(logged)
        for name in self._failures:
            row[f"reward/{name}/failed"] = float(sum(f.get(name, 0) for f in failures))
        row |= {f"reward/{name}/weight": weight for name, weight in self._weights.items()}
        row |= trl_stats(logs, row["length"], config.kl.coef)
        row["lr"] = self._lr  # TRL logs the next step's
        row["optimizer_steps"] = state.global_step
        row["time/total"] = now - self._start
        row["tokens_per_second"] = row["tokens"] / row["time/total"]
        row["memory/peak_mb"] = peak_memory_mb()
        self._rows, self._logged, self._failures, self._start = [], [], {}, now
        rows = [{"iteration": iteration, "split": "train"} | r for r in rows]
        if iteration < config.train.iterations:
            self._write(row, rows)
        else:
            self.last, self.last_rows = row, rows


def sample_rows(batch: ScoredBatch) -> list[dict[str, Any]]:
    """One row for each sample, as samples.jsonl holds them; the KL is known to TRL alone."""
    names, output = batch.output.names, batch.output
    ids = batch.completion_ids or [[]] * len(batch.completions)
    return [
        {
            "prompt": batch.prompts[i],
            "response": batch.completions[i],
            "score": float(batch.score[i]),
            "kl": None,
            "length": len(ids[i]),
            "finished": batch.finished[i],
            "rewards": {
                name: float(output.values[i, r]) if output.valid[i, r] else None
                for r, name in enumerate(names)
            },
            **{name: column[i] for name, column in batch.logged.extra.items()},
        }
        for i in range(len(batch.completions))
    ]


def reward_stats(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Score, rewards and lengths, by the metric keys of a PPO run."""
    scores = np.array([row["score"] for row in rows])
    stats = {
        "score": float(scores.mean()),
        "score/std": float(scores.std()),
        "length": float(np.mean([row["length"] for row in rows])),
        "finished": float(np.mean([row["finished"] for row in rows])),
        "tokens": float(sum(row["length"] for row in rows)),
    }
    for name in names:
        values = [row["rewards"][name] for row in rows]
        valid = [value for value in values if value is not None]
        if valid:
            stats[f"reward/{name}"] = float(np.mean(valid))
        stats[f"reward/{name}/valid"] = len(valid) / len(values)
    return stats


def trl_stats(logs: Mapping[str, float], length: float, coef: float) -> dict[str, float]:
    """TRL's own numbers: those that have a name of ours under it, all others under trl/.

    Its `kl` is a mean over tokens; times the mean length it is nats a response.
    """
    stats = {"kl/coef": coef}
    for key, value in logs.items():
        number = math.nan if value is None else float(value)  # TRL's word for NaN is None, too
        if key == "kl":
            stats["kl/ref"] = number * length
        stats[RENAMED.get(key, f"trl/{key}")] = number
    return stats
