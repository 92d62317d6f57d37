"""The composition root: counts that divide, processes that meet, one seed for everything random."""

import logging

import builders
import oracle
import pytest
import torch
from torch.testing import assert_close

from rewards.contract import RewardError
from rlalign.algorithms.ppo import PPORun
from rlalign.config import ConfigError, from_mapping
from rlalign.evaluate import evaluate
from rlalign.ranks import check_world, refuse_sharding, set_threads
from rlalign.session import check_samples


def counts(samples, minibatches=1, per_prompt=1):
    return from_mapping(
        PPORun,
        oracle.config(
            train={"samples": samples},
            ppo={"minibatches": minibatches},
            sampling={"samples_per_prompt": per_prompt},
        ),
        rewards_given=True,
    )


@pytest.mark.parametrize(
    "samples, world, minibatches, per_prompt, nearest",
    [
        (30, 1, 4, 1, "28 or 32"),
        (30, 2, 4, 1, "24 or 32"),
        (3, 1, 4, 1, "4"),
        (32, 2, 4, 6, "24 or 48"),
        (33, 1, 1, 2, "32 or 34"),
    ],
)
def test_counts_that_do_not_divide_are_refused_with_the_nearest_that_do(
    samples, world, minibatches, per_prompt, nearest
):
    message = (
        rf"^train\.samples={samples} does not split over {world} processes x {minibatches} "
        f"minibatches with {per_prompt} samples a prompt; nearest valid: {nearest}$"
    )
    with pytest.raises(ConfigError, match=message):
        check_samples(counts(samples, minibatches, per_prompt), world)
    for valid in nearest.split(" or "):
        check_samples(counts(int(valid), minibatches, per_prompt), world)


def test_fewer_processes_than_asked_are_refused():
    alone = {"ACCELERATE_DYNAMO_BACKEND": "no", "MASTER_PORT": "29500"}
    with pytest.raises(
        ConfigError, match=r"asked for several processes \(it set MASTER_PORT\) and started 1; use"
    ):
        check_world(1, alone)
    with pytest.raises(ConfigError, match="started 2 processes, but 1 found each other"):
        check_world(1, {"WORLD_SIZE": "2"})
    check_world(2, {"WORLD_SIZE": "2", "MASTER_PORT": "29500"})
    check_world(1, {"ACCELERATE_DYNAMO_BACKEND": "no"})
    check_world(1, {})


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_launchers_that_shard_are_refused_before_anything_waits_for_a_shard(variable):
    with pytest.raises(ConfigError, match=rf"{variable}=true.*use launch/accelerate/ddp\.yaml"):
        refuse_sharding({variable: "true"})
    refuse_sharding({variable: "false"})


