"""The engine on vLLM: TRL's own code over a stand-in for vLLM (tests/vllm_standin.py)."""

import inspect
import json

import builders
import oracle
import pytest
import torch
import trl
import vllm_standin
from accelerate import Accelerator
from packaging.version import Version
from test_generation import assert_drawn_from, exact_probabilities
from test_resume import run
from torch.testing import assert_close
from transformers import GenerationConfig
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient

from rlalign import session as session_module
from rlalign import trl_bridge
from rlalign.algorithms.ppo import PPORun
from rlalign.config import ConfigError, from_mapping
from rlalign.evaluate import evaluate
from rlalign.generation import VLLMEngine, check_engine
from rlalign.models import add_lora
from rlalign.policy import Policy, evaluate_rollout, logprobs_only
from rlalign.settings.sections import LoraSection, VLLMSection

MODES = pytest.mark.parametrize("mode", ["colocate", "server"])


@pytest.fixture
def served(monkeypatch):
    return vllm_standin.install(monkeypatch)


def loaded(lm: torch.nn.Module) -> torch.nn.Module:
    """As if it had been loaded from a directory."""
    lm.name_or_path = "somewhere"
    return lm


def policy_of(**settings) -> Policy:
    return Policy(loaded(oracle.language_model()), **({"reference": "none"} | settings))


def engine_on(policy: Policy, step: int = 0, vllm=None, **settings) -> VLLMEngine:
    made = VLLMEngine(
        oracle.tokenizer(),
        Accelerator(cpu=True),
        VLLMSection(**(vllm or {})),
        **({"max_new_tokens": 7} | settings),
    )
    made.sync(policy, step)
    return made


def drawn(engine: VLLMEngine, seed: int = 0, n: int = 3, prompts: int = 20):
    return engine.generate(
        builders.prompt_batch(oracle.PROMPTS * prompts), n, builders.seeded(seed)
    )


# What TRL and vLLM are told


def test_trl_still_takes_what_the_bridge_gives():
    """The stand-in runs TRL's own class; these are the names that only a real vLLM would miss."""
    known = inspect.signature(vllm_generation.VLLMGeneration.__init__).parameters
    assert set(VLLMSection.model_fields) <= set(known)
    client = inspect.signature(VLLMClient.__init__).parameters
    assert {"base_url", "group_port", "connection_timeout"} <= set(client)
    asks = ["get_server_info"] if Version(trl.__version__) >= Version("1.16") else []
    for name in ("init_communicator", "update_named_params", *asks):
        ours = list(inspect.signature(getattr(vllm_standin.Client, name)).parameters)
        assert ours == list(inspect.signature(getattr(VLLMClient, name)).parameters)
    source = inspect.getsource(vllm_generation.VLLMGeneration._init_vllm)
    assert 'logprobs_mode="processed_logprobs"' in source
    assert '"external_launcher"' in source  # in this process, so that its generators are vLLM's


@MODES
def test_every_sampling_field_is_stated_and_neutral(served, mode):
    policy = policy_of(temperature=0.7)
    engine = engine_on(policy, vllm={"mode": mode}, stop=["b c"])
    drawn(engine, n=2)
    neutral = vllm_standin.SamplingParams(
        n=1 if mode == "colocate" else 2,
        temperature=0.7,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        seed=None,
        max_tokens=7,
        logprobs=0,
        stop=["b c"],
        stop_token_ids=[oracle.EOS],
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
    )
    assert served.asked == [neutral]


def test_the_settings_of_vllm_reach_it(served):
    vllm = {"gpu_memory_utilization": 0.4, "max_model_length": 12, "model_impl": "transformers"}
    engine_on(policy_of(), vllm=vllm, batch_size=5, trust_remote_code=True)
    given = served.llm.arguments
    assert given["model"] == "somewhere" and given["gpu_memory_utilization"] == 0.4
    assert given["max_model_len"] == 12 and given["max_num_seqs"] == 5
    assert given["model_impl"] == "transformers" and given["trust_remote_code"] is True
    assert given["logprobs_mode"] == "processed_logprobs"


def test_the_settings_of_a_server_reach_the_client(served):
    vllm = {"mode": "server", "server_base_url": "http://a:1", "group_port": 7, "server_timeout": 9}
    engine_on(policy_of(), vllm=vllm)
    client = served.client
    assert (client.base_url, client.group_port, client.connection_timeout) == ("http://a:1", 7, 9.0)
    assert client.calls == ["init_communicator"]


