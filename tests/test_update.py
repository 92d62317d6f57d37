"""The update: counted steps, one clipping each, what moves and what stays bit for bit."""

import math

import builders
import oracle
import pytest
import torch
from builders import parameters
from safetensors.torch import load_file
from torch.testing import assert_close

from rlalign.checkpoints.saving import save_model, training_state
from rlalign.evaluate import evaluate
from rlalign.exits import DivergedError
from rlalign.models import build_policy
from rlalign.policy import evaluate_rollout, logprobs_only
from rlalign.settings.sections import LoraSection, ModelSection
from rlalign.trainer import schedule

LORA = {"lora": {"r": 2}}
BOTH = pytest.mark.parametrize("model", [{}, LORA], ids=["full", "lora"])


def moved(before: dict, after: dict) -> set[str]:
    """Names of the parameters that are not bit for bit the same."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def unchanged(before: dict, after: dict) -> None:
    assert moved(before, after) == set()


def count_calls(monkeypatch, owner, name: str) -> list[int]:
    calls, original = [], getattr(owner, name)

    def counting(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


@BOTH
def test_there_is_one_optimiser_step_and_one_clipping_a_minibatch(model, monkeypatch):
    trainer = builders.trainer(
        model=model,
        ppo={"epochs": 3, "minibatches": 4},
        optim={"micro_batch_tokens": 12},  # several micro-batches each
    )
    backwards = count_calls(monkeypatch, torch.autograd, "backward")
    clips = count_calls(monkeypatch, torch.nn.utils, "clip_grad_norm_")
    steps = count_calls(monkeypatch, trainer.optimizer, "step")
    for iteration in (1, 2):
        stats = trainer.step(trainer.generate())
        assert len(steps) == len(clips) == trainer.optimizer_steps == 12 * iteration
        assert stats["ppo/skipped_steps"] == 0.0
    assert len(backwards) > 2 * len(steps)
    assert (trainer.iteration, trainer.samples) == (2, 32)


def test_the_gradient_is_clipped_after_it_is_whole(monkeypatch):
    norms = []
    for bound in (0.01, None):
        trainer = builders.trainer(
            optim={"micro_batch_tokens": 12, "max_grad_norm": bound}, ppo={"epochs": 1}
        )
        step = trainer.optimizer.step

        def looking(trainer=trainer, step=step):
            grads = [p.grad.flatten() for p in trainer.session.policy.trainable().values()]
            norms.append(float(torch.cat(grads).norm()))
            step()

        monkeypatch.setattr(trainer.optimizer, "step", looking)
        stats = trainer.step(trainer.generate())
    assert norms[0] == pytest.approx(0.01, rel=1e-3) and norms[1] > 0.1
    assert stats["ppo/grad_norm"] == pytest.approx(norms[1], rel=1e-4)  # as it was before clipping


def test_the_update_does_not_depend_on_the_token_budget():
    def updated(budget):
        # A large eps: Adam would otherwise blow up rounding where the gradient is about 0.
        optim = {"micro_batch_tokens": budget, "eps": 1e-3}
        trainer = builders.trainer(optim=optim, ppo={"minibatches": 2, "entropy_coef": 0.01})
        rollout = trainer.generate()
        stats = trainer.step(rollout)
        return parameters(trainer.session.policy), stats

    (whole, whole_stats), (parts, parts_stats) = updated(10_000), updated(1)
    assert_close(parts, whole, rtol=0, atol=1e-6)
    for name in ("ppo/policy_loss", "ppo/value_loss", "ppo/approx_kl", "ppo/grad_norm", "entropy"):
        assert parts_stats[name] == pytest.approx(whole_stats[name], rel=1e-3, abs=1e-6), name


def test_every_sample_is_learnt_from_once_an_epoch_within_the_budget(monkeypatch):
    trainer = builders.trainer(
        ppo={"epochs": 2, "minibatches": 2}, optim={"micro_batch_tokens": 30}
    )
    rollout, seen = trainer.generate(), []
    loss = trainer.objective.loss

    def looking(policy, batch, norm):
        lengths = batch.rollout.lengths
        assert len(lengths) * int(lengths.max()) <= 30
        seen.append(batch.rollout.group.tolist())
        return loss(policy, batch, norm)

    monkeypatch.setattr(trainer.objective, "loss", looking)
    trainer.step(rollout)
    samples = [sample for part in seen for sample in part]
    assert sorted(samples[:16]) == sorted(samples[16:]) == list(range(16))
    assert len(seen) > 4


def test_the_reported_statistics_are_global_means():
    """Before the first step the mean surrogate is the mean of the whitened advantages: 0."""
    trainer = builders.trainer(ppo={"epochs": 1}, optim={"micro_batch_tokens": 12})
    stats = trainer.step(trainer.generate())
    assert stats["ppo/policy_loss"] == pytest.approx(0.0, abs=1e-5)
    assert stats["ppo/clip_frac"] == 0.0


@BOTH
def test_the_reference_is_bitwise_the_same_after_updates_saves_and_evaluations(model, tmp_path):
    trainer = builders.trainer(model=model, ppo={"lr": 0.01})
    session = trainer.session
    rollout = trainer.generate()
    before = trainer.score(rollout).ref_logprobs
    own = evaluate_rollout(session.policy, rollout, logprobs_only, 100)["logprobs"]
    assert_close(own, before, rtol=0, atol=1e-6)  # training starts at the reference
    for _ in range(3):
        trainer.step(trainer.generate())
        evaluate(session, 0.1)
        save_model(session, tmp_path)
        training_state(trainer)
    assert torch.equal(trainer.score(rollout).ref_logprobs, before)
    after = evaluate_rollout(session.policy, rollout, logprobs_only, 100)["logprobs"]
    assert float((after - before).abs().max()) > 0.01


@BOTH
def test_evaluating_and_saving_move_nothing(model, tmp_path):
    trainer = builders.trainer(model=model, ppo={"lr": 0.01})
    for _ in range(2):
        trainer.step(trainer.generate())
    before = parameters(trainer.session.policy)
    reference = evaluate(trainer.session, 0.1, of_reference=True)
    save_model(trainer.session, tmp_path)
    unchanged(before, parameters(trainer.session.policy))
    assert reference.stats["eval/kl"] == pytest.approx(0.0, abs=1e-6)
    assert evaluate(trainer.session, 0.1).stats["eval/kl"] > 1e-5
    assert all(p.requires_grad for p in trainer.session.policy.trainable().values())


@BOTH
def test_critic_warmup_leaves_the_language_model_bit_identical(model):
    trainer = builders.trainer(
        model=model, ppo={"critic_warmup": 2, "entropy_coef": 0.01}, optim={"weight_decay": 0.1}
    )
    start = parameters(trainer.session.policy)
    for _ in range(2):
        trainer.step(trainer.generate())
        now = parameters(trainer.session.policy)
        assert moved(start, now) == {"value_head.weight", "value_head.bias"}
    trainer.step(trainer.generate())
    after = moved(start, parameters(trainer.session.policy))
    assert {name for name in trainer.session.policy.trainable() if "lora_A" not in name} <= after


def test_critic_warmup_leaves_adams_warm_start_to_the_language_model():
    """Its first step is lr whatever the gradient; zero gradients before it would count as steps."""
    trainer = builders.trainer(
        ppo={"critic_warmup": 10, "lr": 1e-3, "epochs": 1}, optim={"betas": [0.9, 0.999]}
    )
    before = {}
    for _ in range(11):
        before = builders.parameters(trainer.session.policy.lm)
        trainer.step(trainer.generate())
    moved = builders.parameters(trainer.session.policy.lm)
    largest = max(float((moved[name] - before[name]).abs().max()) for name in moved)
    assert largest == pytest.approx(1e-3, rel=0.01)


def test_ranks_with_unequal_numbers_of_responses_are_refused_on_all(monkeypatch):
    trainer = builders.trainer()
    rollout = trainer.generate()
    monkeypatch.setattr(trainer.session.ranks, "gather", lambda sizes: [*sizes, 15])
    with pytest.raises(ValueError, match=r"equally many responses, not \[16, 15\]"):
        trainer.step(rollout)


def test_lora_moves_adapters_and_the_value_head_alone():
    trainer = builders.trainer(model=LORA)
    before = parameters(trainer.session.policy)
    for _ in range(2):
        trainer.step(trainer.generate())
    after = moved(before, parameters(trainer.session.policy))
    assert after == set(trainer.session.policy.trainable())
    assert all("lora_" in name or "value_head" in name for name in after)


@pytest.mark.parametrize("lora", [None, LoraSection(r=2)])
def test_weights_that_learn_are_float32(lora):
    """A learning rate of 1e-6 vanishes in bfloat16."""
    lm = oracle.language_model().bfloat16()
    section = ModelSection(dtype="bfloat16", lora=lora)
    policy = build_policy(section, 1.0, torch.device("cpu"), lm)
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    assert policy.autocast_dtype == torch.bfloat16


def test_a_tiny_learning_rate_moves_a_bfloat16_run():
    trainer = builders.trainer(
        oracle.language_model().bfloat16(), model={"dtype": "bfloat16"}, ppo={"lr": 1e-6}
    )
    before = parameters(trainer.session.policy)
    trainer.step(trainer.generate())
    assert moved(before, parameters(trainer.session.policy)) == before.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratio_is_one_before_the_first_update(dtype):
    """In float32; in bfloat16 the gap to the sampler is what a run reports."""
    trainer = builders.trainer(model={"dtype": dtype}, ppo={"epochs": 1, "clip": 1e-4})
    stats = trainer.step(trainer.generate())
    if dtype == "float32":
        assert stats["ppo/clip_frac"] == 0.0 and abs(stats["ppo/approx_kl"]) < 1e-6
        assert stats["sampler_gap"] < 1e-5
    else:
        assert 0 <= stats["sampler_gap"] < 0.05


def test_the_value_head_learns_has_its_own_rate_and_is_saved(tmp_path):
    trainer = builders.trainer(ppo={"value_lr": 0.02, "lr": 1e-9, "epochs": 8, "vf_coef": 1.0})
    first = trainer.step(trainer.generate())["ppo/explained_variance"]
    rates = {g["name"]: g["lr"] for g in trainer.optimizer.param_groups}
    assert rates == {"lm": 1e-9, "value_head": 0.02}
    for _ in range(12):
        last = trainer.step(trainer.generate())["ppo/explained_variance"]
    assert last > first + 0.1
    head = trainer.session.policy.value_head.state_dict()
    saved = training_state(trainer)[0]["policy"]
    assert torch.equal(saved["value_head.weight"], head["weight"])
    save_model(trainer.session, tmp_path)
    assert_close(load_file(tmp_path / "value_head.safetensors"), dict(head), rtol=0, atol=0)


def test_an_update_that_went_too_far_ends_early():
    settings = {"lr": 0.05, "epochs": 2, "minibatches": 4}
    free = builders.trainer(ppo=settings)
    stats = free.step(free.generate())
    assert free.optimizer_steps == 8 and stats["ppo/stopped_early"] == 0.0
    bounded = builders.trainer(ppo=settings | {"target_kl": 1e-4})
    stats = bounded.step(bounded.generate())
    assert 1 < bounded.optimizer_steps < 8 and stats["ppo/stopped_early"] == 1.0


def break_loss(trainer, monkeypatch, broken: list[bool]) -> None:
    loss = trainer.objective.loss

    def maybe_broken(*args):
        out = loss(*args)
        factor = float("nan") if broken[0] else 1.0
        return type(out)(out.loss * factor, out.stats)

    monkeypatch.setattr(trainer.objective, "loss", maybe_broken)


def test_a_gradient_that_is_not_finite_is_dropped(monkeypatch, caplog):
    trainer, broken = builders.trainer(ppo={"epochs": 1}), [True]
    break_loss(trainer, monkeypatch, broken)
    before = parameters(trainer.session.policy)
    stats = trainer.step(trainer.generate())
    assert stats["ppo/skipped_steps"] == 1.0
    assert all(math.isfinite(x) for x in stats.values()) and "ppo/policy_loss" not in stats
    assert trainer.optimizer_steps == 0
    assert "optimiser step skipped" in caplog.text
    unchanged(before, parameters(trainer.session.policy))
    broken[0] = False
    trainer.step(trainer.generate())
    assert trainer.optimizer_steps == 1  # and nothing of the broken gradient was left over
    assert all(bool(p.isfinite().all()) for p in parameters(trainer.session.policy).values())


def test_five_in_a_row_end_the_run(monkeypatch):
    trainer, broken = builders.trainer(ppo={"epochs": 1}), [True]
    break_loss(trainer, monkeypatch, broken)
    for _ in range(trainer.session.config.optim.max_skipped - 1):
        trainer.step(trainer.generate())
    broken[0] = False
    trainer.step(trainer.generate())  # a sound one in between starts the count anew
    broken[0] = True
    for _ in range(trainer.session.config.optim.max_skipped - 1):
        trainer.step(trainer.generate())
    with pytest.raises(DivergedError, match="5 optimiser steps in a row"):
        trainer.step(trainer.generate())


@pytest.mark.parametrize("response", ["", "a b"])
@BOTH
def test_a_batch_of_one_and_a_batch_of_empty_responses_are_legal(model, response):
    for size in (1, 4):
        trainer = builders.trainer(
            model=model, score={"normalize": True}, kl={"target": 1.0}, ppo={"minibatches": 2}
        )
        rollout = builders.rollout([response] * size, prompts=["a", "c b d", "a", "a"][:size])
        stats = trainer.step(rollout)
        assert all(value == value and abs(value) < 1e6 for value in stats.values())
        assert trainer.optimizer_steps == 2 * min(2, size)
        assert all(bool(p.isfinite().all()) for p in parameters(trainer.session.policy).values())


def test_scores_from_outside_replace_the_rewards():
    trainer = builders.trainer()
    rollout = builders.rollout(["a", "b"])
    trainer.step(rollout, scores=[1.0, -1.0])
    assert trainer.iteration == 1 and trainer.samples == 2


@pytest.mark.parametrize(
    "optim, factors",
    [
        ({}, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ({"warmup_iterations": 3}, [0.25, 0.5, 0.75, 1.0, 1.0]),
        ({"schedule": "linear"}, [1.0, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "linear", "final_lr_fraction": 0.5}, [1.0, 0.9, 0.8, 0.7, 0.6]),
        ({"schedule": "linear", "warmup_iterations": 1}, [0.5, 1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine"}, [1.0, 0.9045085, 0.6545085, 0.3454915, 0.0954915]),
    ],
)
def test_schedules_by_hand(optim, factors):
    trainer = builders.trainer(optim=optim, train={"iterations": 5})
    assert [schedule(trainer.session.config, i) for i in range(5)] == pytest.approx(factors)


def test_a_scheduled_rate_reaches_the_optimiser():
    trainer = builders.trainer(
        optim={"schedule": "linear"}, train={"iterations": 5}, ppo={"lr": 0.1, "value_lr": 0.2}
    )
    for expected in (1.0, 0.8):
        stats = trainer.step(trainer.generate())
        assert stats["lr"] == pytest.approx(0.1 * expected)
        assert trainer.optimizer.param_groups[1]["lr"] == pytest.approx(0.2 * expected)
