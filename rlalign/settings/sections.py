"""The sections of a configuration that every algorithm shares: names, types, bounds, defaults.

Every bool defaults to false, because a W&B agent may leave a false flag out of its command line.
Each field's description is what `docs/configuration.md` and `rlalign config --schema` print.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from rlalign.settings.audit_section import AuditSection
from rlalign.settings.fields import (
    Decay,
    FiniteFloat,
    Many,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Share,
)
from rlalign.settings.run_section import RunSection


class LoraSection(Section):
    """Low-rank adapters on the language model (peft); its reference is the model without them."""

    r: Positive = Field(16, description="rank of the adapters")
    alpha: PositiveFloat | None = Field(None, description="scaling numerator; null means 2 r")
    target_modules: str | list[str] = Field(
        "all-linear", description="peft's `target_modules`: all-linear, or module names"
    )


class ModelSection(Section):
    """The causal language model that learns, and in which precision."""

    name: str = Field(
        "smollm2-135m",
        min_length=1,
        description="an embedded model's name, a hub id or a local directory of a causal LM",
    )
    revision: str | None = Field(None, description="hub revision: a branch, tag or commit")
    lora: LoraSection | None = Field(
        None,
        description="train adapters, the reference being the model without them; "
        "null trains every weight against a frozen copy",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="compute precision; auto takes bfloat16 where the processor has it"
    )
    quantization: Literal["none", "4bit", "8bit"] = Field(
        "none", description="quantise the frozen base under LoRA (needs bitsandbytes and a GPU)"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="recompute activations going backward: less memory, about 1/3 slower",
    )
    attention: str = Field("sdpa", description="transformers' `attn_implementation`")
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model; only for models you trust"
    )


class PromptsSection(Section):
    """What the model is asked to continue, and what is held out for evaluation."""

    path: str = Field(
        "experiments/data/openings.jsonl",
        min_length=1,
        description="a JSONL or parquet file, a saved dataset's directory, or a hub dataset id",
    )
    column: str = Field("prompt", description="the column that holds the prompt: text or messages")
    split: str = Field("train", description="split of a hub or saved dataset")
    eval_path: str | None = Field(
        None, min_length=1, description="held-out prompts; null holds out `eval_fraction` of `path`"
    )
    eval_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of the prompts held out when `eval_path` is null"
    )
    max_length: Positive | None = Field(
        None, description="refuse prompts of more tokens; null: what the model's context leaves"
    )
    chat: bool = Field(False, description="wrap plain prompts in the model's chat template")


class SamplingSection(Section):
    """How responses are drawn; the reference is measured under the same settings."""

    max_new_tokens: Positive = Field(32, description="longest response, in tokens, EOS included")
    temperature: PositiveFloat = Field(
        1.0, description="divides the logits everywhere: sampling, policy, reference, eval"
    )
    samples_per_prompt: Positive = Field(1, description="responses drawn for each prompt")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="a response ends, as finished, at the token that completes one of these"
    )
    batch_size: Positive | None = Field(
        None,
        description="most rows decoded at once in a process; null: all of them",
    )
    engine: Literal["decode", "static", "vllm"] = Field(
        "decode",
        description="what draws: `decode`, a loop in this process; `static`, the same over caches "
        "written in place, on CUDA as replayed graphs; `vllm` through TRL, on CUDA, under the "
        "section `vllm`; evaluations never take vllm",
    )


class VLLMSection(Section):
    """How vLLM serves the policy; read only where `sampling.engine` is `vllm` (docs/vllm.md)."""

    mode: Literal["colocate", "server"] = Field(
        "colocate",
        description="colocate: on the training GPUs; server: one that `vllm serve` runs elsewhere",
    )
    server_base_url: str = Field(
        "http://localhost:8000", min_length=1, description="server: where it answers"
    )
    server_timeout: PositiveFloat = Field(
        240.0, description="server: seconds to wait for it when the run starts"
    )
    group_port: int = Field(
        51216, ge=1, le=65535, description="server: port over which weights are sent"
    )
    tensor_parallel_size: Positive = Field(
        1, description="colocate: GPUs that share one copy of the model; divides the processes"
    )
    gpu_memory_utilization: Share = Field(
        0.3, description="colocate: share of each GPU's memory for vLLM; training needs the rest"
    )
    max_model_length: Positive | None = Field(
        None,
        description="colocate: most tokens of prompt and response together; null: the model's own",
    )
    enable_sleep_mode: bool = Field(
        False,
        description="colocate: vLLM gives its memory back during the update; weights are sent anew "
        "for every round of sampling",
    )
    model_impl: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="colocate: whose implementation of the model vLLM runs"
    )


class KLSection(Section):
    """The price of moving away from the reference model."""

    coef: NonNegativeFloat = Field(
        0.1, description="beta: reward per nat of KL to the reference; where the control starts"
    )
    target: PositiveFloat | None = Field(
        None, description="nats a response that the adaptive coefficient steers to; null: fixed"
    )
    horizon: Positive = Field(
        10_000, description="samples over which the adaptive coefficient moves (Ziegler 2019)"
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="per-token estimator of the KL that is optimised"
    )
    placement: Literal["reward", "score", "loss", "ratio_loss"] = Field(
        "reward",
        description="k1 reaches the target in `reward`, where each token pays for itself, and in "
        "`score`, where a response pays at its last token; `loss` (k2) and `ratio_loss` (k1, k3) "
        "drop the effect of a token on later KL and have another optimum",
    )


class TargetSection(Section):
    """How the weights of moments are fitted (docs/target.md); read only where there are moments."""

    samples: Positive = Field(
        1024, description="responses of the reference from which they are fitted before training"
    )
    samples_per_prompt: int = Field(
        32, ge=4, description="of them to one prompt, at least: each prompt is normalised by itself"
    )
    update: Literal["policy", "importance", "none"] = Field(
        "policy",
        description="how they go on: `policy` raises them while the policy's own mean lies below "
        "the wish, once it has come half of the way; `importance` fits them again to the policy's "
        "samples, weighted, which needs many to a prompt",
    )
    rate: Share = Field(
        0.05, description="share of a whole Newton step that an iteration's samples are worth"
    )


class ScoreSection(Section):
    """What becomes of the weighted sum of the rewards."""

    clip: tuple[FiniteFloat, FiniteFloat] | None = Field(
        None, description="bounds of the weighted sum; part of the target"
    )

    @field_validator("clip")
    @classmethod
    def _is_ordered(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        if clip is not None and clip[0] >= clip[1]:
            raise ValueError(f"the lower bound {clip[0]:g} is not below the upper, {clip[1]:g}")
        return clip

    normalize: bool = Field(
        False, description="divide score and KL alike by the score's running standard deviation"
    )
    missing_eos_penalty: NonNegativeFloat = Field(
        0.0, description="subtracted from the score of a response without EOS; part of the target"
    )
    credit: Literal["spans", "last"] = Field(
        "spans",
        description="where a response is paid: at the tokens that earned it, where its rewards say "
        "so by spans, or `last`, all at its last token; the target is the same",
    )


class OptimSection(Section):
    """AdamW, its schedule, and how much goes through the model at once."""

    betas: tuple[Decay, Decay] = Field((0.9, 0.95), description="AdamW's moment decays")
    eps: PositiveFloat = Field(1e-8, description="AdamW's denominator term")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW's decoupled weight decay")
    max_grad_norm: PositiveFloat | None = Field(1.0, description="clip the gradient; null: never")
    max_skipped: Positive = Field(
        5,
        description="steps in a row whose gradient is not finite, and which are skipped, before "
        "the run ends",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate from its peak to `final_lr_fraction` of it"
    )
    final_lr_fraction: float = Field(0.0, ge=0, le=1, description="where linear and cosine end")
    warmup_iterations: NonNegative = Field(0, description="iterations of linear warm-up")
    micro_batch_tokens: Literal["auto"] | Positive = Field(
        "auto",
        description="about how many tokens (rows x the longest row) go through the model at once; "
        "auto: what keeps their activations to a quarter of a GPU's memory, on a CPU to 512 MB",
    )


class TrainSection(Section):
    """How long to train, on how many samples."""

    iterations: Positive = Field(40, description="rounds of collect, score, update")
    samples: Many = Field(64, description="responses an iteration, over all processes")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of every random generator")
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="torch threads a process; auto: allowed cores over local processes"
    )


class EvalSection(Section):
    """Measuring the policy on held-out prompts while it trains."""

    every: NonNegative = Field(
        10, description="iterations between evaluations on held-out prompts; 0: never"
    )
    samples: Many = Field(64, description="responses an evaluation, over all processes")
    target_samples: Positive = Field(
        1024,
        description="responses of policy and reference each that `rlalign eval` draws",
    )
    samples_per_prompt: int = Field(
        64, ge=4, description="of them to one prompt, at least: each prompt is normalised by itself"
    )
    dtype: Literal["float32", "train"] = Field(
        "float32", description="precision of the yardstick; `train` saves memory and is coarser"
    )


class CheckpointSection(Section):
    """When to save what a run needs to go on."""

    every: NonNegative = Field(10, description="iterations between checkpoints; 0: only the last")
    keep: Positive = Field(2, description="how many of the newest to keep, beside the best")
    best: str | None = Field(
        "eval/objective",
        description="metric whose highest value marks the best checkpoint; null keeps none",
    )


class TRLSection(Section):
    """What only TRL's trainers ask for (`launch/grpo.py`, `launch/rloo.py`); PPO reads none of it.

    docs/trl.md says which of the other settings they share.
    """

    num_generations: int | None = Field(
        None,
        ge=2,
        description="responses to a prompt, a group whose mean is the baseline; null: "
        "sampling.samples_per_prompt where that is 2 or more, else the largest number up to 8 "
        "that divides train.samples",
    )
    scale_rewards: Literal["none", "group", "batch"] = Field(
        "none",
        description="GRPO's division of the advantages by their standard deviation; it does not "
        "divide the KL, so anything but none moves the optimum away from the target",
    )


METHOD_SECTIONS = ("ppo", "dpg", "reinforce")  # each method's own, beside the shared ones


class RunConfig(Section):
    """What every run states; an algorithm's own run model adds its section."""

    model: ModelSection = ModelSection()
    prompts: PromptsSection = PromptsSection()
    sampling: SamplingSection = SamplingSection()
    vllm: VLLMSection = VLLMSection()
    rewards: dict[str, dict[str, Any]] = Field(
        {}, description="name -> {kind, weight, scale, clip, on_error, parameters of the kind}"
    )
    score: ScoreSection = ScoreSection()
    kl: KLSection = KLSection()
    target: TargetSection = TargetSection()
    optim: OptimSection = OptimSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    audit: AuditSection = AuditSection()
    checkpoint: CheckpointSection = CheckpointSection()
    run: RunSection = RunSection()
    trl: TRLSection = TRLSection()
    trackers: list[Literal["wandb", "tensorboard", "trackio"]] = Field(
        ["wandb"], description="beside metrics.jsonl and samples.jsonl, which are always written"
    )
    reward_files: list[str] = Field(
        [], description="your own Python files with @reward functions; they are run, so trust them"
    )

    @property
    def minibatches(self) -> int:
        """Optimiser steps in a pass over an iteration's samples; algorithms say their own."""
        return 1

    @property
    def steps_per_iteration(self) -> int:
        """Optimiser steps in an iteration, unless it is cut short; algorithms say their own."""
        return self.minibatches