@MODES
def test_the_models_own_generation_settings_are_not_read(served, mode):
    engine = engine_on(policy_of(), vllm={"mode": mode})
    torch.manual_seed(5)  # a server's state
    plain = drawn(engine)
    hostile = GenerationConfig(top_k=1, repetition_penalty=9.0, eos_token_id=[oracle.EOS, 0, 1])
    served.lm.generation_config = engine._lm.generation_config = hostile
    torch.manual_seed(5)
    assert drawn(engine).texts == plain.texts


# What is drawn


@MODES
def test_samples_follow_the_enumerated_distribution_of_the_policy(served, mode):
    policy = policy_of(temperature=0.7)
    engine = engine_on(policy, vllm={"mode": mode}, max_new_tokens=3)
    rollout = drawn(engine, n=4, prompts=500)
    assert len(rollout) == 4000
    for prompt in oracle.PROMPTS:
        assert_drawn_from(rollout, prompt, exact_probabilities(policy.lm, prompt, 0.7))


@MODES
def test_samples_of_a_prompt_differ_and_stand_side_by_side(served, mode):
    rollout = drawn(engine_on(policy_of(), vllm={"mode": mode}))
    assert rollout.group.tolist() == [i // 3 for i in range(120)]
    assert list(rollout.prompts.texts) == [oracle.PROMPTS[i // 3 % 2] for i in range(120)]
    assert len({*rollout.texts[:3], *rollout.texts[6:9]}) > 3


def test_colocated_runs_repeat_and_leave_the_global_generator_alone(served):
    engine = engine_on(policy_of())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = drawn(engine)
    assert torch.equal(torch.rand(2), expected)
    assert drawn(engine).texts == first.texts != drawn(engine, seed=1).texts


def test_prompts_go_without_padding_as_often_as_there_are_samples(served):
    drawn(engine_on(policy_of()), n=2, prompts=1)
    short, long = ([0], [2, 1, 3])
    assert served.prompts == [short, short, long, long]
    drawn(engine_on(policy_of(), vllm={"mode": "server"}), n=2, prompts=1)
    assert served.prompts == [short, long]


def test_each_rank_gets_its_own_slice_of_a_servers_responses(served, monkeypatch):
    """Rank 0 of two: TRL gathers the prompts of both, and hands back the first half."""

    def gather(rows):  # prompts, and the images that there are not
        return rows + [row and [4, 4] for row in rows]

    monkeypatch.setattr(vllm_generation, "gather_object", gather)
    rollout = drawn(engine_on(policy_of(), vllm={"mode": "server"}), n=2, prompts=1)
    assert served.prompts == [[0], [2, 1, 3], [4, 4], [4, 4]] and served.asked[0].n == 2
    assert len(rollout) == 4 and rollout.group.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_samplers_logprobs_are_those_of_the_sampled_tokens(served, temperature):
    policy = policy_of(temperature=temperature)
    rollout = drawn(engine_on(policy))
    trainers = evaluate_rollout(policy, rollout, logprobs_only, 100)["logprobs"]
    assert_close(rollout.logprobs, trainers, rtol=0, atol=1e-4)
    assert bool((rollout.logprobs[~rollout.response_mask] == 0).all())
    assert rollout.logprobs.dtype == torch.float32


@pytest.mark.parametrize("mode, temperature, kept", [
    ("raw_logprobs", 0.7, False), ("raw_logprobs", 1.0, True), ("processed_logprobs", 0.7, True),
])  # fmt: skip
def test_a_servers_logprobs_are_kept_only_where_they_are_of_what_it_drew(
    monkeypatch, caplog, mode, temperature, kept
):
    vllm_standin.install(monkeypatch, logprobs_mode=mode)
    rollout = drawn(engine_on(policy_of(temperature=temperature), vllm={"mode": "server"}))
    assert (rollout.logprobs is not None) == kept
    assert ("--logprobs-mode processed_logprobs" in caplog.text) != kept


def test_a_logprob_that_is_no_number_stops_the_run(served):
    with pytest.raises(RuntimeError, match="vLLM drew token 3 from logits that are not finite"):
        VLLMEngine._of_sampled([3], [[None]], [[3]])


# Where a response ends


def test_ends_are_those_of_the_decode_engine(served):
    engine = engine_on(policy_of())
    free = drawn(engine)
    for ids, mask, done in zip(free.response_ids, free.response_mask, free.finished, strict=True):
        own = ids[mask].tolist()
        assert own.count(oracle.EOS) == int(done) == int(own[-1] == oracle.EOS)
        assert bool(done) or len(own) == 7
    stopped = drawn(engine_on(policy_of(), stop=["b c", "e"]))
    assert any(text.endswith("b c") for text in stopped.texts)
    for text, done, mask in zip(
        stopped.texts, stopped.finished, stopped.response_mask, strict=True
    ):
        assert "b c" not in text[:-1] and "e" not in text[:-1]
        if text.endswith(("b c", "e")):
            assert bool(done) and int(mask.sum()) == len(text.split())


A, B, C, END = 0, 1, 2, oracle.EOS
ENDS = {
    "EOS": ([A, END], [], (2, True)),
    "an empty response": ([END], [], (1, True)),
    "EOS as the last token allowed": ([A] * 6 + [END], [], (7, True)),
    "the limit": ([A] * 7, [], (7, False)),
    "a stop string": ([A, B, C], ["b c"], (3, True)),
    "a stop string as the last token allowed": ([A] * 5 + [B, C], ["b c"], (7, True)),
    "the limit, a stop string not met": ([A] * 7, ["b c"], (7, False)),
    "a special token as stop string": ([A, 6], ["<pad>"], (2, True)),
    "tokens behind a stop string": ([A, B, C, A, END], ["b c"], (3, True)),
    "tokens behind EOS": ([A, END, B], [], (2, True)),
    "a stop string that only vLLM saw": ([A, B], ["a a"], (2, True)),
}


@pytest.mark.parametrize("case", ENDS)
def test_where_a_completion_ends_and_whether_it_is_finished(case):
    ids, stop, expected = ENDS[case]
    engine = VLLMEngine(oracle.tokenizer(), Accelerator(cpu=True), VLLMSection(),
                        max_new_tokens=7, stop=stop)  # fmt: skip
    assert engine._end(ids) == expected


def test_a_response_that_the_context_cut_off_is_an_error():
    engine = VLLMEngine(oracle.tokenizer(), Accelerator(cpu=True), VLLMSection(), max_new_tokens=7)
    with pytest.raises(RuntimeError, match=r"after 2 of sampling.max_new_tokens=7 tokens without"):
        engine._end([A, B])


# Weights


@MODES
def test_weights_are_sent_once_a_policy_step(served, mode):
    policy = policy_of()
    engine = engine_on(policy, vllm={"mode": mode})
    assert served.pushes == 1
    drawn(engine)
    engine.sync(policy, 0)
    assert served.pushes == 1
    with torch.no_grad():
        policy.lm.lm_head.weight.mul_(2.0)
    engine.sync(policy, 4)
    engine.sync(policy, 4)
    assert served.pushes == 2 and drawn(engine).policy_step == 4
    assert torch.equal(served.lm.lm_head.weight, policy.lm.lm_head.weight)


def test_weights_lost_in_sleep_are_sent_again(served):
    policy = policy_of()
    engine = engine_on(policy, vllm={"enable_sleep_mode": True})
    plain = drawn(engine)
    assert served.asleep and served.pushes == 1
    engine.sync(policy, 0)
    assert served.pushes == 2
    assert drawn(engine).texts == plain.texts and served.pushes == 2
    assert drawn(engine).texts == plain.texts and served.pushes == 3


def adapted(dtype: torch.dtype) -> Policy:
    """A policy whose adapters have moved, on a base of this precision."""
    lm = add_lora(loaded(oracle.language_model()).to(dtype), LoraSection(r=2))
    generator = builders.seeded(1)
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return Policy(lm, reference="adapter")


def bits(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.lm.named_parameters()}


@MODES
def test_the_base_is_bit_for_bit_the_same_after_a_push(served, mode):
    policy = adapted(torch.bfloat16)
    before = bits(policy)
    engine = engine_on(policy, vllm={"mode": mode})
    engine.sync(policy, 1)
    after = bits(policy)
    assert before.keys() == after.keys() and served.pushes == 2
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_sleep_does_not_let_trl_merge_behind_our_back(served):
    policy = adapted(torch.bfloat16)
    before = bits(policy)
    engine = engine_on(policy, vllm={"enable_sleep_mode": True})
    drawn(engine, prompts=1)
    drawn(engine, prompts=1)
    assert served.pushes == 2
    assert all(torch.equal(before[name], p) for name, p in bits(policy).items())


def test_trls_own_push_moves_a_bfloat16_base(served):
    """Guards the tests above: without our copies the reference would drift."""
    policy = adapted(torch.bfloat16)
    engine = engine_on(policy)
    before = bits(policy)
    engine._served.sync_weights()
    assert any(not torch.equal(before[name], p) for name, p in bits(policy).items())


def test_merged_weights_are_what_vllm_draws_from(served):
    policy = adapted(torch.float32)
    before, frozen = oracle.language_model().state_dict(), bits(policy)
    rollout = drawn(engine_on(policy))
    changed = {k for k, v in served.received.items() if not torch.allclose(v, before[k])}
    assert len(changed) == 14 and set(served.received) == set(before)
    trainers = evaluate_rollout(policy, rollout, logprobs_only, 100)["logprobs"]
    assert_close(rollout.logprobs, trainers, rtol=0, atol=1e-4)
    assert all(torch.equal(frozen[name], p) for name, p in bits(policy).items())


def test_misuse_is_refused(served):
    policy = policy_of()
    engine = engine_on(policy)
    with pytest.raises(ValueError, match=r"sampling.engine=vllm draws inside vLLM"):
        engine.generate(builders.prompt_batch(), 1, builders.seeded(), lambda logits, _: logits)
    with pytest.raises(ValueError, match="serves the policy of its first sync"):
        engine.sync(policy_of())
    engine.close()
    with pytest.raises(RuntimeError, match="before sync"):
        drawn(engine)
    with pytest.raises(ConfigError, match=r"built in Python has no such place; save it"):
        engine_on(Policy(oracle.language_model(), reference="none"))


# A run, and what it refuses


def small_trainer(monkeypatch, lm=None, **sections):
    monkeypatch.setattr(session_module, "check_engine", lambda *_: None)
    sections = {"sampling": {"engine": "vllm", "samples_per_prompt": 2}} | sections
    lm = oracle.language_model() if lm is None else lm
    return builders.trainer(loaded(lm), **sections)


def test_a_run_trains_on_what_vllm_draws(served, monkeypatch, tmp_path):
    make = oracle.language_model
    monkeypatch.setattr(oracle, "language_model", lambda: loaded(make()))
    monkeypatch.setattr(session_module, "check_engine", lambda *_: None)
    folder = run(
        tmp_path,
        iterations=3,
        model={"lora": {"r": 2}},
        sampling={"engine": "vllm", "samples_per_prompt": 2},
        ppo={"lr": 1e-2},
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()][1:]
    assert len(rows) == 3 and served.pushes == 3 and len(served.asked) == 3
    for row in rows:
        assert row["sampler_gap"] < 1e-4 and row["sampler_capped"] == 0.0
        assert row["sampler_weight"] == pytest.approx(1.0, abs=1e-4)
    start = make().state_dict()
    assert any(not torch.allclose(served.received[k], start[k], atol=1e-3) for k in start)


def test_evaluations_decode_in_this_process(served, monkeypatch):
    trainer = small_trainer(monkeypatch, eval={"samples": 4})
    evaluate(trainer.session, 0.1)
    assert served.asked == []


def test_opening_a_session_starts_nothing(served, monkeypatch):
    monkeypatch.setattr(session_module, "check_engine", lambda *_: None)
    opened = builders.session(sampling={"engine": "vllm"})
    assert isinstance(opened.engine, VLLMEngine) and opened.engine._served is None


def test_a_prompt_that_vllms_context_does_not_hold_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"has 3 tokens, more than the 2"):
        small_trainer(monkeypatch, vllm={"max_model_length": 9})


CUDA = torch.device("cuda")
REFUSED = {
    "no GPU": ({}, torch.device("cpu"), r"^sampling.engine=vllm needs a CUDA device.* on cpu; use"),
    "no vLLM": ({}, CUDA, r"^sampling.engine=vllm needs vLLM: pip install"),
    "a quantised base": (
        {"model.quantization": "4bit", "model.lora.r": 4}, CUDA, r"model.quantization=4bit: adapt"),
    "a low temperature": (
        {"sampling.temperature": 0.001}, CUDA, r"sampling.temperature=0.001: vLLM draws only"),
    "a high temperature": ({"sampling.temperature": 2.5}, CUDA, r"between 0.01 and 2"),
    "a group that does not divide": (
        {"vllm.tensor_parallel_size": 4}, CUDA,
        r"^vllm.tensor_parallel_size=4 does not divide the 6 .*valid: 1, 2, 3, 6"),
    "a revision": ({"model.revision": "v1"}, CUDA, r"model.revision=v1: vLLM would be given"),
}  # fmt: skip


def configured(**changes) -> PPORun:
    return from_mapping(PPORun, {}, changes, rewards_given=True)


@pytest.mark.parametrize("case", REFUSED)
def test_what_vllm_cannot_serve_is_refused_before_any_work(case, monkeypatch):
    changes, device, message = REFUSED[case]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        check_engine(configured(**{"sampling.engine": "vllm"}, **changes), device, 6)
    check_engine(configured(**changes), torch.device("cpu"), 6)  # nothing to the decode engine


def test_a_session_refuses_before_it_reads_prompts():
    with pytest.raises(ConfigError, match=r"^sampling.engine=vllm needs"):
        builders.session(sampling={"engine": "vllm"}, prompts=[])


def test_the_bridge_asks_a_server_on_the_main_process_alone():
    class Other:
        mode = "server"
        accelerator = type("Accelerator", (), {"is_main_process": False})

    assert trl_bridge.vllm_logprobs_mode(Other()) == "processed_logprobs"
