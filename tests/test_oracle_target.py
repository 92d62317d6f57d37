"""Every method comes as near to an exactly known target as its theory says.

The target is sparse: a phrase that the reference writes in 1.5% of its responses, in all of them.
Its reference is a flatter oracle than the one of test_oracle.py, because that one's own 0.12 nats
are left over even by maximum likelihood on exact samples of the target (experiments/LOG.md).
"""

import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import builders
import oracle
import pytest
import torch

from rlalign.config import from_mapping
from rlalign.methods import METHODS
from rlalign.moments import Samples, fit
from rlalign.policy import logprobs_only
from rlalign.session import Session
from rlalign.trainer import Trainer, schedule

PHRASE = "d e b"  # base rates .018 and .011
SEEDS = (0, 1, 2)
ITERATIONS = 1500  # of 256 samples: with 1,100 three miss their limit (LOG.md)
SPARSE = {"hit": {"kind": "lexical.contains", "words": [PHRASE], "hard": True}}
SHARES = {  # base rates .12 and .25: two moments at once, of which the second was .25
    "hit": {"kind": "lexical.contains", "words": ["d a"], "moment": 0.5},
    "begins": {"kind": "lexical.pattern", "pattern": "^b", "clip": [0, 1], "moment": 0.3},
}


@dataclass(frozen=True)
class Found:
    forward_kl: float  # KL(P_T | policy)
    reverse_kl: float  # KL(policy | P_T); infinite where it can still write what is forbidden
    satisfaction: float  # E[the first feature] under the policy
    second: float  # share of responses that begin with b, under the policy
    second_of_target: float
    entropy: float  # nats of a response
    samples: int = 0
    seconds: float = 0.0


def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    texts = oracle.all_sequences().texts
    rows = [[PHRASE in t, t.startswith("b"), "d a" in t] for t in texts]
    phrase, begins, shared = torch.tensor(rows).double().T
    return phrase, begins, shared


def session_of(
    method: str,
    rewards: Mapping[str, Any],
    seed: int,
    iterations: int,
    section: Mapping[str, Any],
    coef: float = 1.0,
    optim: Mapping[str, Any] = MappingProxyType({}),
    spread: float = 0.05,
) -> Session:
    settings = oracle.config(
        rewards=rewards,
        sampling={"max_new_tokens": oracle.MAX_LENGTH, "samples_per_prompt": 128},
        train={"iterations": iterations, "samples": 256, "seed": seed},
        optim={"schedule": "cosine", "warmup_iterations": 20, **optim},
        target={"samples": 4096},
        kl={"coef": coef, "placement": "score"},
        **{method: section},
    )
    return Session(
        from_mapping(METHODS[method].run_model, settings),
        lm=oracle.language_model(spread=spread),
        tokenizer=oracle.tokenizer(),
        prompts=oracle.PROMPTS,
    )


def trained(method: str, session: Session) -> tuple[Trainer, float]:
    trainer = Trainer(session, METHODS[method].objective(session.config))
    start = time.process_time()
    for _ in range(session.config.train.iterations):
        trainer.step(trainer.generate())
    return trainer, time.process_time() - start


@torch.no_grad()
def measured(session: Session, potential: torch.Tensor, first: torch.Tensor) -> Found:
    """Exact numbers, the mean over the prompts; `potential` (S,) is that of the target."""
    begins, rows = features()[1], []
    for prompt in oracle.PROMPTS:
        ids = oracle.tokenizer()(prompt)["input_ids"]
        own = oracle.sequence_logprobs(session.policy, ids)
        with session.policy.reference() as reference:
            target = (oracle.sequence_logprobs(reference, ids) + potential).log_softmax(0)
        p, q, possible = target.exp(), own.exp(), target > -torch.inf
        rows.append(
            [
                float((p[possible] * (target - own)[possible]).sum()),
                float((q * (own - target)).sum()),
                float((q * first).sum()),
                float((q * begins).sum()),
                float((p * begins).sum()),
                float(-(q * own).sum()),
            ]
        )
    return Found(*torch.tensor(rows).mean(0).tolist())


