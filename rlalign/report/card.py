"""The model card of a saved policy: what it was steered to, how far it got, how to load it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlalign.evaluate import Evaluation
from rlalign.files import write_atomically
from rlalign.metrics import bootstrap, difference
from rlalign.redact import redact_mapping
from rlalign.report.visible import escape_markdown
from rlalign.sections import RunConfig

# The embedded models' origin on the hub, and their licence.
ORIGINS = {"smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
ENTRY_KEYS = ("kind", "weight", "moment", "hard", "on_error", "scale", "clip", "isolate")
SAMPLES = 4
LONGEST = 400


def write_model_card(
    folder: Path,
    config: RunConfig,
    before: Evaluation | None,
    after: Evaluation | None,
    iterations: int,
    kl_coef: float | None = None,
    functions: Sequence[str] = (),
) -> Path:
    """Write `folder/README.md`, a Hugging Face model card in Markdown.

    `kl_coef` is where the coefficient ended, if it was adapted; `functions` names the rewards that
    were given as Python functions. Text that people or models wrote is escaped, so that none of it
    acts on the page.
    """
    parts = [
        _front_matter(config),
        _introduction(config, iterations),
        _rewards(config, functions),
        _target(config, kl_coef),
    ]
    if before is not None and after is not None:
        parts += [_results(before, after), _samples(before.rows, after.rows)]
    parts.append(_how_to_load(config))
    path = folder / "README.md"
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path


def _front_matter(config: RunConfig) -> str:
    base, licence = _origin(config)
    fields: dict[str, Any] = {"library_name": "peft" if config.model.lora else "transformers"}
    if licence:
        fields["license"] = licence
    if base:
        fields["base_model"] = base
        fields["base_model_relation"] = "adapter" if config.model.lora else "finetune"
    fields["pipeline_tag"] = "text-generation"
    fields["tags"] = ["rlalign", "ppo", "reinforcement-learning"]
    if config.model.lora:
        fields["tags"].append("lora")
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _origin(config: RunConfig) -> tuple[str | None, str | None]:
    """The base model's hub id and licence, as far as they are known; never a local path."""
    name = config.model.name
    if name in ORIGINS:
        return ORIGINS[name]
    is_hub_id = HUB_ID.fullmatch(name) and not Path(name).exists()
    return (name if is_hub_id else None), None


def _introduction(config: RunConfig, iterations: int) -> str:
    base = _origin(config)[0] or Path(config.model.name).name
    samples = iterations * config.train.samples
    what = "LoRA adapter" if config.model.lora else "full fine-tuning"
    return (
        f"# {escape_markdown(base)}, steered by rewards\n\n"
        f"A {what} of {escape_markdown(base)}, trained with PPO by `rlalign`: {iterations} "
        f"iterations of {config.train.samples} responses, {samples:,} in all, to prompts of "
        f"{escape_markdown(Path(config.prompts.path).name)}."
    )


def _rewards(config: RunConfig, functions: Sequence[str]) -> str:
    rows = []
    for name, entry in config.rewards.items():
        weight = entry.get("weight", 1.0)
        parameters = {key: value for key, value in entry.items() if key not in ENTRY_KEYS}
        text = ", ".join(
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in redact_mapping(parameters).items()
        )
        cells = (name, str(entry.get("kind", "")), _cut(text), f"{weight:g}")
        rows.append([escape_markdown(cell) for cell in cells])
    rows += [[escape_markdown(name), "a Python function", "", "1"] for name in functions]
    table = _table(["reward", "kind", "parameters", "weight"], rows)
    return f"## Rewards\n\n{table}\n\nA weight of 0 makes a reward a mere measurement."


