"""What the engine samples is the distribution that the log-probabilities describe."""

import itertools
import math
from functools import partial

import builders
import oracle
import pytest
import replayed
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    GenerationConfig,
)

from rlalign.generation import caches, sample_inverse_cdf
from rlalign.policy import Policy, evaluate_rollout, logprobs_only

LENGTH = 3
SAMPLES = 12_000


def responses() -> list[list[int]]:
    """Every response of at most three tokens: 156 of them."""
    return [
        [*letters, oracle.EOS][:LENGTH]
        for n in range(LENGTH + 1)
        for letters in itertools.product(range(len(oracle.LETTERS)), repeat=n)
    ]


@torch.no_grad()
def exact_probabilities(lm: torch.nn.Module, prompt: str, temperature: float) -> Tensor:
    """Of every response, by one plain forward pass each, without padding, cache or policy."""
    start = oracle.tokenizer()(prompt)["input_ids"]
    out = []
    for response in responses():
        logits = lm(input_ids=torch.tensor([start + response])).logits[0].double() / temperature
        steps = logits.log_softmax(-1)[len(start) - 1 : -1]
        out.append(steps[torch.arange(len(response)), torch.tensor(response)].sum().exp())
    return torch.stack(out)


def assert_drawn_from(rollout, prompt: str, probabilities: Tensor) -> None:
    """Pearson's chi-square of the drawn responses, rare ones in one cell, at five sigma."""
    number = {tuple(response): i for i, response in enumerate(responses())}
    counts = torch.zeros(len(number), dtype=torch.double)
    for row, text in enumerate(rollout.prompts.texts):
        if text == prompt:
            ids = rollout.response_ids[row][rollout.response_mask[row]].tolist()
            counts[number[tuple(ids)]] += 1
    expected = probabilities * counts.sum()
    common = expected >= 5
    cells = [(counts[common], expected[common]), (counts[~common].sum(), expected[~common].sum())]
    observed, wanted = (torch.cat([x.flatten() for x in pair]) for pair in zip(*cells, strict=True))
    chi_square = float(((observed - wanted) ** 2 / wanted.clamp(min=1e-9)).sum())
    freedom = len(observed) - 1
    assert float(expected.sum()) == pytest.approx(float(counts.sum()))
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom), (chi_square, freedom)


sdpa = partial(oracle.language_model, attention="sdpa")


CASES = {
    "plain": {},
    "several samples of a prompt": {"n": 4},
    "always compacted": {"compact_below": 1.0},
    "never compacted": {"compact_below": 0.0},
    "a few rows at a time": {"batch_size": 1000, "n": 2},
    "a low temperature": {"temperature": 0.7},
    "a high temperature, learned positions": {"temperature": 1.5, "lm": builders.gpt2},
    "static caches": {"static": True, "lm": sdpa, "n": 2},
    "static caches, a few rows at a time": {"static": True, "lm": sdpa, "batch_size": 1000},
    "static caches, learned positions": {"static": True, "lm": builders.gpt2, "temperature": 0.7},
    "replayed": {"static": True, "lm": sdpa, "replayed": True},
}


