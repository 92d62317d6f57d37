"""Responses of a policy and of its reference to the held-out prompts: what a yardstick reads."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlalign.batches import calls_of_rank, shares
from rlalign.evaluate import sample_rows, scored_in_passing
from rlalign.policy import Policy, evaluate_rollout, logprobs_only
from rlalign.prompts import scheduled
from rlalign.session import Session
from rlalign.target import Target
from rlalign.types import Rollout
from rlalign.yardstick.evidence import Evidence

logger = logging.getLogger(__name__)

DRAWN_BY = ("policy", "reference")
Row = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """N responses, prompt by prompt, the policy's before the reference's, over all ranks."""

    evidence: Evidence
    finished: Tensor  # (N,) bool
    lengths: Tensor  # (N,) int64, tokens
    rows: list[Row]  # as in samples.jsonl, with what the evidence holds of each


@torch.no_grad()
def draw(session: Session, coef: float, target: Target) -> Drawn:
    """As many of the policy as of the reference, in the yardstick's precision.

    The same prompts and random numbers every time, on any number of processes. `target` gives the
    potential and must be fitted.
    """
    config, ranks = session.config, session.ranks
    prompts, count = shares(
        len(session.eval_prompts), config.eval.target_samples, config.eval.samples_per_prompt
    )
    logger.info(
        "drawing %d responses of the policy and as many of its reference, %d to each of %d "
        "prompt(s)", prompts * count, count, prompts,
    )  # fmt: skip
    chosen = scheduled(len(session.eval_prompts), config.train.seed, 0, prompts)
    mine = calls_of_rank(range(prompts), count, ranks.rank, ranks.size)
    in_float32 = config.eval.dtype == "float32"
    policy = session.policy.in_float32() if in_float32 else session.policy

    def drawn(drawn_by: str, call: int, part: Sequence[int], n: int) -> list[Any]:
        rollout = sample(session, policy, drawn_by, [chosen[p] for p in part], n, call)
        return read(session, policy, drawn_by, part, rollout, coef, target, call)

    rows = ranks.together(
        lambda: [
            (call, row)
            for drawn_by in DRAWN_BY
            for call, part, n in mine
            for row in drawn(drawn_by, call, part, n)
        ]
    )
    everyone = ranks.gather(rows)
    # By prompt, who drew it and call; those of one call are in the order in which they were drawn.
    everyone.sort(key=lambda numbered: place_of(*numbered))
    return assembled([row for _, row in everyone])


def place_of(call: int, drawn: tuple[int, Row, list[float]]) -> tuple[int, int, int]:
    prompt, row, _ = drawn
    return prompt, DRAWN_BY.index(row["drawn_by"]), call


def sample(
    session: Session, policy: Policy, drawn_by: str, numbers: Sequence[int], n: int, call: int
) -> Rollout:
    """`n` responses to each of these held-out prompts, of the policy or of its reference."""
    engine = session.measuring_engine()
    batch = session.eval_prompts.batch(numbers, session.ranks.device)
    generator = session.generator(f"yardstick {drawn_by}", 0, call, of_rank=False)
    if drawn_by == "policy":
        engine.sync(policy)
        return engine.generate(batch, n, generator)
    with policy.reference() as reference:
        engine.sync(reference)
        return engine.generate(batch, n, generator)


def read(
    session: Session,
    policy: Policy,
    drawn_by: str,
    numbers: Sequence[int],
    rollout: Rollout,
    coef: float,
    target: Target,
    call: int,
) -> list[tuple[int, Row, list[float]]]:
    """(prompt, row, features) of each response of a call of the sampler."""
    seed = session.seed(f"rewards of {drawn_by}", 0, call, of_rank=False)
    scored = scored_in_passing(session, policy, rollout, target, coef, seed)
    own = evaluate_rollout(policy, rollout, logprobs_only, session.budget)["logprobs"]
    # In float64: a sum of many small numbers, of which differences are taken.
    log_policy, log_reference = (
        torch.where(rollout.action_mask, x, 0.0).double().sum(1).cpu()
        for x in (own, scored.ref_logprobs)
    )
    rows = sample_rows(session.reward_set, scored, log_policy - log_reference)
    logged = zip(rows, log_policy.tolist(), log_reference.tolist(), strict=True)
    rows = [
        {"drawn_by": drawn_by, **row, "log_policy": p, "log_reference": a} for row, p, a in logged
    ]
    prompt = [numbers[g] for g in rollout.group.tolist()]
    return list(zip(prompt, rows, scored.features.tolist(), strict=True))


def assembled(everyone: Sequence[tuple[int, Row, list[float]]]) -> Drawn:
    """Rows of every rank as tensors; the potential is still missing (0)."""
    rows = [row for _, row, _ in everyone]

    def column(name: str) -> Tensor:
        return torch.tensor([row[name] for row in rows], dtype=torch.float64)

    evidence = Evidence(
        log_policy=column("log_policy"),
        log_reference=column("log_reference"),
        log_potential=torch.zeros(len(rows), dtype=torch.float64),
        features=torch.tensor([features for _, _, features in everyone], dtype=torch.float64),
        prompt=torch.tensor([number for number, _, _ in everyone]),
        is_policys=torch.tensor([row["drawn_by"] == "policy" for row in rows]),
    )
    finished = torch.tensor([row["finished"] for row in rows])
    return Drawn(evidence, finished, column("length").long(), rows)