def test_threads_are_shared_between_the_processes_of_a_machine(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr("rlalign.ranks.allowed_cores", lambda: 8)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert set_threads("auto") == torch.get_num_threads() == 2
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
        assert set_threads("auto") == 1
        assert set_threads(3) == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def on_rank(session, rank, world):
    """The same session as another process would have it."""
    session.ranks.rank, session.ranks.size = rank, world
    return session


def test_two_ranks_walk_one_global_order():
    prompts = ["a", "b", "c", "d", "e", "a b", "b c"]
    session = builders.session(prompts=prompts, train={"samples": 4})
    whole = [text for i in range(7) for text in session.prompt_batch(i).texts]
    parts = [
        text
        for i in range(7)
        for rank in range(2)
        for text in on_rank(session, rank, 2).prompt_batch(i).texts
    ]
    assert parts == whole
    for epoch in range(4):
        assert sorted(whole[epoch * 7 : (epoch + 1) * 7]) == sorted(prompts)


def test_several_samples_of_a_prompt_use_fewer_prompts():
    session = builders.session(train={"samples": 8}, sampling={"samples_per_prompt": 4})
    assert len(session.prompt_batch(0)) == 2


def test_random_numbers_depend_on_seed_purpose_step_and_rank_alone():
    session = builders.session()

    def draw(purpose="generate", step=0, rank=0):
        return float(torch.rand(1, generator=on_rank(session, rank, 2).generator(purpose, step)))

    first = draw()
    assert draw() == first
    others = [draw(step=1), draw("minibatches"), draw("evaluate"), draw("user"), draw(rank=1)]
    assert len({first, *others}) == 6
    other_seed = builders.session(train={"seed": 1}).generator("generate", 0)
    assert float(torch.rand(1, generator=other_seed)) != first


@pytest.mark.parametrize("model", [{}, {"lora": {"r": 2}}], ids=["full", "lora"])
def test_the_same_seed_gives_the_same_numbers(model):
    def start(seed):
        torch.rand(int(torch.randint(1, 50, ())))  # whatever was drawn before
        return builders.parameters(builders.session(model=model, train={"seed": seed}).policy)

    before = torch.random.get_rng_state()
    first = start(0)
    assert_close(start(0), first, rtol=0, atol=0)
    assert not torch.equal(start(1)["value_head.weight"], first["value_head.weight"])
    torch.random.set_rng_state(before)
    builders.session(lm=oracle.language_model())
    trainer = builders.trainer(model=model)
    again = builders.trainer(model=model)
    for made in (trainer, again):
        made.step(made.generate())
    assert_close(
        builders.parameters(trainer.session.policy),
        builders.parameters(again.session.policy),
        rtol=0,
        atol=0,
    )


def test_a_prompt_longer_than_the_context_leaves_is_refused():
    long = " ".join("abcdeabcde")  # 10 tokens; the model reads 16 and 7 are for the response
    with pytest.raises(ConfigError, match="row 2 of prompts= has 10 tokens, more than the 9 that"):
        builders.session(prompts=["a", long])
    builders.session(prompts=["a", long], sampling={"max_new_tokens": 6})
    with pytest.raises(ConfigError, match="has 10 tokens, more than the 3 that"):
        builders.session(
            prompts=["a", long], sampling={"max_new_tokens": 6}, prompts_={"max_length": 3}
        )


def test_responses_that_fill_the_context_are_refused():
    with pytest.raises(ConfigError, match=r"max_new_tokens=16 leaves no room .* of 16 tokens"):
        builders.session(sampling={"max_new_tokens": 16})


def test_no_prompts_are_refused():
    with pytest.raises(ConfigError, match=r"^prompts= holds no prompts"):
        builders.session(prompts=[])


def too_few(completions, **_):
    return [1.0]


def undefined(completions, **_):
    return [float("nan")] * len(completions)


@pytest.mark.parametrize(
    "reward, message",
    [(too_few, "'too_few'.*returned 1 values for 6 samples"), (undefined, "'undefined'.* nan")],
)
def test_a_faulty_reward_is_found_before_training(reward, message):
    with pytest.raises(RewardError, match=message):
        builders.session(rewards=[reward])


def test_held_out_prompts_are_not_trained_on():
    prompts = ["a", "b", "c", "d", "e", "a b", "b c", "c d"]
    session = builders.session(prompts=prompts, prompts_={"eval_fraction": 0.25})
    assert sorted([*session.prompts.texts, *session.eval_prompts.texts]) == sorted(prompts)
    assert len(session.eval_prompts) == 2
    assert builders.session(prompts=prompts).eval_prompts.texts == prompts  # nothing held out


def test_evaluating_on_the_training_prompts_is_said_once(caplog):
    split = builders.session(eval={"every": 1}, prompts_={"eval_fraction": 0.5})
    assert split.evaluates_on_held_out and "training prompts" not in caplog.text
    alike = builders.session(eval={"every": 1}, prompts_={"eval_fraction": 0})
    assert not alike.evaluates_on_held_out and len(alike.prompts) == len(alike.eval_prompts)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 1 and "prompts.eval_fraction=0 of 2 prompts holds out none" in said[0]
    assert not evaluate(alike, 0.1).is_held_out and evaluate(split, 0.1).is_held_out


def test_a_session_knows_what_was_given_from_python():
    given = builders.session()
    assert given.given_lm and given.given_prompts
