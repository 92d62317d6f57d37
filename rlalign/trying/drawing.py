"""Responses of a policy and of its reference to the same prompt, from the same random numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.contract import Span
from rewards.randomness import derived
from rlalign.evaluate import sample_rows, scored_in_passing
from rlalign.measure import final_coef, state_of
from rlalign.policy import Policy, evaluate_rollout, logprobs_only
from rlalign.prompts import Row
from rlalign.session import Session, check_columns
from rlalign.startup import say
from rlalign.target import Target
from rlalign.types import PromptBatch, ScoredRollout

AT_ONCE = 16  # responses of one model, so that a long file shows its first ones soon


@dataclass(frozen=True)
class Tried:
    """One response with what it earned."""

    row: dict[str, Any]  # as in eval_samples.jsonl
    spans: Sequence[Span]  # what earns or costs score

    @property
    def by_policy(self) -> bool:
        return bool(self.row["drawn_by"] == "policy")


@dataclass(frozen=True)
class Pair:
    """What both wrote to a prompt, `number` counting from 0 the samples of it."""

    prompt: str
    number: int
    reference: Tried
    policy: Tried


class Trial:
    """A session with a trained model in it, which draws pairs of responses."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.session = session
        self.seed = session.config.train.seed  # what is drawn is a function of it
        # As `eval` does: one response must not depend on which others are drawn beside it.
        in_float32 = session.config.eval.dtype == "float32" and not is_float32(session.policy)
        if in_float32:
            session.policy = session.policy.in_float32()  # in its place: one copy is enough
        self.beta = final_coef(folder, session.config)
        self.target = known_target(session.target, folder)

    @torch.no_grad()
    def pairs(self, rows: Sequence[Row], n: int = 1, draw: int = 0) -> Iterator[Pair]:
        """`n` pairs for each row of data, in order, as they are drawn.

        A response depends on the seed, the prompt, its number and `draw`: not on the other rows.
        """
        step = max(AT_ONCE // n, 1)
        for i in range(0, len(rows), step):
            batch = self.batch(rows[i : i + step])
            reference = self._tried("reference", batch, n, draw)
            policy = self._tried("policy", batch, n, draw)
            for k, (a, b) in enumerate(zip(reference, policy, strict=True)):
                yield Pair(batch.texts[k // n], k % n, a, b)

    def batch(self, rows: Sequence[Row]) -> PromptBatch:
        """The prompts as tokens; RewardConfigError where the rewards cannot work with a column."""
        encoded = self.session.encoded(rows)
        check_columns(self.session.reward_set, encoded, self.session.columns_of(encoded))
        return encoded.batch(range(len(encoded)), self.session.ranks.device)

    def _tried(self, drawn_by: str, prompts: PromptBatch, n: int, draw: int) -> list[Tried]:
        session, policy = self.session, self.session.policy
        engine = session.measuring_engine()
        seeds = [self._seed(ids, draw) for ids in token_rows(prompts)]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if drawn_by == "policy":
            engine.sync(policy)
            rollout = engine.generate(prompts, n, generators)
        else:
            with policy.reference() as reference:
                engine.sync(reference)
                rollout = engine.generate(prompts, n, generators)
        seed = derived(self.seed, "rewards of sample", draw)
        scored = scored_in_passing(session, policy, rollout, self.target, self.beta, seed)
        own = evaluate_rollout(policy, rollout, logprobs_only, session.budget)["logprobs"]
        return tried(session, drawn_by, scored, own, n)

    def _seed(self, ids: Sequence[int], draw: int) -> int:
        # Of the prompt, not of its place: and the same one for both models, so that a policy
        # that is still its reference writes what that writes.
        return derived(self.seed, "sample", draw, *ids)


def tried(
    session: Session, drawn_by: str, scored: ScoredRollout, own: Tensor, n: int
) -> list[Tried]:
    """Each response of a scored rollout, `own` being its log-probabilities under the policy."""
    mask = scored.rollout.action_mask
    log_policy, log_reference = (
        torch.where(mask, x, 0.0).double().sum(1).cpu() for x in (own, scored.ref_logprobs)
    )
    rows = sample_rows(session.reward_set, scored, log_policy - log_reference)
    return [
        Tried(
            {
                "drawn_by": drawn_by,
                "sample": i % n,
                "spans": {},
                **row,
                "log_policy": float(log_policy[i]),
                "log_reference": float(log_reference[i]),
            },
            scored.spans[i],
        )
        for i, row in enumerate(rows)
    ]


def token_rows(prompts: PromptBatch) -> list[list[int]]:
    """The ids of each prompt, without padding."""
    each = zip(prompts.prompt_ids, prompts.prompt_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in each]


def is_float32(policy: Policy) -> bool:
    parameters = policy.lm.parameters()
    return policy.autocast_dtype is None and all(p.dtype == torch.float32 for p in parameters)


def known_target(declared: Target, folder: Path) -> Target:
    """The target with the lambdas that the run ended with, whatever it samples by now."""
    if declared.is_fitted:
        return declared
    saved = state_of(folder).get("target") or {}
    wanted = {entry.name for entry in (*declared.moments, *declared.hard)}
    if wanted <= {*saved.get("lambdas", ()), *saved.get("log_epsilon", ())}:
        return declared.restored(saved)
    say(
        f"warning: the weights of {', '.join(sorted(wanted))} are fitted in training, and no "
        "checkpoint here holds them: the score leaves them out"
    )
    return declared
