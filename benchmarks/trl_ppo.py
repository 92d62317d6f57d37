"""TRL's PPOTrainer, timed by phase. TRL took it out in 1.13; 1.12.0 is put first on the path.

Its critic is a model of its own beside the policy, and it takes a reward model where it should take
a reward function, so the function is dressed up as a module below.
"""

import gc
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import trl.experimental.ppo.ppo_trainer as source
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PrinterCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks import models
from benchmarks.settings import Setting, keyword_score, prompts_of, tokenizer_of
from benchmarks.worker import Finished, Recorder, now


class FunctionReward(torch.nn.Module):
    """What `get_reward` needs of a reward model: a backbone named by `base_model_prefix`, `score`.

    It is not told where a response begins, so all prompts have the same number of tokens.
    """

    base_model_prefix = "backbone"

    def __init__(self, tokenizer: Any, prompt_length: int) -> None:
        super().__init__()
        self.tokenizer, self.prompt_length = tokenizer, prompt_length
        self.backbone = self._score_texts  # not a module: PPOTrainer only calls it

    def _score_texts(self, input_ids: Any, attention_mask: Any, **_: Any) -> SimpleNamespace:
        responses = zip(
            input_ids[:, self.prompt_length :],
            attention_mask[:, self.prompt_length :].bool(),
            strict=True,
        )
        texts = [self.tokenizer.decode(x[kept], skip_special_tokens=True) for x, kept in responses]
        scores = torch.tensor(keyword_score(texts), device=input_ids.device)
        hidden = scores[:, None, None].expand(-1, input_ids.shape[1], 1)
        return SimpleNamespace(hidden_states=(hidden,))

    def score(self, hidden: Any) -> Any:
        return hidden


class Stopwatch:
    """Marks of one iteration, taken where TRL's functions are called."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start, self.train_start = now(), 0.0
        self.generation = self.gc = 0.0
        self.tokens = 0

    def watch(self, stop_id: int | None, prompt_length: int) -> None:
        """Put timers around generation, the first training forward and gc.collect."""
        generate, forward, collect = source.batch_generation, source.forward, gc.collect

        def timed_generate(*args: Any) -> Any:
            start = now()
            ids, logits = generate(*args)
            self.generation += now() - start
            self.tokens = count_tokens(ids[:, prompt_length:], stop_id)
            return ids, logits

        def marked_forward(*args: Any) -> Any:
            if torch.is_grad_enabled() and not self.train_start:
                self.train_start = now()
            return forward(*args)

        def timed_collect() -> int:
            start = now()
            found = collect()
            self.gc += now() - start
            return found

        source.batch_generation, source.forward = timed_generate, marked_forward
        source.gc = SimpleNamespace(collect=timed_collect)


def count_tokens(ids: Any, stop_id: int | None) -> int:
    """Tokens of responses (B, T) through the first stop; all of them where there is none."""
    if stop_id is None:
        return int(ids.numel())
    before = (ids == stop_id).long().cumsum(1) - (ids == stop_id).long()
    return int((before == 0).sum())


class TimedTrainer(PPOTrainer):
    """Hands on each iteration as TRL logs it; the collection after that counts to the next."""

    record: Recorder
    stopwatch: Stopwatch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        end, watch = now(), self.stopwatch
        if watch.train_start:
            total = end - watch.start
            update = end - watch.train_start
            self.record(
                {
                    "generation": watch.generation,
                    "scoring": total - update - watch.generation - watch.gc,
                    "update": update,
                    "gc": watch.gc,
                    "total": total,
                    "tokens": watch.tokens,
                    "score": logs["objective/scores"],
                }
            )
        watch.restart()


def run(setting: Setting) -> None:
    tokenizer = tokenizer_of(setting)
    stop_id = tokenizer.eos_token_id if setting.regime == "mixed" else None
    trainer = build(setting, tokenizer)
    trainer.callback_handler.pop_callback(PrinterCallback)
    trainer.record, trainer.stopwatch = Recorder(setting), Stopwatch()
    trainer.stopwatch.watch(stop_id, setting.prompt_length)
    with suppress(Finished):
        trainer.train()


def build(setting: Setting, tokenizer: Any) -> TimedTrainer:
    dtype = torch.bfloat16 if setting.dtype == "bfloat16" else torch.float32
    torch.manual_seed(setting.seed)
    value = AutoModelForSequenceClassification.from_pretrained(
        models.source(setting.model), num_labels=1, dtype=dtype
    )
    return TimedTrainer(
        args=arguments(setting),
        processing_class=tokenizer,
        model=models.load(setting.model, dtype),
        ref_model=None if setting.lora else models.load(setting.model, dtype),
        reward_model=FunctionReward(tokenizer, setting.prompt_length),
        value_model=value,
        train_dataset=dataset(setting, tokenizer),
        peft_config=adapters(setting),
    )


def dataset(setting: Setting, tokenizer: Any) -> Dataset:
    """Prompts as ids, at least two batches of them: its loader drops what is left over."""
    ids = prompts_of(tokenizer, setting.prompt_length, setting.samples)
    order = np.random.default_rng(setting.seed)
    count = max(len(ids), 2 * setting.samples)
    return Dataset.from_dict({"input_ids": [ids[i % len(ids)] for i in order.permutation(count)]})


def adapters(setting: Setting) -> Any:
    from peft import LoraConfig

    if setting.lora is None:
        return None
    r = setting.lora
    return LoraConfig(r=r, lora_alpha=2 * r, task_type="CAUSAL_LM", target_modules="all-linear")


def arguments(setting: Setting) -> PPOConfig:
    # One accumulated step an epoch; its own default batch of 8 where it is to learn.
    micro = 8 if setting.target is not None else setting.samples
    return PPOConfig(
        output_dir="/tmp/rlalign-benchmark",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=setting.samples // micro,
        num_mini_batches=1,
        num_ppo_epochs=setting.epochs,
        total_episodes=setting.samples * setting.iterations,
        response_length=setting.response_length,
        stop_token="eos" if setting.regime == "mixed" else None,
        temperature=1.0,
        kl_coef=setting.kl_coef,
        learning_rate=setting.lr,
        lr_scheduler_type="constant",
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        seed=setting.seed,
        bf16=setting.dtype == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
    )
