"""Caches written in place give what growing ones do, or are found out and left aside."""

from functools import partial

import builders
import oracle
import pytest
import torch
from replayed import replay_steps
from torch.testing import assert_close
from transformers import (
    BartConfig,
    BartForCausalLM,
    FalconConfig,
    FalconForCausalLM,
)

from rlalign.generation import caches
from rlalign.generation.caches import StaticBuffers
from rlalign.policy import Policy, evaluate_rollout, logprobs_only

LENGTH = 3
SAMPLES = 12_000


sdpa = partial(oracle.language_model, attention="sdpa")


@pytest.mark.parametrize("replays", [False, True])
@pytest.mark.parametrize("make_lm", [sdpa, builders.gpt2])
def test_static_caches_draw_what_growing_ones_do(make_lm, replays, monkeypatch):
    policy = Policy(make_lm(), temperature=0.7, reference="none")
    growing = builders.drawn(policy)
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
    policy = builders.adapted_policy(lm=sdpa())
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
        assert rollout.texts == builders.drawn(policy).texts
        again = evaluate_rollout(policy, rollout, logprobs_only, 1000)["logprobs"]
        assert_close(again, rollout.logprobs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make_lm", [oracle.language_model, builders.gemma2])
def test_a_model_that_static_caches_do_not_serve_decodes_by_growing_ones(make_lm):
    engine = builders.engine(Policy(make_lm(), reference="none"), static=True)
    engine.generate(builders.prompt_batch(oracle.PROMPTS), 1, builders.seeded())
    assert engine._buffers is None


def test_a_graph_that_cannot_be_captured_is_done_without(monkeypatch, caplog):
    policy = Policy(sdpa(), reference="none")
    growing = builders.drawn(policy)
    replay_steps(monkeypatch)
    caches.warn_once.cache_clear()

    def refuses(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(StaticBuffers, "_captured", refuses)
    static = builders.drawn(policy, static=True)
    assert static.texts == growing.texts
    assert caplog.text.count("decoding without CUDA graphs: operation not permitted") == 1
