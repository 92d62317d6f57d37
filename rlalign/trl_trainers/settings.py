"""What becomes of each setting under TRL's trainers: carried over, ours, without counterpart."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rlalign.config import ConfigError
from rlalign.models import compute_dtype
from rlalign.settings.audit_section import AuditSection
from rlalign.settings.method_sections import PPORun
from rlalign.settings.schema import settings
from rlalign.settings.sections import TargetSection, VLLMSection
from rlalign.sizes import MOST

Method = Literal["grpo", "rloo"]
GROUP = 8  # responses to a prompt where no setting says it


@dataclass(frozen=True)
class Rule:
    """Where a setting goes; an empty argument: nowhere, and a value off its default is warned of.

    `refused` says which values stop the run.
    """

    setting: str
    grpo: str  # arguments of GRPOConfig or the trainer, `ours` where rlalign does it itself
    rloo: str
    note: str = ""
    refused: bool = False


def same(setting: str, argument: str, note: str = "") -> Rule:
    return Rule(setting, argument, argument, note)


OURS, NOWHERE = "ours", ""
NO_CRITIC = "there is no value head"
RULES = (
    *(
        same(f"model.{name}", OURS)
        for name in ("name", "revision", "dtype", "quantization", "attention", "trust_remote_code")
    ),
    same("model.lora", "peft_config"),
    *(same(f"model.lora.{name}", "peft_config") for name in ("r", "alpha", "target_modules")),
    same("model.gradient_checkpointing", "gradient_checkpointing"),
    *(
        same(f"prompts.{name}", "train_dataset", "the prompts that PPO meets, in the same order")
        for name in ("path", "column", "split", "eval_path", "eval_fraction", "max_length", "chat")
    ),
    same("sampling.max_new_tokens", "max_completion_length"),
    same("sampling.temperature", "temperature", "with top_k=0, top_p=1"),
    same("sampling.samples_per_prompt", "num_generations", "unless trl.num_generations is set"),
    Rule("sampling.stop", NOWHERE, NOWHERE, "a response ends at EOS alone", refused=True),
    same("sampling.batch_size", NOWHERE, "all responses of an iteration are decoded at once"),
    same("sampling.engine", NOWHERE, "TRL's trainers decode in their process here"),
    *(same(f"vllm.{name}", NOWHERE, "as sampling.engine") for name in VLLMSection.model_fields),
    same("rewards", "reward_funcs, reward_weights", "each with its shaping and its policy"),
    same("score.clip", "reward_funcs", "one more function takes off what lies outside"),
    same("score.missing_eos_penalty", "reward_funcs", "in the same function"),
    same("score.normalize", NOWHERE, "the target is the same without it"),
    same("score.credit", NOWHERE, "a response has one number"),
    same("kl.coef", "beta", "RLOO: as in PPO; GRPO: see below"),
    Rule("kl.target", NOWHERE, NOWHERE, "beta is fixed", refused=True),
    same("kl.horizon", NOWHERE, "beta is fixed"),
    same("kl.estimator", NOWHERE, "RLOO charges k1, GRPO k3"),
    *(
        same(f"target.{name}", NOWHERE, "moments are refused")
        for name in TargetSection.model_fields
    ),
    same("kl.placement", NOWHERE, "RLOO: `score`; GRPO: in the loss"),
    same("optim.betas", "adam_beta1, adam_beta2"),
    same("optim.eps", "adam_epsilon"),
    same("optim.weight_decay", "weight_decay", "TRL leaves biases and norms out"),
    same("optim.max_grad_norm", "max_grad_norm", "null: 0"),
    same("optim.max_skipped", NOWHERE, "TRL takes steps whose gradient is not finite"),
    *(
        same(f"optim.{name}", "lr_scheduler", "rlalign's own, stepping by iterations as in PPO")
        for name in ("schedule", "final_lr_fraction", "warmup_iterations")
    ),
    same(
        "optim.micro_batch_tokens",
        "per_device_train_batch_size, gradient_accumulation_steps",
        "rows of the longest prompt and response",
    ),
    same("train.iterations", "max_steps", "x ppo.epochs x ppo.minibatches"),
    same("train.samples", "per_device_train_batch_size, gradient_accumulation_steps"),
    same("train.seed", "seed"),
    same("train.threads", OURS),
    same("eval.every", OURS, "before and after the training, not in between"),
    same("eval.samples", OURS),
    same("eval.target_samples", OURS, "in `rlalign eval`"),
    same("eval.samples_per_prompt", OURS, "in `rlalign eval`"),
    same("eval.dtype", OURS),
    *(
        same(f"checkpoint.{name}", NOWHERE, "the finished model is saved, no checkpoint on the way")
        for name in ("every", "keep", "best")
    ),
    same("run.name", OURS),
    same("run.dir", OURS),
    Rule("run.resume", NOWHERE, NOWHERE, "there are no checkpoints to go on from", refused=True),
    same("run.allow_elastic", NOWHERE, "as run.resume"),
    same("run.timeout", OURS, "a sign of life is a reward's call, or a step"),
    same("run.grace", OURS, "to end in; nothing is saved"),
    same("trackers", OURS, "metrics.jsonl in PPO's keys, TRL's own under trl/"),
    same("reward_files", OURS),
    same("ppo.epochs", "num_iterations"),
    same("ppo.minibatches", "steps_per_generation"),
    *(
        same(f"audit.{name}", NOWHERE, "nothing looks at TRL's samples")
        for name in AuditSection.model_fields
        if name != "stop"
    ),
    Rule("audit.stop", NOWHERE, NOWHERE, "nothing looks at TRL's samples", refused=True),
    same("ppo.lr", "learning_rate"),
    same("ppo.clip", "epsilon", "RLOO clips the ratio of a whole response"),
    Rule("ppo.dual_clip", "delta", NOWHERE, "RLOO has none"),
    Rule("ppo.entropy_coef", "entropy_coef", NOWHERE, "RLOO has no entropy bonus"),
    *(
        same(f"ppo.{name}", NOWHERE, NO_CRITIC)
        for name in ("value_lr", "value_clip", "vf_coef", "critic_warmup", "gae_lambda")
    ),
    same("ppo.gamma", NOWHERE, "every token of a response has its whole advantage"),
    same("ppo.advantage_norm", NOWHERE, "see trl.scale_rewards"),
    same("ppo.divergence", NOWHERE, "score and KL are what is climbed"),
    same("ppo.alpha", NOWHERE, "as ppo.divergence"),
    same("ppo.z_memory", NOWHERE, "as ppo.divergence"),
    same("ppo.target_kl", NOWHERE, "no update is cut short"),
    same("ppo.sampler_correction", NOWHERE, "the sampler is the trainer"),
    same("trl.num_generations", "num_generations"),
    Rule("trl.scale_rewards", "scale_rewards", NOWHERE, "RLOO takes differences within a group"),
)
ALWAYS = {
    "grpo": "GRPO adds the k3 estimate of the KL to its loss, where a token does not pay for the "
    "KL of those behind it: its optimum is another one than the target of kl.coef",
}


def refuse(config: PPORun) -> None:
    """Raise ConfigError for settings that would be another run under TRL, and for uneven groups."""
    changed = dict(off_default(config))
    for rule in RULES:
        if rule.refused and rule.setting in changed:
            raise ConfigError(
                f"{rule.setting}={changed[rule.setting]!r} cannot be honoured by TRL's trainers: "
                f"{rule.note}; leave it out"
            )
    for name, entry in config.rewards.items():
        wish = "hard" if entry.get("hard") else "moment"
        if entry.get(wish) not in (None, False):
            raise ConfigError(
                f"rewards.{name}.{wish} is fitted by this project's own loop, and TRL's trainers "
                "know weights alone; use rlalign ppo, dpg or reinforce, or a weight"
            )
    group_size(config)


def warnings(config: PPORun, method: Method) -> list[str]:
    """A line for each setting off its default that has no counterpart, and for the method."""
    changed = dict(off_default(config))
    lines = [
        f"{rule.setting}={changed[rule.setting]!r} has no counterpart in {method.upper()}: "
        f"{rule.note}"
        for rule in RULES
        if rule.setting in changed
        and getattr(rule, method) == NOWHERE
        and not (rule.refused or rule.setting.startswith("checkpoint."))
    ]
    if 0 < config.eval.every < config.train.iterations:
        lines.append(f"eval.every={config.eval.every}: evaluated before and after the training")
    if config.checkpoint.every:
        lines.append("checkpoint.*: no checkpoint is written on the way, only the finished model")
    if method in ALWAYS and config.kl.coef > 0:
        lines.append(ALWAYS[method])
    if method == "grpo" and config.trl.scale_rewards != "none":
        lines.append(
            f"trl.scale_rewards={config.trl.scale_rewards}: divides the advantages and not the "
            "KL, so that kl.coef is no longer the beta of the target"
        )
    return lines


def off_default(config: PPORun) -> Iterator[tuple[str, Any]]:
    """Settings whose value is not the schema's default, as dotted paths."""
    given = config.model_dump(mode="json")
    for setting in settings(PPORun.model_json_schema()):
        value: Any = given
        for part in setting.path.split("."):
            if value is None:  # a section that is off, as model.lora may be
                break
            value = value[part]
        else:
            if value != setting.default:
                yield setting.path, value