def on_the_sparse_target(
    method: str,
    seed: int,
    section: Mapping[str, Any],
    iterations: int = ITERATIONS,
    coef: float = 1.0,
    rewards: Mapping[str, Any] = SPARSE,
    optim: Mapping[str, Any] = MappingProxyType({}),
) -> Found:
    session = session_of(method, rewards, seed, iterations, section, coef, optim)
    trainer, seconds = trained(method, session)
    phrase = features()[0]
    found = measured(session, phrase.log(), phrase)
    found = Found(**{**asdict(found), "samples": trainer.samples, "seconds": seconds})
    settings = {"method": method, "section": dict(section), "optim": dict(optim), "seed": seed}
    logged({**settings, **asdict(found)})
    return found


def logged(row: Mapping[str, Any]) -> None:
    """Also to the file that RLALIGN_ORACLE_LOG names."""
    if log := os.environ.get("RLALIGN_ORACLE_LOG"):
        with Path(log).open("a") as file:
            file.write(json.dumps(row) + "\n")


def test_the_sparse_event_is_as_rare_as_it_should_be():
    session = session_of("dpg", SPARSE, 0, 1, {})
    phrase = features()[0]
    found = measured(session, phrase.log(), phrase)
    assert 0.014 < found.satisfaction < 0.016
    assert 4.1 < found.forward_kl < 4.4  # -log of it
    assert 0.15 < found.second_of_target < 0.25


def test_dpg_goes_most_of_the_way_in_a_hundred_iterations():
    found = on_the_sparse_target("dpg", 0, {"lr": 3e-3}, iterations=100)
    assert found.forward_kl < 0.6 and found.satisfaction > 0.85


# name: method, its section, that of the optimiser, nats. A faster rate, or a short warm-up under
# reverse KL, loses modes of the target to the first rare successes (experiments/LOG.md).
SLOW = {"max_grad_norm": 0.1, "warmup_iterations": 300}
LIMITS = {
    "forward KL": ("dpg", {"divergence": "forward_kl", "lr": 2e-3}, {}, 0.01),
    "forward KL, off-policy": (
        "dpg",
        {"divergence": "forward_kl", "lr": 2e-3, "proposal": "best"},
        {},
        0.015,
    ),
    "Jensen-Shannon": ("dpg", {"divergence": "js", "lr": 1e-3}, {}, 0.015),
    "reverse KL": ("dpg", {"divergence": "reverse_kl", "lr": 1e-3}, SLOW, 0.03),
    "RLOO": ("reinforce", {"lr": 1e-3}, SLOW, 0.05),
    "PPO": (
        "ppo",
        {"lr": 1e-3, "value_lr": 1e-2, "epochs": 1, "minibatches": 2, "gae_lambda": 1.0,
         "value_clip": None},
        {},
        0.05,
    ),
}  # fmt: skip


@pytest.mark.prove
@pytest.mark.parametrize("name", LIMITS)
def test_a_method_reaches_the_sparse_target(name):
    """Median of three seeds, 384,000 samples each."""
    method, section, optim, limit = LIMITS[name]
    found = [on_the_sparse_target(method, seed, section, optim=optim) for seed in SEEDS]
    assert max(each.samples for each in found) <= 400_000
    assert statistics.median(each.forward_kl for each in found) <= limit
    assert statistics.median(each.satisfaction for each in found) >= 0.99
    # What it was not asked to change stays as the target has it.
    off = statistics.median(abs(each.second - each.second_of_target) for each in found)
    assert off < 0.01


# What the limits above leave out, for 300 iterations: divergence, order, rate, nats. PPO is not
# asked for the two chi2: their pseudo-rewards have no bound and few responses that earn them, and
# its critic does not learn their value (experiments/LOG.md).
OTHERS = {
    "total variation": ("tv", 0.5, 3e-3, 0.5),
    "Hellinger": ("hellinger", 0.5, 3e-3, 0.5),
    "alpha": ("alpha", 0.3, 3e-3, 0.5),
    "chi2 forward": ("forward_chi2", 0.5, 1e-3, 0.5),
    "chi2 reverse": ("reverse_chi2", 0.5, 1e-3, 1.5),
}