@pytest.mark.parametrize("case", CASES)
def test_samples_follow_the_enumerated_distribution(case, monkeypatch):
    settings = {"n": 1, "temperature": 1.0, "lm": oracle.language_model} | CASES[case]
    monkeypatch.setattr(caches, "COMPACT_BELOW", settings.get("compact_below", 0.75))
    lm, temperature = settings["lm"](), settings["temperature"]
    policy = Policy(lm, temperature=temperature, reference="none")
    if "replayed" in settings:
        replayed.replay_steps(monkeypatch)
    rest = {name: settings[name] for name in ("batch_size", "static") if name in settings}
    engine = builders.engine(policy, **rest)
    prompts = oracle.PROMPTS * (SAMPLES // 2 // settings["n"])  # of unequal lengths, interleaved
    rollout = engine.generate(builders.prompt_batch(prompts), settings["n"], builders.seeded())
    assert len(rollout) == SAMPLES
    for prompt in oracle.PROMPTS:
        assert_drawn_from(rollout, prompt, exact_probabilities(lm, prompt, temperature))


def test_draws_do_not_depend_on_compaction_or_batch_size(monkeypatch):
    policy = Policy(oracle.language_model(), reference="none")
    plain = builders.drawn(policy)
    for compact_below, batch_size in ((0.0, None), (1.0, None), (0.75, 7), (1.0, 2), (1.0, 1)):
        monkeypatch.setattr(caches, "COMPACT_BELOW", compact_below)
        other = builders.drawn(policy, batch_size=batch_size)
        assert other.response_ids.tolist() == plain.response_ids.tolist()
        assert other.response_mask.tolist() == plain.response_mask.tolist()
        assert other.texts == plain.texts
        assert_close(other.logprobs, plain.logprobs, rtol=1e-4, atol=1e-5)


def test_compaction_drops_rows(monkeypatch):
    """Guards the test above: with 1.0 rows really leave, with 0.0 none does."""
    rows: list[int] = []
    policy = Policy(oracle.language_model(), reference="none")
    next_state = policy.next_state

    def counting(ids, *rest):
        rows.append(len(ids))
        return next_state(ids, *rest)

    monkeypatch.setattr(policy, "next_state", counting)
    monkeypatch.setattr(caches, "COMPACT_BELOW", 0.0)
    builders.drawn(policy, n=1)
    assert set(rows) == {40}
    rows.clear()
    monkeypatch.setattr(caches, "COMPACT_BELOW", 1.0)
    builders.drawn(policy, n=1)
    assert rows == sorted(rows, reverse=True) and rows[-1] < 40


def test_another_seed_draws_other_responses():
    policy = Policy(oracle.language_model(), reference="none")
    assert (
        builders.drawn(policy, seed=0).texts
        == builders.drawn(policy, seed=0).texts
        != builders.drawn(policy, seed=1).texts
    )


def test_the_models_own_generation_settings_are_not_read():
    """Fields left unset elsewhere inherit from them: top-k 1 or a repetition penalty would leak."""
    lm = oracle.language_model()
    policy = Policy(lm, reference="none")
    plain = builders.drawn(policy)
    lm.generation_config = GenerationConfig(
        do_sample=False,
        top_k=1,
        top_p=0.1,
        temperature=0.01,
        repetition_penalty=9.0,
        max_length=2,
        eos_token_id=[0, 1],
        suppress_tokens=[2],
    )
    assert builders.drawn(policy).response_ids.tolist() == plain.response_ids.tolist()


@pytest.mark.parametrize("make_lm", [builders.gpt2, builders.gemma2, oracle.language_model])
def test_the_samplers_logprobs_are_the_trainers(make_lm):
    policy = Policy(make_lm(), temperature=0.7, reference="none")
    rollout = builders.drawn(policy)
    trainers = evaluate_rollout(policy, rollout, logprobs_only, 100)["logprobs"]
    assert_close(rollout.logprobs, trainers, rtol=0, atol=1e-4)
    assert bool((rollout.logprobs[rollout.response_mask] < 0).all())


def test_masks_come_from_the_first_eos_and_not_from_the_pad_id():
    tokenizer = oracle.tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == oracle.EOS
    rollout = builders.drawn(Policy(oracle.language_model(), reference="none"))
    assert len({*rollout.response_mask.sum(1).tolist()}) > 3
    for ids, mask, finished in zip(
        rollout.response_ids, rollout.response_mask, rollout.finished, strict=True
    ):
        own = ids[mask].tolist()
        # EOS is an action of its own: in the mask, once, and last.
        assert own.count(oracle.EOS) == int(finished)
        assert (own[-1] == oracle.EOS) == bool(finished)
        assert bool(finished) or len(own) == 7
        assert mask.tolist() == [i < len(own) for i in range(len(mask))]
    assert rollout.action_mask.tolist() == rollout.response_mask.tolist()
    assert bool((rollout.logprobs[~rollout.response_mask] == 0).all())


def test_an_eos_token_in_the_prompt_ends_nothing():
    policy = Policy(oracle.language_model(), reference="none")
    prompts = builders.prompt_batch(["a </s> b"])
    assert oracle.EOS in prompts.prompt_ids[0]
    assert bool(prompts.prompt_mask.all())
    rollout = builders.engine(policy).generate(prompts, 50, builders.seeded())
    assert float(rollout.response_mask.sum(1).float().mean()) > 1.5


def test_a_stop_string_ends_a_response_at_the_token_that_completes_it():
    policy = Policy(oracle.language_model(), reference="none")
    free, stopped = builders.drawn(policy), builders.drawn(policy, stop=["b c", "e"])
    assert any("b c" in text and not text.endswith("b c") for text in free.texts)
    for i, text in enumerate(free.texts):
        ends = [text.index(s) + len(s) for s in ("b c", "e") if s in text]
        if ends:
            assert stopped.texts[i] == text[: min(ends)]
            assert bool(stopped.finished[i])
            assert int(stopped.response_mask[i].sum()) == len(stopped.texts[i].split())
        else:
            assert stopped.texts[i] == text and stopped.finished[i] == free.finished[i]


def sample_greedy(logits, uniform):
    """A sampler of one's own: the likeliest token."""
    logprobs, ids = logits.log_softmax(-1).max(-1)
    return ids, logprobs


@torch.no_grad()
def test_greedy_takes_the_likeliest_token():
    lm = builders.gpt2()
    engine = builders.engine(Policy(lm, reference="none"), max_new_tokens=7)
    rollout = engine.generate(builders.prompt_batch(), 1, builders.seeded(), sample_greedy)
    for i, prompt in enumerate(oracle.PROMPTS):
        ids = oracle.tokenizer()(prompt)["input_ids"]
        for token in rollout.response_ids[i][rollout.response_mask[i]].tolist():
            assert token == int(lm(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_a_batch_of_one_and_a_response_of_one_token():
    policy = Policy(oracle.language_model(), reference="none")
    engine = builders.engine(policy, max_new_tokens=1)
    rollout = engine.generate(builders.prompt_batch(["c b"]), 1, builders.seeded())
    assert rollout.response_ids.shape == (1, 1) and rollout.response_mask.tolist() == [[True]]


def test_a_batch_in_which_every_response_is_empty():
    def eos_only(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(logits),), oracle.EOS), logits.log_softmax(-1)[:, oracle.EOS]

    engine = builders.engine(Policy(oracle.language_model(), reference="none"), max_new_tokens=7)
    rollout = engine.generate(builders.prompt_batch(), 2, builders.seeded(), eos_only)
    assert rollout.texts == [""] * 4 and rollout.finished.tolist() == [True] * 4
    assert rollout.response_ids.tolist() == [[oracle.EOS]] * 4
    assert rollout.response_mask.tolist() == [[True]] * 4


def test_samples_of_a_prompt_stand_side_by_side():
    rollout = builders.drawn(Policy(oracle.language_model(), reference="none"), n=3)
    assert rollout.group.tolist() == [i // 3 for i in range(120)]
    assert list(rollout.prompts.texts) == [oracle.PROMPTS[i // 3 % 2] for i in range(120)]


def test_the_policys_step_is_written_down():
    engine = builders.engine(Policy(oracle.language_model(), reference="none"))
    engine.sync(engine.policy, policy_step=12)
    assert engine.generate(builders.prompt_batch(), 1, builders.seeded()).policy_step == 12


def test_inverse_cdf_never_draws_the_impossible():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    uniform = torch.tensor([0.0, 0.49, 0.51, 1.0 - 2**-24, 1.0])
    ids, logprobs = sample_inverse_cdf(logits.expand(5, -1), uniform)
    assert ids.tolist() == [1, 1, 3, 3, 3]
    assert_close(logprobs, torch.full((5,), math.log(0.5)))
