"""Credit before the end gives the gradient that the whole score gives, by enumeration."""

import enumeration
import oracle
import pytest
import torch
from enumeration import distance, every_response, gradient, token_logprobs
from torch import Tensor
from torch.testing import assert_close

from rewards.compose import RewardSet, parse_entries
from rewards.contract import Score, Span
from rlalign.gae import gae
from rlalign.masking import last_index
from rlalign.policy import Policy
from rlalign.scoring import score_rollout
from rlalign.settings.sections import ScoreSection
from rlalign.types import ScoredRollout

REWARDS = {
    "a rate over the final length": {"kind": "lexical.word_rate", "words": ["c"]},
    "a rate of phrases": {"kind": "lexical.word_rate", "words": ["c b", "e"]},
    "a count": {"kind": "lexical.excludes", "words": ["c", "d"], "mode": "count"},
    "one hit": {"kind": "lexical.contains", "words": ["d a", "b"]},
    "every word": {"kind": "lexical.contains", "words": ["a", "c"], "mode": "all"},
    "a share of words": {"kind": "lexical.contains", "words": ["a", "c", "e d"], "mode": "share"},
    "no word": {"kind": "lexical.excludes", "words": ["b"]},
    "a match that later text undoes": {"kind": "lexical.pattern", "pattern": "[ce] ?$"},
    "a count of matches": {"kind": "lexical.pattern", "pattern": "a b|b a|c", "mode": "count"},
    "distinct words": {"kind": "lexical.diversity", "n": 1},
    "a range of words": {"kind": "structure.word_count", "min": 1, "max": 2, "slack": 2},
    "repetition": {"kind": "structure.repetition", "n": 1},
    "a clipped reward": {"kind": "lexical.excludes", "words": ["c"], "mode": "count",
                         "clip": [-1, 0]},
    "a threshold on a rate": {"kind": "lexical.word_rate", "words": ["c", "e"], "threshold": 0.4},
}  # fmt: skip


def gradients(reward_set: RewardSet, section: ScoreSection) -> tuple[torch.Tensor, torch.Tensor]:
    """The reward-to-go gradient of the placed credit, and the exact one of E[score]."""
    policy = Policy(oracle.language_model())
    rollout = every_response()
    scored = score_rollout(rollout, reward_set, section, policy, oracle.tokenizer(), 10_000)
    is_last = torch.arange(enumeration.LENGTH) == last_index(rollout.action_mask).unsqueeze(1)
    assert bool((scored.token_rewards[~is_last] != 0).any()), "no credit lands before the end"
    logprobs = token_logprobs(policy, rollout)
    probability = logprobs.sum(1).exp()
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-4)
    zero = torch.zeros_like(logprobs)
    reward_to_go, _ = gae(scored.token_rewards, zero, rollout.action_mask, gamma=1.0, lam=1.0)
    surrogate = (probability.detach().unsqueeze(1) * reward_to_go * logprobs).sum()
    exact = gradient(policy, (token_logprobs(policy, rollout).sum(1).exp() * scored.score).sum())
    return gradient(policy, surrogate), exact


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize(
    "section",
    [ScoreSection(), ScoreSection(missing_eos_penalty=0.7), ScoreSection(clip=(-1.5, 0.4))],
    ids=["plain", "missing EOS", "clipped score"],
)
def test_dense_credit_has_the_gradient_of_the_whole_score(name, section):
    reward_set = RewardSet(parse_entries({"r": REWARDS[name]}))
    assert distance(*gradients(reward_set, section)) < 1e-4


def test_several_rewards_together_have_it_too():
    entries = {"rate": REWARDS["a rate over the final length"] | {"weight": 2.0},
               "count": REWARDS["a count"] | {"weight": -0.5}}  # fmt: skip
    reward_set = RewardSet(parse_entries(entries))
    assert distance(*gradients(reward_set, ScoreSection(clip=(-0.5, 1.0)))) < 1e-4


def test_a_combination_beside_dense_rewards_has_it_too():
    parts = {"rate": REWARDS["a rate over the final length"], "hit": REWARDS["one hit"]}
    entries = {"both": {"kind": "combine.min", "parts": parts, "weight": 2.0},
               "count": REWARDS["a count"] | {"weight": 0.5}}  # fmt: skip
    reward_set = RewardSet(parse_entries(entries))
    assert distance(*gradients(reward_set, ScoreSection(clip=(-0.5, 1.0)))) < 1e-4


