"""The yardstick: a policy's score, KL and diversity on held-out prompts, in float32."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rewards.compose import RewardSet
from rlalign.generation import decode_engine
from rlalign.kl import kl_tokens
from rlalign.metrics import distinct_n, mean_and_se
from rlalign.policy import Policy, evaluate_rollout, logprobs_only
from rlalign.prompts import scheduled
from rlalign.scoring import marks, score_rollout
from rlalign.session import Session
from rlalign.target import Target
from rlalign.types import Rollout, ScoredRollout


@dataclass(frozen=True)
class Evaluation:
    stats: dict[str, float]  # eval/<name>, over every rank's samples
    rows: list[dict[str, Any]]  # prompt, response, score, kl, rewards: every rank's samples
    is_held_out: bool = True  # False: the prompts are those of the training


@torch.no_grad()
def evaluate(
    session: Session, kl_coef: float, target: Target | None = None, *, of_reference: bool = False
) -> Evaluation:
    """Measure the policy, or its reference, on the held-out prompts.

    The same prompts and random numbers every time, also of the rewards, so that evaluations differ
    by the policy alone. They leave no trace in rewards that have a state.
    In float32 unless `eval.dtype` says otherwise: bf16 moves a response's log-probability by about
    0.2 nats. `eval/objective` is score - beta KL, which is what the training maximises; the weights
    in it are the final ones, those of moments the `target`'s.
    """
    in_float32 = session.config.eval.dtype == "float32"
    policy = session.policy.in_float32() if in_float32 else session.policy
    if of_reference:
        with policy.reference() as reference:
            return _measure(session, reference, kl_coef, target)
    return _measure(session, policy, kl_coef, target)


def _measure(session: Session, policy: Policy, kl_coef: float, target: Target | None) -> Evaluation:
    config, ranks = session.config, session.ranks
    share = -(-config.eval.samples // ranks.size)
    order = scheduled(len(session.eval_prompts), config.train.seed, 0, share * ranks.size)
    mine = order[ranks.rank * share : (ranks.rank + 1) * share]
    # The yardstick is the decode loop's, also where vLLM samples for training: in float32, with the
    # same random numbers every time.
    engine = decode_engine(config.sampling, session.tokenizer)
    engine.sync(policy)
    prompts = session.eval_prompts.batch(mine, ranks.device)

    def measured() -> list[dict[str, Any]]:
        rollout = engine.generate(prompts, 1, session.generator("evaluate", 0))
        seed = session.seed("rewards of evaluate", 0)
        scored = scored_in_passing(session, policy, rollout, target, kl_coef, seed)
        logprobs = evaluate_rollout(policy, rollout, logprobs_only, session.budget)["logprobs"]
        kl = torch.where(rollout.action_mask, kl_tokens(logprobs, scored.ref_logprobs), 0.0).sum(1)
        return sample_rows(session.reward_set, scored, kl)

    rows = ranks.gather(ranks.together(measured))
    stats = summarise(rows, session.reward_set.names, kl_coef)
    return Evaluation(stats, rows, session.evaluates_on_held_out)


def scored_in_passing(
    session: Session,
    policy: Policy,
    rollout: Rollout,
    target: Target | None,
    beta: float,
    seed: int,
) -> ScoredRollout:
    """A rollout with the rewards as they are at the end; their own states stay as they were."""
    with session.reward_set.measuring():
        return score_rollout(
            rollout,
            session.reward_set,
            session.config.score,
            policy,
            session.tokenizer,
            session.budget,
            state=session.trainer_state(),
            target=target,
            beta=beta,
            seed=seed,
        )


def rescored(evaluation: Evaluation, target: Target, kl_coef: float) -> Evaluation:
    """The same samples with the scores that they have under this target.

    The lambdas of moments move while a policy learns: two evaluations compare under one target.
    """
    names = [entry.name for entry in target.entries]
    values = torch.tensor(
        [[math.nan if row["rewards"][n] is None else row["rewards"][n] for n in names]
         for row in evaluation.rows], dtype=torch.float64,
    )  # fmt: skip
    finished = torch.tensor([row["finished"] for row in evaluation.rows])
    priced = replace(target, beta=kl_coef)
    scores = kl_coef * priced.potential_of(target.features(values), finished, smooth=True)
    rows = [
        {**row, "score": score} for row, score in zip(evaluation.rows, scores.tolist(), strict=True)
    ]
    return Evaluation(summarise(rows, names, kl_coef), rows, evaluation.is_held_out)


def sample_rows(reward_set: RewardSet, scored: ScoredRollout, kl: Tensor) -> list[dict[str, Any]]:
    """One row for each sample of a scored rollout, as samples.jsonl holds them.

    Under `columns` a row holds what the rewards read of its prompt's data, where they read any: a
    response to "write about the sea" means little beside a reward whose topic is not shown.
    Under `spans` it has the characters that earned each reward that can name them.
    """
    prompts = scored.rollout.prompts
    read = sorted(reward_set.columns & prompts.columns.keys())
    rewards, valid = scored.rewards.tolist(), scored.valid.tolist()
    lengths = scored.rollout.response_mask.sum(1).tolist()
    return [
        {
            "prompt": prompts.texts[i],
            **({"columns": {name: prompts.columns[name][i] for name in read}} if read else {}),
            "response": scored.rollout.texts[i],
            "score": score,
            "kl": float(kl[i]),
            "length": lengths[i],
            "finished": bool(scored.rollout.finished[i]),
            "rewards": {
                name: value if ok else None
                for name, value, ok in zip(reward_set.names, rewards[i], valid[i], strict=True)
            },
            **marks(reward_set.names, scored.own_spans, i),
            **{name: column[i] for name, column in scored.logged.extra.items()},
        }
        for i, score in enumerate(scored.score.tolist())
    ]


def summarise(rows: list[dict[str, Any]], names: Sequence[str], kl_coef: float) -> dict[str, float]:
    """eval/* of sample rows: means, standard errors, and the spread of the score."""
    score, score_se = mean_and_se([row["score"] for row in rows])
    kl, kl_se = mean_and_se([row["kl"] for row in rows])
    spread = {
        "eval/score_se": score_se,
        "eval/score_std": score_se * len(rows) ** 0.5,
        "eval/kl_se": kl_se,
    }
    stats = {
        "eval/score": score,
        "eval/kl": kl,
        **(spread if len(rows) > 1 else {}),  # a single sample has none
        "eval/objective": score - kl_coef * kl,
        "eval/length": mean_and_se([float(row["length"]) for row in rows])[0],
        "eval/finished": mean_and_se([float(row["finished"]) for row in rows])[0],
        "eval/distinct2": distinct_n([row["response"] for row in rows], 2),
    }
    for name in names:
        values = [row["rewards"][name] for row in rows if row["rewards"][name] is not None]
        if values:
            stats[f"eval/reward/{name}"] = mean_and_se(values)[0]
    return stats
