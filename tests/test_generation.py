"""What the engine samples is the distribution that the log-probabilities describe."""

import itertools
import math
from functools import partial

import builders
import oracle
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import (
    BartConfig,
    BartForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GenerationConfig,
)

from rlalign.generation import caches, sample_inverse_cdf
from rlalign.generation.caches import StaticBuffers
from rlalign.models import build_policy
from rlalign.policy import Policy, evaluate_rollout, logprobs_only
from rlalign.sections import LoraSection, ModelSection

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


class Replayed:
    """Stands for a CUDA graph: it reads and writes the same tensors every time."""

    def __init__(self, buffers, rows: int) -> None:
        self.buffers, self.rows = buffers, rows
        self.state = buffers._forward(rows, buffers.length)

    def replay(self) -> None:
        again = self.buffers._forward(self.rows, self.buffers.length)
        for kept, x in zip(self.state, again, strict=True):
            if x is not None:
                kept.copy_(x)


def replay_steps(monkeypatch) -> list[int]:
    """Decode as on a GPU, graphs replaced; the numbers of rows that were captured."""
    captured = []

    def capture(buffers, rows):
        captured.append(rows)
        graph = Replayed(buffers, rows)
        return graph, graph.state

    monkeypatch.setattr(StaticBuffers, "_captured", capture)
    make = StaticBuffers.__init__

    def made(buffers, *given):
        make(buffers, *given)
        buffers.replays = True

    monkeypatch.setattr(StaticBuffers, "__init__", made)
    return captured


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
        replay_steps(monkeypatch)
    rest = {name: settings[name] for name in ("batch_size", "static") if name in settings}
    engine = builders.engine(policy, **rest)
    prompts = oracle.PROMPTS * (SAMPLES // 2 // settings["n"])  # of unequal lengths, interleaved
    rollout = engine.generate(builders.prompt_batch(prompts), settings["n"], builders.seeded())
    assert len(rollout) == SAMPLES
    for prompt in oracle.PROMPTS:
        assert_drawn_from(rollout, prompt, exact_probabilities(lm, prompt, temperature))


def drawn(policy: Policy, seed: int = 0, n: int = 3, **settings):
    engine = builders.engine(policy, **({"max_new_tokens": 7} | settings))
    return engine.generate(builders.prompt_batch(oracle.PROMPTS * 20), n, builders.seeded(seed))


def test_draws_do_not_depend_on_compaction_or_batch_size(monkeypatch):
    policy = Policy(oracle.language_model(), reference="none")
    plain = drawn(policy)
    for compact_below, batch_size in ((0.0, None), (1.0, None), (0.75, 7), (1.0, 1)):
        monkeypatch.setattr(caches, "COMPACT_BELOW", compact_below)
        other = drawn(policy, batch_size=batch_size)
        assert other.response_ids.tolist() == plain.response_ids.tolist()
        assert other.response_mask.tolist() == plain.response_mask.tolist()
        assert other.texts == plain.texts
        assert_close(other.logprobs, plain.logprobs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("replays", [False, True])
@pytest.mark.parametrize("make_lm", [sdpa, builders.gpt2])
def test_static_caches_draw_what_growing_ones_do(make_lm, replays, monkeypatch):
    policy = Policy(make_lm(), temperature=0.7, reference="none")
    growing = drawn(policy)
    captured = replay_steps(monkeypatch) if replays else []
    engine = builders.engine(policy, max_new_tokens=7, static=True)
    prompts = builders.prompt_batch(oracle.PROMPTS * 20)
    for _ in range(2):  # the second time in the buffers of the first
        static = engine.generate(prompts, 3, builders.seeded(0))
        assert static.response_ids.tolist() == growing.response_ids.tolist()
        assert static.texts == growing.texts
        assert static.finished.tolist() == growing.finished.tolist()
        assert_close(static.logprobs, growing.logprobs, rtol=1e-4, atol=1e-5)
    if replays:  # each number of rows is captured once, and halves as rows finish
        trial, *run = captured
        assert trial == 2 and run[:3] == [120, 60, 30] and len(set(run)) == len(run)


def test_static_buffers_grow_for_more_rows_or_longer_texts():
    policy = Policy(sdpa(), reference="none")
    engine = builders.engine(policy, static=True)
    few, many = (builders.prompt_batch(oracle.PROMPTS * k) for k in (2, 9))
    engine.generate(few, 1, builders.seeded())
    first = engine._buffers
    engine.generate(few, 1, builders.seeded())
    assert engine._buffers is first
    engine.generate(many, 1, builders.seeded())
    assert engine._buffers is not first and engine._buffers.capacity == 18
    engine.sync(Policy(sdpa(), reference="none"))
    before = engine._buffers
    engine.generate(many, 1, builders.seeded())
    assert engine._buffers is not before  # graphs hold another policy's weights


def test_adapters_on_and_off_have_buffers_of_their_own(monkeypatch):
    """A captured graph goes on with the weights that it was captured with."""
    replay_steps(monkeypatch)
    section = ModelSection(lora=LoraSection(r=2))
    policy = build_policy(section, 1.0, torch.device("cpu"), sdpa())
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    engine = builders.engine(policy, static=True)
    prompts = builders.prompt_batch(oracle.PROMPTS * 9)
    buffers = []
    for _ in range(2):
        engine.generate(prompts, 1, builders.seeded())
        buffers.append(engine._buffers)
        with policy.reference():
            engine.generate(prompts, 1, builders.seeded())
            buffers.append(engine._buffers)
    assert [b.of_reference for b in buffers] == [False, True] * 2
    assert len(set(map(id, buffers))) == 4  # and the reference's are made anew each time


def bart():
    """Its decoder alone: it takes no positions and counts them by what the cache holds."""
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=builders.VOCABULARY, d_model=16, decoder_layers=2, decoder_attention_heads=4,
        decoder_ffn_dim=32, init_std=0.3, bos_token_id=None, eos_token_id=oracle.EOS,
        pad_token_id=oracle.EOS,
    )  # fmt: skip
    return BartForCausalLM(config).eval()


def falcon():
    """ALiBi, which is made of the mask: one of four dimensions is not what it expects."""
    torch.manual_seed(0)
    config = FalconConfig(
        vocab_size=builders.VOCABULARY, hidden_size=16, num_hidden_layers=2, initializer_range=0.3,
        num_attention_heads=4, alibi=True, bos_token_id=None, eos_token_id=oracle.EOS,
        pad_token_id=oracle.EOS,
    )  # fmt: skip
    return FalconForCausalLM(config).eval()


def forgetful():
    """A layer that keeps its own count of calls, as one with a recurrent state would."""
    lm = sdpa()
    lm.model.layers[0].mlp.register_forward_hook(
        lambda module, args, out: out * (1.0 + 0.5 * (out.shape[1] > 1)) + seen(module)
    )

    def seen(module):
        module.calls = getattr(module, "calls", 0) + 1
        return 0.3 * module.calls

    return lm


@pytest.mark.parametrize("make_lm", [bart, falcon, forgetful])
def test_a_model_whose_static_caches_differ_is_found_out(make_lm):
    policy = Policy(make_lm(), reference="none")
    engine = builders.engine(policy, static=True, max_new_tokens=7)
    prompts = builders.prompt_batch(oracle.PROMPTS * 20)
    rollout = engine.generate(prompts, 3, builders.seeded())
    assert engine._buffers is None
    if make_lm is not forgetful:
        assert rollout.texts == drawn(policy).texts
        again = evaluate_rollout(policy, rollout, logprobs_only, 1000)["logprobs"]
        assert_close(again, rollout.logprobs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make_lm", [oracle.language_model, builders.gemma2])
def test_a_model_that_static_caches_do_not_serve_decodes_by_growing_ones(make_lm):
    engine = builders.engine(Policy(make_lm(), reference="none"), static=True)
    engine.generate(builders.prompt_batch(oracle.PROMPTS), 1, builders.seeded())
    assert engine._buffers is None


def test_a_graph_that_cannot_be_captured_is_done_without(monkeypatch, caplog):
    policy = Policy(sdpa(), reference="none")
    growing = drawn(policy)
    replay_steps(monkeypatch)
    caches.warn_once.cache_clear()

    def refuses(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(StaticBuffers, "_captured", refuses)
    static = drawn(policy, static=True)
    assert static.texts == growing.texts
    assert caplog.text.count("decoding without CUDA graphs: operation not permitted") == 1


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
    drawn(policy, n=1)
    assert set(rows) == {40}
    rows.clear()
    monkeypatch.setattr(caches, "COMPACT_BELOW", 1.0)
    drawn(policy, n=1)
    assert rows == sorted(rows, reverse=True) and rows[-1] < 40


def test_another_seed_draws_other_responses():
    policy = Policy(oracle.language_model(), reference="none")
    assert drawn(policy, seed=0).texts == drawn(policy, seed=0).texts != drawn(policy, seed=1).texts


def test_the_models_own_generation_settings_are_not_read():
    """Fields left unset elsewhere inherit from them: top-k 1 or a repetition penalty would leak."""
    lm = oracle.language_model()
    policy = Policy(lm, reference="none")
    plain = drawn(policy)
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
    assert drawn(policy).response_ids.tolist() == plain.response_ids.tolist()


@pytest.mark.parametrize("make_lm", [builders.gpt2, builders.gemma2, oracle.language_model])
def test_the_samplers_logprobs_are_the_trainers(make_lm):
    policy = Policy(make_lm(), temperature=0.7, reference="none")
    rollout = drawn(policy)
    trainers = evaluate_rollout(policy, rollout, logprobs_only, 100)["logprobs"]
    assert_close(rollout.logprobs, trainers, rtol=0, atol=1e-4)
    assert bool((rollout.logprobs[rollout.response_mask] < 0).all())


def test_masks_come_from_the_first_eos_and_not_from_the_pad_id():
    tokenizer = oracle.tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == oracle.EOS
    rollout = drawn(Policy(oracle.language_model(), reference="none"))
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
    free, stopped = drawn(policy), drawn(policy, stop=["b c", "e"])
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
    rollout = drawn(Policy(oracle.language_model(), reference="none"), n=3)
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