def group_size(config: PPORun) -> int:
    """Responses to a prompt; ConfigError where they do not divide an iteration's samples."""
    samples, wanted = config.train.samples, config.trl.num_generations
    setting = "trl.num_generations"
    if wanted is None and config.sampling.samples_per_prompt > 1:
        wanted, setting = config.sampling.samples_per_prompt, "sampling.samples_per_prompt"
    divisors = [n for n in range(2, samples + 1) if samples % n == 0]
    if wanted is None:
        small = [n for n in divisors if n <= GROUP]
        if small:
            return small[-1]
    elif wanted in divisors:
        return wanted
    known = ", ".join(map(str, divisors)) or "none; take an even number of samples"
    raise ConfigError(
        f"{setting}={wanted} does not divide train.samples={samples} into groups of 2 or more; "
        f"valid: {known}"
    )


def trainer_arguments(
    config: PPORun, method: Method, world: int, longest_prompt: int, device: torch.device
) -> dict[str, Any]:
    """Arguments of TRL's GRPOConfig or RLOOConfig, but for the output folder.

    `longest_prompt`: tokens. An iteration is one generation batch of `train.samples`.
    """
    ppo, optim = config.ppo, config.optim
    share = config.train.samples // world // ppo.minibatches  # rows a process, an optimiser step
    tokens = MOST if optim.micro_batch_tokens == "auto" else optim.micro_batch_tokens
    fitting = max(tokens // (longest_prompt + config.sampling.max_new_tokens), 1)
    rows = max(n for n in range(1, share + 1) if share % n == 0 and n <= fitting)
    arguments = {
        "max_steps": config.train.iterations * config.steps_per_iteration,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": share // rows,
        "steps_per_generation": ppo.minibatches * (share // rows),
        "num_iterations": ppo.epochs,
        "num_generations": group_size(config),
        "max_completion_length": config.sampling.max_new_tokens,
        "temperature": config.sampling.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": config.kl.coef,
        "epsilon": ppo.clip,
        "learning_rate": ppo.lr,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_epsilon": optim.eps,
        "weight_decay": optim.weight_decay,
        "max_grad_norm": 0.0 if optim.max_grad_norm is None else optim.max_grad_norm,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "bf16": compute_dtype(config.model, device) == torch.bfloat16,
        "use_cpu": device.type == "cpu",
        "seed": config.train.seed,
        "shuffle_dataset": False,  # the prompts come in PPO's own order
        "logging_steps": config.steps_per_iteration,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "disable_dropout": True,
    }
    if method == "grpo":
        arguments |= {
            "delta": ppo.dual_clip,
            "entropy_coef": ppo.entropy_coef,
            "scale_rewards": config.trl.scale_rewards,
        }
    return arguments


def prompts_needed(config: PPORun) -> int:
    """How many prompts a run meets, each counted as often as it comes."""
    return config.train.iterations * (config.train.samples // group_size(config))


def mapping_table() -> str:
    """The table in docs/trl.md, in Markdown."""
    lines = ["| setting | GRPO | RLOO | |", "|---|---|---|---|"]
    for rule in RULES:
        cells = [_cell(rule, rule.grpo), _cell(rule, rule.rloo)]
        lines.append(f"| `{rule.setting}` | {cells[0]} | {cells[1]} | {rule.note} |")
    return "\n".join(lines) + "\n"


def _cell(rule: Rule, argument: str) -> str:
    if rule.refused:
        return "refused"
    if argument == NOWHERE:
        return "none, warned of"
    return "as in PPO" if argument == OURS else f"`{argument}`"


if __name__ == "__main__":
    print(mapping_table(), end="")
