"""The one pass: where log-probabilities and values are read, and what leaves them as they are."""

from functools import partial

import builders
import oracle
import pytest
import torch
from torch.testing import assert_close

import rlalign.policy as policy_module
from rlalign.models import build_policy
from rlalign.policy import (
    Policy,
    all_outputs,
    evaluate_rollout,
    logprobs_only,
    micro_batches,
    positions,
    tensors,
)
from rlalign.settings.sections import LoraSection, ModelSection

CPU = torch.device("cpu")
MODELS = {
    "gpt2": builders.gpt2,
    "gemma2": builders.gemma2,
    "llama": oracle.language_model,
    "llama, packed": partial(oracle.language_model, attention="sdpa"),
}


@pytest.fixture(params=MODELS)
def lm(request):
    return MODELS[request.param]()


def one_sample(prompt, response):
    """A batch of one without any padding."""
    ids, own = torch.tensor([prompt]), torch.tensor([response])
    return ids, torch.ones_like(ids).bool(), own, torch.ones_like(own).bool()


@torch.no_grad()
def test_logprobs_are_those_of_the_language_models_own_logits(lm):
    policy = Policy(lm, temperature=0.7, reference="none")
    prompt, response = [0, 2, 4], [1, 3, 0, 5]
    out = policy(*one_sample(prompt, response))
    logits = lm(input_ids=torch.tensor([prompt + response])).logits / 0.7
    logprobs = logits.log_softmax(-1)[0, 2:6]  # position t predicts token t + 1
    expected = logprobs[torch.arange(4), torch.tensor(response)]
    assert_close(out["logprobs"][0], expected, rtol=1e-5, atol=1e-5)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    assert_close(out["entropy"][0], entropy, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_values_are_the_heads_on_the_hidden_state_before_the_token(lm):
    policy = Policy(lm, reference="none")
    prompt, response = [0, 2, 4], [1, 3, 0, 5]
    out = policy(*one_sample(prompt, response))
    hidden = lm.base_model(input_ids=torch.tensor([prompt + response]))[0][0, 2:6]
    assert_close(out["values"][0], policy.value_head(hidden).squeeze(-1), rtol=1e-5, atol=1e-5)


def test_only_a_plain_head_is_applied_by_hand():
    assert Policy(builders.gpt2(), reference="none")._head_is_plain
    assert not Policy(builders.gemma2(), reference="none")._head_is_plain


@torch.no_grad()
def test_a_token_moves_neither_its_own_value_nor_anything_before_it(lm):
    policy = Policy(lm, reference="none")
    before = policy(*one_sample([0, 2], [1, 3, 0, 4]))
    after = policy(*one_sample([0, 2], [1, 3, 2, 4]))  # the third token is another
    for name, same in (("values", 3), ("entropy", 3), ("logprobs", 2)):
        assert_close(after[name][0, :same], before[name][0, :same])
        assert not torch.allclose(after[name][0, same], before[name][0, same], atol=1e-4)


@torch.no_grad()
def test_left_padding_changes_nothing(lm):
    policy = Policy(lm, reference="none")
    alone = policy(*one_sample([1, 2], [3, 0, 5]))
    prompt = torch.tensor([[5, 5, 5, 1, 2], [4, 3, 2, 1, 0]])
    prompt_mask = torch.tensor([[False, False, False, True, True], [True] * 5])
    response = torch.tensor([[3, 0, 5], [1, 1, 1]])
    padded = policy(prompt, prompt_mask, response, torch.ones_like(response).bool())
    for name in alone:
        assert_close(padded[name][0], alone[name][0], rtol=1e-4, atol=1e-5)


def test_positions_count_real_tokens():
    mask = torch.tensor([[False, False, True, True, True], [True, True, True, False, False]])
    assert positions(mask)[0].tolist()[2:] == [0, 1, 2]
    assert positions(mask)[1].tolist()[:3] == [0, 1, 2]


@torch.no_grad()
def test_what_lies_behind_the_end_changes_nothing_and_reads_zero(lm):
    policy = Policy(lm, reference="none")
    rollout = builders.rollout(["b c", "d"], prompts=["a", "c b d"], extra_padding=2)
    prompt, prompt_mask, response, mask = tensors(rollout)
    before = policy(prompt, prompt_mask, response, mask)
    after = policy(prompt, prompt_mask, torch.where(mask, response, 2), mask)
    for name in before:
        assert_close(after[name], before[name], rtol=0, atol=0)
        assert bool((before[name][~mask] == 0).all())


@pytest.mark.parametrize("head", ["learns", "frozen"])
def test_chunks_change_neither_outputs_nor_gradients(lm, head, monkeypatch):
    policy = Policy(lm, temperature=0.7, reference="none")
    lm.get_output_embeddings().requires_grad_(head == "learns")
    rollout = builders.rollout(["b c e", "d", "a a a a"], prompts=["a", "c b d", "b"])
    logits = []
    take = policy_module.token_logprobs
    monkeypatch.setattr(
        policy_module, "token_logprobs", lambda x, t: logits.append(x) or take(x, t)
    )

    def outputs_and_gradients():
        logits.clear()
        policy.zero_grad()
        out = policy(*tensors(rollout))
        sum(x.pow(2).sum() for x in out.values()).backward()
        gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
        return {n: x.detach() for n, x in out.items()}, gradients

    whole, whole_gradients = outputs_and_gradients()
    assert len(logits) == 1
    vocabulary = logits[0].shape[1]
    monkeypatch.setattr(policy_module, "logits_at_once", lambda *_: 4 * vocabulary + 1)
    chunked, chunked_gradients = outputs_and_gradients()
    assert len(logits) > 1 and max(map(len, logits)) == 4
    assert_close(chunked, whole)
    for name, gradient in whole_gradients.items():
        scale = gradient.abs().amax()  # beside it a sum that cancels out is nothing but rounding
        assert_close(chunked_gradients[name] / scale, gradient / scale, rtol=0, atol=1e-5)
    learns = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert chunked_gradients.keys() == learns


def test_micro_batches_take_every_row_once_within_the_budget():
    lengths = torch.tensor([3, 9, 1, 5, 5, 2, 30])
    groups = micro_batches(lengths, budget=12)
    assert sorted(row for group in groups for row in group.tolist()) == list(range(7))
    padded = [len(group) * int(lengths[group].max()) for group in groups]
    assert [size for size in padded if size > 12] == [30]  # a row that does not fit stands alone
    assert groups[0].tolist() == [6]


@torch.no_grad()
def test_sorting_into_micro_batches_keeps_every_row_in_its_place():
    policy = Policy(builders.gpt2(), reference="none")
    responses = ["b", "b c d e", "", "a a", "d d d d d", "e"]
    rollout = builders.rollout(responses, prompts=["a", "c b d", "a", "c b d", "a", "e e"])
    whole = policy(*tensors(rollout))
    for budget in (1, 12, 10_000):
        parts = evaluate_rollout(policy, rollout, all_outputs, budget)
        assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_temperature_divides_policy_reference_and_sampling_logits():
    lm = oracle.language_model()
    policy = Policy(lm, temperature=0.5)
    sample = one_sample([0, 2], [1])
    logits = lm(input_ids=torch.tensor([[0, 2]])).logits[0, -1]
    expected = (logits / 0.5).log_softmax(-1)
    assert_close(policy(*sample)["logprobs"][0, 0], expected[1])
    with policy.reference() as reference:
        assert_close(reference(*sample)["logprobs"][0, 0], expected[1])
    engine = builders.engine(policy, max_new_tokens=1)
    rollout = engine.generate(builders.prompt_batch(["a c"]), 20, builders.seeded())
    assert_close(rollout.logprobs[:, 0], expected[rollout.response_ids[:, 0]])


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_outputs_are_float32_under_autocast(weights):
    """In bfloat16 the head's logits are rounded once; what follows is float32."""
    lm = oracle.language_model().to(weights)
    policy = Policy(lm, temperature=0.7, autocast=torch.bfloat16, reference="none")
    out = policy(*one_sample([0, 2], [1, 3]))
    assert {x.dtype for x in out.values()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = lm.base_model(input_ids=torch.tensor([[0, 2, 1, 3]]))[0][0, 1:3]
        logits = lm.lm_head(hidden)
    assert logits.dtype == torch.bfloat16
    assert policy.value_head.weight.dtype == torch.float32
    expected = (logits.float() / 0.7).log_softmax(-1)[torch.arange(2), torch.tensor([1, 3])]
    assert_close(out["logprobs"][0], expected, rtol=0, atol=1e-6)
    value = hidden.float() @ policy.value_head.weight[0] + policy.value_head.bias
    assert_close(out["values"][0], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LoraSection(r=2)])
@torch.no_grad()
def test_the_float32_copy_shares_nothing(lora):
    policy = build_policy(ModelSection(dtype="bfloat16", lora=lora), 1.0, CPU, builders.gpt2())
    coarse = Policy(builders.gpt2().bfloat16()).in_float32()
    assert {p.dtype for p in coarse._frozen[0].parameters()} == {torch.float32}
    copy = policy.in_float32()
    ours = [*policy.parameters(), *policy.buffers()]
    theirs = [*copy.parameters(), *copy.buffers()]
    for frozen in policy._frozen:
        ours += frozen.parameters()
    for frozen in copy._frozen:
        theirs += frozen.parameters()
    assert len(ours) == len(theirs)
    assert not {p.data_ptr() for p in ours} & {p.data_ptr() for p in theirs}
    assert {p.dtype for p in copy.parameters()} == {torch.float32}
    assert copy.autocast_dtype is None and policy.autocast_dtype == torch.bfloat16
    sample = one_sample([0, 2], [1, 3])
    before = policy(*sample, logprobs_only)["logprobs"]
    for p in copy.parameters():
        p.zero_()
    assert_close(policy(*sample, logprobs_only)["logprobs"], before, rtol=0, atol=0)


@pytest.mark.parametrize("lora", [None, LoraSection(r=2)])
@torch.no_grad()
def test_dropout_is_off_in_train_mode_too(lora):
    lm = builders.gpt2(dropout=0.5)
    policy = build_policy(ModelSection(dtype="float32", lora=lora), 1.0, CPU, lm)
    sample = one_sample([0, 2, 4], [1, 3, 0, 5])
    evaluating = policy.eval()(*sample)
    training = policy.train()(*sample)
    for name in evaluating:
        assert_close(training[name], evaluating[name], rtol=0, atol=0)


@pytest.mark.parametrize("lora", [None, LoraSection(r=2)])
def test_gradient_checkpointing_changes_no_gradient(lora):
    def gradients(checkpointing):
        torch.manual_seed(1)
        section = ModelSection(dtype="float32", lora=lora, gradient_checkpointing=checkpointing)
        policy = build_policy(section, 1.0, CPU, oracle.language_model())
        out = policy(*tensors(builders.rollout(["b c", "d"], prompts=["a", "c b d"])))
        out["logprobs"].sum().backward()
        return {n: p.grad for n, p in policy.trainable().items() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) > 0 and plain.keys() == checkpointed.keys()
    assert_close(checkpointed, plain)


def test_gradient_checkpointing_changes_no_sample():
    def sampled(checkpointing):
        section = ModelSection(dtype="float32", gradient_checkpointing=checkpointing)
        policy = build_policy(section, 1.0, CPU, oracle.language_model())
        engine = builders.engine(policy, max_new_tokens=7)
        rollout = engine.generate(builders.prompt_batch(), 50, builders.seeded())
        assert policy.lm.training == checkpointing  # as before, or training would not checkpoint
        return rollout

    plain, checkpointed = sampled(False), sampled(True)
    assert checkpointed.response_ids.tolist() == plain.response_ids.tolist()
    assert_close(checkpointed.logprobs, plain.logprobs)


def test_gradient_checkpointing_recomputes():
    section = ModelSection(dtype="float32", gradient_checkpointing=True)
    policy = build_policy(section, 1.0, CPU, oracle.language_model())
    calls = []
    policy.lm.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    policy(*one_sample([0], [1, 2]))["logprobs"].sum().backward()
    assert len(calls) == 2  # once forward, once again going backward


def test_the_value_head_starts_small():
    torch.manual_seed(0)
    head = Policy(oracle.language_model(hidden=256), reference="none").value_head
    assert head.bias.item() == 0.0
    assert head.weight.std().item() == pytest.approx(1 / 257, rel=0.2)


@pytest.mark.parametrize("lora", [None, LoraSection(r=2)])
def test_the_reference_has_no_gradients(lora):
    policy = build_policy(
        ModelSection(dtype="float32", lora=lora), 1.0, CPU, oracle.language_model()
    )
    sample = one_sample([0, 2], [1, 3])
    with policy.reference() as reference:
        assert not any(x.requires_grad for x in reference(*sample).values())
    assert all(x.requires_grad for x in policy(*sample).values())


def test_a_policy_without_a_reference_says_so():
    policy = Policy(builders.gpt2(), reference="none")
    with pytest.raises(RuntimeError, match="without a reference"), policy.reference():
        pass