@pytest.mark.prove
@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "dpg") for name in OTHERS] + [(name, "ppo") for name in list(OTHERS)[:3]],
)
def test_every_divergence_goes_most_of_the_way(name, method):
    """From 4.2 nats, by its gradient, and by PPO with a critic on its pseudo-reward."""
    divergence, alpha, lr, limit = OTHERS[name]
    section = {"divergence": divergence, "alpha": alpha, "lr": lr}
    if method == "ppo":
        section |= LIMITS["PPO"][1]
    found = on_the_sparse_target(method, 0, section, iterations=300)
    assert found.forward_kl < limit and found.satisfaction > 0.85


@pytest.mark.prove
@pytest.mark.parametrize(
    ("spread", "phrase", "lr", "low", "high"),
    [(0.05, PHRASE, 1e-2, 0.0, 0.02), (0.15, "a e e", 3e-3, 0.1, 0.2)],
)
def test_maximum_likelihood_on_exact_samples_is_no_nearer(spread, phrase, lr, low, high):
    """What the model can learn of its target from as many samples of it, by no method of ours."""
    session = session_of("dpg", SPARSE, 0, 1500, {}, spread=spread)
    hit = torch.tensor([float(phrase in t) for t in oracle.all_sequences().texts]).double()
    by_maximum_likelihood(session, hit.log(), lr)
    found = measured(session, hit.log(), hit)
    logged({"method": "maximum likelihood", "spread": spread, **asdict(found)})
    assert low <= found.forward_kl <= high


def by_maximum_likelihood(session: Session, potential: torch.Tensor, lr: float) -> None:
    """Train on samples of reference exp(potential), half of a batch for each of the prompts."""
    policy, config, everything = session.policy, session.config, oracle.all_sequences()
    optimizer = torch.optim.AdamW(policy.lm.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    generator, half = builders.seeded(0), config.train.samples // 2
    prompts = []
    for prompt in oracle.PROMPTS:
        ids = oracle.tokenizer()(prompt)["input_ids"]
        with policy.reference() as reference:
            target = (oracle.sequence_logprobs(reference, ids) + potential).softmax(0)
        prompts.append((torch.tensor([ids]).expand(half, -1), target))
    for iteration in range(config.train.iterations):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(config, iteration)
        optimizer.zero_grad()
        for ids, target in prompts:
            rows = torch.multinomial(target, half, replacement=True, generator=generator)
            here = (ids, torch.ones_like(ids, dtype=torch.bool))
            there = (everything.ids[rows], everything.mask[rows])
            (-policy(*here, *there, logprobs_only)["logprobs"].sum() / (2 * half)).backward()
        optimizer.step()


@pytest.mark.prove
def test_without_a_price_on_the_kl_reinforce_collapses():
    """The lesson: every response satisfies it, and nothing else is left of the language."""
    weighed = {"hit": {"kind": "lexical.contains", "words": [PHRASE], "weight": 1.0}}
    found = on_the_sparse_target("reinforce", 0, {"lr": 3e-3}, 300, coef=0.0, rewards=weighed)
    assert found.satisfaction > 0.99
    assert found.forward_kl > 5.0 and found.entropy < 2.0
    assert abs(found.second - found.second_of_target) > 0.1


@pytest.mark.prove
@pytest.mark.parametrize("name", ["forward KL", "Jensen-Shannon", "reverse KL", "RLOO", "PPO"])
def test_a_method_reaches_two_moments_at_once(name):
    method, section, optim, _ = LIMITS[name]
    session = session_of(method, SHARES, 0, 1500, section, optim=optim)
    trained(method, session)
    _, begins, shared = features()
    # The exact lambdas: by the same fit, on all sequences with their probabilities.
    with session.policy.reference() as reference:
        weights = torch.cat([
            oracle.sequence_logprobs(reference, oracle.tokenizer()(prompt)["input_ids"])
            for prompt in oracle.PROMPTS
        ])  # fmt: skip
    both = torch.stack([shared, begins], 1)
    prompt = torch.arange(2).repeat_interleave(len(both))
    exact = fit(Samples(both.repeat(2, 1), weights, prompt), [(0.5, 0.5), (0.3, 0.3)]).lambdas
    found = measured(session, both @ exact, shared)
    logged({"method": method, "section": dict(section), "moments": True, **asdict(found)})
    assert found.satisfaction == pytest.approx(0.5, abs=0.02)
    assert found.second == pytest.approx(0.3, abs=0.02)
    assert found.forward_kl <= 0.05
