"""PPO reaches ref * exp(reward / beta), measured against all 97,656 responses to two prompts."""

import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import oracle
import pytest
import torch

from rlalign.algorithms.ppo import PPO, PPORun
from rlalign.config import from_mapping
from rlalign.policy import logprobs_only, tensors
from rlalign.session import Session
from rlalign.trainer import Trainer, schedule

ITERATIONS, SAMPLES = 320, 512  # 163,840 samples
SEEDS = (0, 1, 2)
LR = 1e-3
CASES = {  # reward, r / beta, temperature
    "sparse-1": (oracle.sparse, 1.0, 1.0),
    "sparse-3": (oracle.sparse, 3.0, 0.7),
    "sparse-10": (oracle.sparse, 10.0, 1.0),
    "dense-20": (oracle.dense, 20.0, 1.0),
    "hit-1": (oracle.hit, 1.0, 1.0),
    "rate-20": (oracle.rate, 20.0, 1.0),
}
WITHOUT_SPANS = ("sparse-1", "sparse-3", "sparse-10", "dense-20")


def session_of(
    functions: Sequence[oracle.Reward],
    r_over_beta: float,
    temperature: float,
    seed: int,
    placement: str = "score",
    iterations: int = ITERATIONS,
    credit: str = "spans",
    prompts: Sequence[Any] = oracle.PROMPTS,
    rewards: Mapping[str, Any] = MappingProxyType({}),
) -> Session:
    settings = oracle.config(
        rewards=rewards,
        kl={"coef": 1.0 / r_over_beta, "placement": placement},
        score={"credit": credit},
        sampling={"max_new_tokens": oracle.MAX_LENGTH, "temperature": temperature},
        train={"iterations": iterations, "samples": SAMPLES, "seed": seed},
        optim={"schedule": "cosine", "warmup_iterations": 40},
        ppo={
            "epochs": 1,
            "minibatches": 2,
            "lr": LR,
            "value_lr": 1e-2,
            "gae_lambda": 1.0,
        },
    )
    return Session(
        from_mapping(PPORun, settings, rewards_given=True),
        lm=oracle.language_model(),
        tokenizer=oracle.tokenizer(),
        prompts=prompts,
        rewards=functions,
    )


def ppo(
    reward: oracle.Reward, r_over_beta: float, temperature: float, seed: int, **options: Any
) -> oracle.Distance:
    session = session_of([reward], r_over_beta, temperature, seed, **options)
    trained(session)
    return oracle.distances(session.policy, reward, r_over_beta)


def trained(session: Session) -> None:
    trainer = Trainer(session, PPO(session.config))  # type: ignore[arg-type]
    iterations = session.config.train.iterations
    for _ in range(iterations):
        trainer.step(trainer.generate())
    assert trainer.samples == iterations * SAMPLES <= 400_000


def policy_gradient(
    reward: oracle.Reward, r_over_beta: float, temperature: float, seed: int
) -> oracle.Distance:
    """The plain baseline: REINFORCE on score - beta KL with the other samples' mean subtracted."""
    session = session_of([reward], r_over_beta, temperature, seed)
    trainer = Trainer(session, PPO(session.config))  # type: ignore[arg-type]
    optim = session.config.optim
    optimizer = torch.optim.Adam(session.policy.lm.parameters(), betas=optim.betas, fused=True)
    for iteration in range(ITERATIONS):
        trainer.iteration = iteration
        scored = trainer.score(trainer.generate())
        logprobs = session.policy(*tensors(scored.rollout), logprobs_only)["logprobs"].sum(1)
        kl = logprobs.detach() - scored.ref_logprobs.sum(1)
        gain = scored.score - kl / r_over_beta
        prompt = scored.rollout.prompts.prompt_mask.sum(1)  # the two prompts differ in length
        advantage = torch.zeros_like(gain)
        for length in prompt.unique():
            same = prompt == length
            n = same.sum()
            advantage[same] = (gain[same] - gain[same].mean()) * n / (n - 1)
        for group in optimizer.param_groups:
            group["lr"] = LR * schedule(session.config, iteration)
        optimizer.zero_grad()
        (-(advantage * logprobs).mean()).backward()
        optimizer.step()
    return oracle.distances(session.policy, reward, r_over_beta)


def test_enumeration_is_complete() -> None:
    policy = session_of([oracle.sparse], 1.0, 1.0, 0).policy
    assert len(oracle.all_sequences().texts) == 97_656
    for prompt in oracle.PROMPTS:
        logprobs = oracle.sequence_logprobs(policy, oracle.tokenizer()(prompt)["input_ids"])
        assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-6)


def test_the_base_rate_of_the_sparse_reward_is_about_8_percent() -> None:
    distance = oracle.distances(session_of([oracle.sparse], 1.0, 1.0, 0).policy, oracle.sparse, 1.0)
    assert 0.06 < distance.base_rate < 0.10
    assert distance.total_variation > 0.05  # an untrained policy fails what follows