def _target(config: RunConfig, kl_coef: float | None) -> str:
    score, kl, sampling = config.score, config.kl, config.sampling
    beta = f"{config.kl.coef if kl_coef is None else kl_coef:.4g}"
    terms = ["the weighted sum of the rewards above"]
    if score.clip is not None:
        terms.append(f"clipped to {score.clip[0]:g} … {score.clip[1]:g}")
    if score.missing_eos_penalty:
        terms.append(f"less {score.missing_eos_penalty:g} where a response does not end")
    notes = [
        f"The reference is the base model as it samples at temperature {sampling.temperature:g} "
        f"and at most {sampling.max_new_tokens} new tokens."
    ]
    if kl.target is not None:
        notes.append(
            f"β was adapted towards {kl.target:g} nats of KL; the formula holds for where it ended."
            if kl_coef is not None
            else f"β started there and was adapted towards {kl.target:g} nats of KL."
        )
    if kl.placement != "reward":
        notes.append("The KL was a term of the loss, which has a somewhat different optimum.")
    if not config.kl.coef and kl_coef is None:
        return f"## Target\n\nThe largest score, {', '.join(terms)}, with no price on the KL."
    return (
        "## Target\n\n"
        "Training moves the model towards one distribution of responses y to a prompt x:\n\n"
        f"    P(y | x)  ∝  reference(y | x) · exp(score(x, y) / β)        β = {beta}\n\n"
        f"In words: a response that the reference writes with probability p becomes more likely by "
        "the factor e for every β of score, before all are normalised. "
        f"The score is {', '.join(terms)}. {' '.join(notes)}"
    )


def _results(before: Evaluation, after: Evaluation) -> str:
    rows = [
        _result("score", [r["score"] for r in before.rows], [r["score"] for r in after.rows]),
        _result("KL, nats", [r["kl"] for r in before.rows], [r["kl"] for r in after.rows]),
    ]
    names = list(after.rows[0]["rewards"]) if after.rows else []
    for name in names:
        a = [row["rewards"].get(name) for row in before.rows]
        b = [row["rewards"].get(name) for row in after.rows]
        rows.append(_result(name, a, b))
    count = len(after.rows)
    return (
        f"## Before and after\n\n{_table(['', 'before', 'after', 'change'], rows)}\n\n"
        f"Means over {count} responses to held-out prompts, in brackets the 95% bootstrap "
        "interval; the change is over the same prompts. KL is the sum over a response's tokens of "
        "log policy - log reference."
    )


def _result(name: str, before: Sequence[float | None], after: Sequence[float | None]) -> list[str]:
    paired = len(before) == len(after)
    if paired:
        both = [
            (a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None
        ]
        first, second = [a for a, _ in both], [b for _, b in both]
    else:
        first = [a for a in before if a is not None]
        second = [b for b in after if b is not None]
    if not first or not second:
        return [escape_markdown(name), "none", "none", ""]
    change, low, high = difference(first, second, paired=paired)
    return [
        escape_markdown(name),
        *(f"{math.fsum(v) / len(v):.3f} {_interval(*bootstrap(v))}" for v in (first, second)),
        f"{change:+.3f} {_interval(low, high)}",
    ]


def _interval(low: float, high: float) -> str:
    return f"({low:.3f} … {high:.3f})"


def _samples(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    started = {str(row["prompt"]): row for row in before}
    rows: list[list[str]] = []
    shown: set[str] = set()
    for row in after:
        prompt = str(row["prompt"])
        if prompt in started and prompt not in shown and len(shown) < SAMPLES:
            shown.add(prompt)
            texts = (prompt, str(started[prompt]["response"]), str(row["response"]))
            rows.append([escape_markdown(_cut(text)) for text in texts])
    table = _table(["prompt", "before", "after"], rows)
    return f"## Samples\n\nThe first prompts of the evaluation, not chosen.\n\n{table}"


def _how_to_load(config: RunConfig) -> str:
    if config.model.lora:
        load = "from peft import AutoPeftModelForCausalLM as Model"
        note = (
            "\n\nAn adapter's own generation settings are not read by themselves: "
            "`model.generation_config = GenerationConfig.from_pretrained(folder)`."
            "\n\nThe base model is fetched from where `adapter_config.json` says; change "
            "`base_model_name_or_path` there if it lies elsewhere."
        )
    else:
        load, note = "from transformers import AutoModelForCausalLM as Model", ""
    return (
        "## How to load it\n\n```python\n"
        f"{load}\nfrom transformers import AutoTokenizer\n\n"
        'folder = "."  # this folder, or its hub id\n'
        "model = Model.from_pretrained(folder)\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        'inputs = tokenizer("On Monday the", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs)[0]))\n```\n\n"
        "`generation_config.json` samples as in training: the same temperature and length, no "
        "top-k or top-p. `value_head.safetensors` is the critic, which generating does not need."
        f"{note}"
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
