"""This project's iterations, timed by phase."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from benchmarks import floors, models
from benchmarks.machine import peak_memory_mb
from benchmarks.settings import LEARNING, OURS, WORDS, Setting, prompts_of, tokenizer_of
from benchmarks.worker import Finished, Recorder, now
from rlalign.api import open_trainer
from rlalign.generation.sampling import Sampler, sample_inverse_cdf
from rlalign.trainer import Trainer
from rlalign.types import Rollout


def run(setting: Setting) -> None:
    trainer = build(setting)
    ranks = trainer.session.ranks
    record = Recorder(setting, ranks.is_main)
    rollout = None
    with suppress(Finished):
        while True:
            rollout, row = iterate(trainer, setting)
            record(row)
    if setting.floors and rollout is not None:  # after the peak of memory has been read
        record.send({"floors": floors_of(setting, rollout)})
    ranks.close()


def build(setting: Setting, overrides: Mapping[str, Any] | None = None) -> Trainer:
    """A trainer as the setting says; its prompts all have the same number of tokens."""
    tokenizer = tokenizer_of(setting)
    ids = prompts_of(tokenizer, setting.prompt_length, setting.samples)
    dtype = torch.bfloat16 if setting.dtype == "bfloat16" and setting.lora else torch.float32
    return open_trainer(
        configuration(setting),
        model=models.load(setting.model, dtype),
        tokenizer=tokenizer,
        prompts=[tokenizer.decode(x) for x in ids],
        overrides=overrides or {},
    )


def configuration(setting: Setting) -> dict[str, Any]:
    is_learning = setting.target is not None
    ppo: dict[str, Any] = {"epochs": setting.epochs, "minibatches": setting.minibatches}
    ppo |= {"lr": setting.lr}
    if is_learning:  # the quickstart's, as LEARNING[OURS] is
        ppo |= LEARNING[OURS] | {"value_lr": 2e-3, "value_clip": None}
    words = {"kind": "lexical.contains", "words": WORDS, "mode": "share", "scale": len(WORDS)}
    return {
        "model": {
            "dtype": setting.dtype,
            "lora": None if setting.lora is None else {"r": setting.lora},
        },
        "prompts": {"eval_fraction": 0.0},
        "sampling": {"max_new_tokens": setting.response_length},
        "rewards": {"words": words},
        "kl": {"coef": setting.kl_coef},
        "ppo": ppo,
        "train": {
            "samples": setting.samples,
            "iterations": setting.iterations,
            "seed": setting.seed,
            "threads": max(setting.threads // setting.processes, 1),
        },
        "eval": {"every": 0},
    }


def iterate(trainer: Trainer, setting: Setting) -> tuple[Rollout, dict[str, Any]]:
    """One iteration; its seconds by phase, tokens through EOS, and score."""
    start = now()
    rollout = generate(trainer, setting)
    generated = now()
    scored = trainer.score(rollout)
    read = now()
    stats = trainer.step(scored)
    end = now()
    scoring = read - generated + stats["time/prepare"]
    sums = [float(rollout.response_mask.sum()), float(scored.score.sum()), peak_memory_mb()]
    tokens, score, peak = trainer.session.ranks.sum(
        torch.tensor(sums, dtype=torch.float64, device=rollout.response_ids.device)
    ).tolist()
    return rollout, {
        "generation": generated - start,
        "scoring": scoring,
        "update": end - generated - scoring,
        "total": end - start,
        "tokens": tokens,
        "score": score / setting.samples,
        "peak_mb": round(peak, 1),
    }


def generate(trainer: Trainer, setting: Setting, sampler: Sampler = sample_inverse_cdf) -> Rollout:
    """This iteration's responses; where the regime is fixed, an EOS is a token like others."""
    session = trainer.session
    engine: Any = session.engine
    engine.sync(session.policy, trainer.optimizer_steps)
    prompts = session.prompt_batch(trainer.iteration)
    if setting.regime == "fixed":
        engine.eos_id = -1
    generator = session.generator("generate", trainer.iteration)
    return session.engine.generate(prompts, 1, generator, sampler)


def floors_of(setting: Setting, rollout: Rollout) -> dict[str, float]:
    """Of an iteration with the lengths of this rollout."""
    shape = floors.shape_of(models.config_of(setting.model), setting.lora)
    dtype = torch.bfloat16 if setting.dtype == "bfloat16" else torch.float32
    prompts = rollout.prompts.prompt_mask.sum(1).tolist()
    responses = rollout.response_mask.sum(1).tolist()
    return floors.measure(shape, dtype, prompts, responses, setting.epochs)