def share_of_the_final_length(completions: list[str], **_) -> list[Score]:
    """The same rate as word_rate's, but each hit gets 1 over a length that it cannot know yet."""
    return [
        Score(text.count("c") / max(len(text.split()), 1), [
            Span(i, i + 1, 1 / len(text.split())) for i, letter in enumerate(text) if letter == "c"
        ])
        for text in completions
    ]  # fmt: skip


def test_credit_that_depends_on_later_text_has_another_gradient():
    """So the test above can fail."""
    reward_set = RewardSet([], extra=[share_of_the_final_length])
    assert distance(*gradients(reward_set, ScoreSection())) > 0.05


def placed(reward_set: RewardSet, section: ScoreSection) -> ScoredRollout:
    policy = Policy(oracle.language_model())
    return score_rollout(every_response(), reward_set, section, policy, oracle.tokenizer(), 10_000)


def where_ppo_rests(token_rewards: Tensor, scored: ScoredRollout, beta: float) -> float:
    """KL(pi | P_T) in nats of the policy at which the expected gradient of PPO is 0.

    There pi(a|s) is ref(a|s) exp(Q(s, a) / beta) up to a factor, Q being the expected reward-to-go
    of the response's rest less beta times its KL. A policy is any table, filled from the leaves.
    """
    mask = scored.rollout.action_mask
    ref = scored.ref_logprobs.double()  # (S, T)
    own, reward = ref.clone(), token_rewards.double()
    rows = scored.rollout.response_ids.tolist()
    for t in reversed(range(enumeration.LENGTH)):
        owed = beta * torch.where(mask, own - ref, 0.0)[:, t + 1 :].sum(1)
        to_go = reward[:, t:].sum(1) - owed  # (S,)
        chance = (
            torch.where(mask, own, 0.0)[:, t + 1 :].sum(1).exp()
        )  # (S,) of what follows token t
        branches: dict[tuple[int, ...], dict[int, list[int]]] = {}
        for s in mask[:, t].nonzero().squeeze(1).tolist():
            branches.setdefault(tuple(rows[s][:t]), {}).setdefault(rows[s][t], []).append(s)
        for branch in branches.values():
            q = torch.stack([(chance[rest] * to_go[rest]).sum() for rest in branch.values()])
            prior = torch.stack([ref[rest[0], t] for rest in branch.values()])
            for logprob, rest in zip(
                (prior + q / beta).log_softmax(0), branch.values(), strict=True
            ):
                own[rest, t] = logprob
    policy = torch.where(mask, own, 0.0).sum(1)
    target = (torch.where(mask, ref, 0.0).sum(1) + scored.score.double() / beta).log_softmax(0)
    return float((policy.exp() * (policy - target)).sum())


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("credit", ["spans", "last"])
def test_ppo_rests_at_the_target_with_spans_and_without(name, credit):
    scored = placed(RewardSet(parse_entries({"r": REWARDS[name]})), ScoreSection(credit=credit))
    assert where_ppo_rests(scored.token_rewards, scored, beta=0.05) < 1e-5


def test_ppo_rests_elsewhere_with_credit_that_looks_ahead():
    """A rate of words: its credit over the final length, or spread evenly over the response."""
    rate = placed(RewardSet(parse_entries({"r": REWARDS["a rate over the final length"]})),
                  ScoreSection())  # fmt: skip
    wrong = placed(RewardSet([], extra=[share_of_the_final_length]), ScoreSection())
    assert_close(wrong.score, rate.score)
    mask = rate.rollout.action_mask
    even = mask * (rate.score / mask.sum(1)).unsqueeze(1)
    found = [where_ppo_rests(rewards, rate, beta=0.05)
             for rewards in (rate.token_rewards, wrong.token_rewards, even)]  # fmt: skip
    assert found[0] < 1e-9 < 0.02 < found[1] and found[2] > 1.0  # measured: 4e-16, 0.027, 2.04


def test_credit_at_the_last_token_is_the_score_there():
    scored = placed(
        RewardSet(parse_entries({"r": REWARDS["a count"]})), ScoreSection(credit="last")
    )
    last = last_index(scored.rollout.action_mask)
    at_end = scored.token_rewards.gather(1, last.unsqueeze(1)).squeeze(1)
    assert_close(at_end, scored.score)
    assert_close(scored.token_rewards.sum(1), scored.score)


def test_all_responses_are_there():
    rollout = every_response()
    assert len({tuple(ids) for ids in rollout.response_ids.tolist()}) == len(rollout) == 781
    assert int(rollout.response_mask.sum(1).amax()) == enumeration.LENGTH
