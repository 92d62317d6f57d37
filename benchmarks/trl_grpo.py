"""TRL's GRPOTrainer, timed by phase: the on-policy trainer that TRL maintains. It has no critic."""

from contextlib import suppress
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks import models
from benchmarks.settings import Setting, keyword_score, prompts_of, tokenizer_of
from benchmarks.worker import Finished, Recorder, now


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return keyword_score(completions)


class TimedTrainer(GRPOTrainer):
    """An iteration is one rollout and the optimiser steps on it; private hooks mark its phases."""

    record: Recorder
    start: float | None = None  # of the iteration

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.flush()
        self.start, self.generation = now(), 0.0
        batch = super()._generate_and_score_completions(inputs)
        self.rollout = now() - self.start
        self.tokens = int(batch["completion_mask"].sum())
        return batch

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        start = now()
        out = super()._generate_single_turn(*args, **kwargs)
        self.generation += now() - start
        return out

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        rewards = super()._calculate_rewards(*args, **kwargs)
        self.score = float(rewards.nanmean())
        return rewards

    def flush(self) -> None:
        """Hand on the iteration that has just ended."""
        if self.start is None:
            return
        total = now() - self.start
        self.record(
            {
                "generation": self.generation,
                "scoring": self.rollout - self.generation,
                "update": total - self.rollout,
                "total": total,
                "tokens": self.tokens,
                "score": self.score,
            }
        )


def run(setting: Setting) -> None:
    trainer = build(setting)
    trainer.callback_handler.pop_callback(PrinterCallback)
    trainer.record = Recorder(setting)
    with suppress(Finished):
        trainer.train()
        trainer.flush()


def build(setting: Setting) -> TimedTrainer:
    tokenizer = tokenizer_of(setting)
    dtype = torch.bfloat16 if setting.dtype == "bfloat16" else torch.float32
    model = models.load(setting.model, dtype)
    # Its own EOS would end responses beside the tokenizer's, which in the others it does not.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    ids = prompts_of(tokenizer, setting.prompt_length, setting.samples)
    groups = setting.samples // setting.generations
    prompts = [tokenizer.decode(x) for x in ids]
    prompts *= max(1, -(-2 * groups // len(prompts)))
    r = setting.lora
    adapters = None
    if r is not None:
        adapters = LoraConfig(
            r=r, lora_alpha=2 * r, task_type="CAUSAL_LM", target_modules="all-linear"
        )
    return TimedTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments(setting, tokenizer),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        peft_config=adapters,
    )


def arguments(setting: Setting, tokenizer: Any) -> GRPOConfig:
    batch = setting.samples // setting.minibatches
    banned = None if setting.regime == "mixed" else [tokenizer.eos_token_id]
    return GRPOConfig(
        output_dir="/tmp/rlalign-benchmark",
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        steps_per_generation=setting.minibatches,
        num_generations=setting.generations,
        num_iterations=setting.epochs,
        max_steps=setting.iterations * setting.minibatches * setting.epochs,
        max_completion_length=setting.response_length,
        temperature=1.0,
        beta=setting.kl_coef,
        learning_rate=setting.lr,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10**6,
        seed=setting.seed,
        bf16=setting.dtype == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        generation_kwargs=None if banned is None else {"suppress_tokens": banned},
    )
