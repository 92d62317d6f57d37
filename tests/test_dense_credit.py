"""Credit before the end gives the gradient that the whole score gives, by enumeration."""

import enumeration
import oracle
import pytest
import torch
from enumeration import distance, every_response, gradient, token_logprobs

from rewards.compose import RewardSet, parse_entries
from rewards.contract import Score, Span
from rlalign.gae import gae
from rlalign.masking import last_index
from rlalign.policy import Policy
from rlalign.scoring import score_rollout
from rlalign.sections import ScoreSection

REWARDS = {
    "a rate over the final length": {"kind": "lexical.word_rate", "words": ["c"]},
    "a rate of phrases": {"kind": "lexical.word_rate", "words": ["c b", "e"]},
    "a count": {"kind": "lexical.excludes", "words": ["c", "d"], "mode": "count"},
    "one hit": {"kind": "lexical.contains", "words": ["d a", "b"]},
    "distinct words": {"kind": "lexical.diversity", "n": 1},
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


def test_all_responses_are_there():
    rollout = every_response()
    assert len({tuple(ids) for ids in rollout.response_ids.tolist()}) == len(rollout) == 781
    assert int(rollout.response_mask.sum(1).amax()) == enumeration.LENGTH