def test_ppo_reaches_the_target_distribution() -> None:
    distance = ppo(oracle.sparse, 1.0, 1.0, seed=0)
    assert distance.total_variation <= 0.025
    assert distance.reverse_kl <= 0.003


@pytest.mark.prove
@pytest.mark.parametrize("case", WITHOUT_SPANS)
def test_ppo_is_near_the_target_and_no_worse_than_a_plain_policy_gradient(case: str) -> None:
    found = [measured("ppo", ppo, case, seed) for seed in SEEDS]
    if case == "sparse-1":  # the case with stated limits, for the median seed
        assert statistics.median(d.total_variation for d in found) <= 0.025
        assert statistics.median(d.reverse_kl for d in found) <= 0.003
    baseline = [measured("baseline", policy_gradient, case, seed) for seed in SEEDS]
    for distance in ("reverse_kl", "total_variation"):
        ours, theirs = ([getattr(d, distance) for d in runs] for runs in (found, baseline))
        error = statistics.stdev(theirs) / math.sqrt(len(theirs))
        assert statistics.mean(ours) <= statistics.mean(theirs) + error, distance


@pytest.mark.prove
def test_ppo_whose_tokens_pay_for_themselves_is_near_the_target_a_little_later() -> None:
    """kl.placement=reward, the default: its critic has more to learn."""
    by_token = partial(ppo, placement="reward", iterations=440)
    found = [measured("ppo, by token", by_token, "sparse-1", seed) for seed in SEEDS]
    assert statistics.median(d.total_variation for d in found) <= 0.025
    assert statistics.median(d.reverse_kl for d in found) <= 0.003


@pytest.mark.prove
@pytest.mark.parametrize(("case", "limit"), [("hit-1", 0.003), ("rate-20", 0.003)])
def test_ppo_comes_near_the_same_optimum_with_spans_and_without(case: str, limit: float) -> None:
    """Same budget, that of tokens which pay for themselves: both come within the limits."""
    arms = [
        [measured(f"ppo, {credit}", partial(ppo, credit=credit, iterations=440), case, seed)
         for seed in SEEDS]
        for credit in ("spans", "last")
    ]  # fmt: skip
    for found in arms:
        assert statistics.median(d.reverse_kl for d in found) <= limit
        assert statistics.median(d.total_variation for d in found) <= 0.025
    # Not equal: the hit, seed 0, ends at 0.0029 with spans and 0.0020 without. That both have
    # the same optimum is exact in test_dense_credit.py; here neither is far from it.
    with_spans, without = (statistics.mean(d.reverse_kl for d in found) for found in arms)
    assert abs(with_spans - without) <= limit / 2


ASKED = {"a": "d a", "c b d": "e a"}  # base rates 8.1% and 7.9%


def asked_of(prompt: str) -> oracle.Reward:
    """1 for a response that says what its prompt's row asks for; plain, to judge by."""
    return lambda completions, **_: [float(ASKED[prompt] in text) for text in completions]


@pytest.mark.prove
@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_reaches_each_prompts_own_target_where_a_column_sets_its_reward(seed: int) -> None:
    """P(y|x, c): one policy, two prompts, `words` from the data; r / beta = 1."""
    rows = [{"prompt": prompt, "words": phrase} for prompt, phrase in ASKED.items()]
    said = {"kind": "lexical.contains", "words": {"column": "words"}}
    session = session_of([], 1.0, 1.0, seed, prompts=rows, rewards={"said": said})
    trained(session)
    # (prompt, what is asked): each prompt's own control, and the other one's.
    found = {
        (prompt, asked): oracle.distance(session.policy, prompt, asked_of(asked), 1.0)
        for prompt in ASKED
        for asked in ASKED
    }
    for (prompt, asked), distance in found.items():
        logged(f"ppo, asked as {asked!r}", prompt, seed, distance)
    for (prompt, asked), distance in found.items():
        if prompt == asked:
            assert distance.base_rate < 0.1 and distance.target_rate > 0.18
            # Untrained it is 0.05 nats away. What is learnt for one prompt serves the other less
            # than where they share a reward, so as many samples bring it less near.
            assert distance.reverse_kl <= 0.008 and distance.total_variation <= 0.04
        else:
            assert distance.reverse_kl > 0.05  # the controls do not mix


Method = Callable[[oracle.Reward, float, float, int], oracle.Distance]


def measured(name: str, method: Method, case: str, seed: int) -> oracle.Distance:
    """A case's distances, also written as a row to the file that RLALIGN_ORACLE_LOG names."""
    distance = method(*CASES[case], seed)
    logged(name, case, seed, distance)
    return distance


def logged(name: str, case: str, seed: int, distance: oracle.Distance) -> None:
    if log := os.environ.get("RLALIGN_ORACLE_LOG"):
        row = {"method": name, "case": case, "seed": seed, **asdict(distance)}
        with Path(log).open("a") as file:
            file.write(json.dumps(row) + "\n")
