"""The model card of a saved policy: what it was steered to, how far it got, how to load it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

import yaml
from torch import nn

from rewards.spec import ENTRY_KEYS
from rlalign.evaluate import Evaluation
from rlalign.files import write_atomically
from rlalign.redact import redact_mapping, redact_text
from rlalign.report.changes import Change, Mean, changes
from rlalign.report.visible import escape_markdown
from rlalign.settings.sections import RunConfig

# The embedded models' origin on the hub, and their licence.
ORIGINS = {"smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
GIVEN_MODEL, GIVEN_PROMPTS = "a model given from Python", "prompts given from Python"
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
    base: str | None = None,
    prompts: str | None = None,
    caveats: Sequence[str] = (),
    audit: Sequence[str] = (),
    method: str = "PPO",
    target: str | None = None,
) -> Path:
    """Write `folder/README.md`, a Hugging Face model card in Markdown.

    `kl_coef` is where the coefficient ended, if it was adapted; `functions` names the rewards that
    were given as Python functions. `base` and `prompts` say what to call the base model and the
    prompts where they are not those that the configuration names. `caveats` are the objective's
    warnings, `audit` those of the audit, `method` the algorithm's name, `target` the fitted
    target's printed form. Text that people or models wrote is escaped, so that none of it acts on
    the page.
    """
    # A given model may bring its own adapter, so what was saved decides, not the setting alone.
    is_adapter = config.model.lora is not None or (folder / "adapter_config.json").is_file()
    name = config.model.name if base is None else base
    parts = [
        _front_matter(config, name, is_adapter, method),
        _introduction(config, iterations, name, is_adapter, prompts, method),
        _rewards(config, functions),
        _target(config, config.kl.coef if kl_coef is None else kl_coef, caveats, target),
    ]
    if before is not None and after is not None:
        parts += [_results(before, after), _samples(before.rows, after.rows)]
    if audit:
        lines = "\n".join(f"- {_safe(line)}" for line in audit)
        parts.append(
            "## Warnings\n\nSigns that a reward was hacked, which the training warned of:\n\n"
            + lines
        )
    parts.append(_how_to_load(config, name, is_adapter))
    path = folder / "README.md"
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path


def name_of_given(lm: nn.Module) -> str:
    """What to call a model that came from Python: its hub id, where it was loaded from the hub."""
    name = str(vars(lm.config).get("_name_or_path") or "")
    return name if _origin(name)[0] else GIVEN_MODEL


def _front_matter(config: RunConfig, name: str, is_adapter: bool, method: str) -> str:
    base, licence = _origin(name)
    fields: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers"}
    if licence:
        fields["license"] = licence
    if base:
        fields["base_model"] = base
        fields["base_model_relation"] = "adapter" if is_adapter else "finetune"
    fields["pipeline_tag"] = "text-generation"
    fields["tags"] = ["rlalign", method.lower(), "reinforcement-learning"]
    if config.model.lora:
        fields["tags"].append("lora")
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _origin(name: str) -> tuple[str | None, str | None]:
    """The base model's hub id and licence, as far as they are known; never a local path."""
    if name in ORIGINS:
        return ORIGINS[name]
    is_hub_id = HUB_ID.fullmatch(name) and not Path(name).exists()
    return (name if is_hub_id else None), None


def _introduction(
    config: RunConfig,
    iterations: int,
    name: str,
    is_adapter: bool,
    prompts: str | None,
    method: str,
) -> str:
    base = _origin(name)[0] or Path(name).name
    samples = iterations * config.train.samples
    what = "An adapter" if is_adapter else "A full fine-tuning"
    if config.model.lora:
        what = "A LoRA adapter"
    prompts = prompts or f"prompts of {Path(config.prompts.path).name}"
    title = base[0].upper() + base[1:] if base == GIVEN_MODEL else base
    return (
        f"# {_safe(title)}, steered by rewards\n\n"
        f"{what} of {_safe(base)}, trained with {method} by `rlalign`: {iterations} "
        f"iterations of {config.train.samples} responses, {samples:,} in all, to "
        f"{_safe(prompts)}."
    )


def _rewards(config: RunConfig, functions: Sequence[str]) -> str:
    rows = []
    for name, entry in config.rewards.items():
        own = {key: value for key, value in entry.items() if key not in ENTRY_KEYS}
        options = {key: entry.get(key) for key in ("threshold", "scale", "clip")}
        parameters = own | {key: value for key, value in options.items() if value is not None}
        text = ", ".join(
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in redact_mapping(parameters).items()
        )
        cells = (name, str(entry.get("kind", "")), _cut(text), weight_shown(entry))
        rows.append([escape_markdown(cell) for cell in cells])
    rows += [[escape_markdown(name), "a Python function", "", "1"] for name in functions]
    table = _table(["reward", "kind", "parameters", "weight"], rows)
    return f"## Rewards\n\n{table}\n\nA weight of 0 makes a reward a mere measurement."


def weight_shown(entry: Mapping[str, Any]) -> str:
    """An entry's weight, or what stands in its place, in a table's cell."""
    moment, weight = entry.get("moment"), entry.get("weight", 1.0)
    if moment is not None:
        return f"mean {moment}"
    if entry.get("hard"):
        return "always"
    if isinstance(weight, dict):
        return f"{weight['from']:g} → {weight['to']:g} over {weight['iterations']} iterations"
    return f"{weight:g}"


def _target(config: RunConfig, kl_coef: float, caveats: Sequence[str], fitted: str | None) -> str:
    score, sampling = config.score, config.sampling
    terms = ["the weighted sum of the rewards above"]
    if score.clip is not None:
        terms.append(f"clipped to {score.clip[0]:g} … {score.clip[1]:g}")
    if score.missing_eos_penalty:
        terms.append(f"less {score.missing_eos_penalty:g} where a response does not end")
    reference = (
        f"The reference is the base model as it samples at temperature {sampling.temperature:g} "
        f"and at most {sampling.max_new_tokens} new tokens."
    )
    if not kl_coef:
        return f"## Target\n\nThe largest score, {', '.join(terms)}, with no price on the KL."
    has_constraints = any(
        e.get("hard") or e.get("moment") is not None for e in config.rewards.values()
    )
    form = ""
    if fitted is not None and has_constraints:
        form = "\n\nWith the weights of means and of what always holds:\n\n" + indent(
            fitted, "    "
        )
    warned = "\n\nWhat moved the optimum away from it:\n\n" if caveats else ""
    return (
        "## Target\n\n"
        "Training moves the model towards one distribution of responses y to a prompt x:\n\n"
        f"    P(y | x)  ∝  reference(y | x) · exp(score(x, y) / β)        β = {kl_coef:.4g}\n\n"
        f"In words: a response that the reference writes with probability p becomes more likely by "
        "the factor e for every β of score, before all are normalised. "
        f"The score is {', '.join(terms)}. {reference}"
        + form
        + warned
        + "\n".join(f"- {_safe(line)}" for line in caveats)
    )


def _results(before: Evaluation, after: Evaluation) -> str:
    rows = [_result(each) for each in changes(before.rows, after.rows)]
    where = "held-out prompts" if after.is_held_out else "training prompts, as none were held out"
    return (
        f"## Before and after\n\n{_table(['', 'before', 'after', 'change'], rows)}\n\n"
        f"Means over {len(after.rows)} responses to {where}; in brackets the 95% bootstrap "
        "interval, which draws whole prompts; the change is over the same prompts. KL is the sum "
        "over a response's tokens of log policy - log reference."
    )


def _result(change: Change) -> list[str]:
    name, moved = escape_markdown(change.name), change.difference
    if change.before is None or change.after is None or moved is None:
        return [name, "none", "none", ""]
    means = [f"{m.value:.3f} {_interval(m)}" for m in (change.before, change.after)]
    return [name, *means, f"{moved.value:+.3f} {_interval(moved)}"]


def _interval(mean: Mean) -> str:
    return f"({mean.low:.3f} … {mean.high:.3f})"


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


def _how_to_load(config: RunConfig, name: str, is_adapter: bool) -> str:
    is_nameless = is_adapter and name == GIVEN_MODEL
    loader = "PeftModel" if is_nameless else "AutoPeftModelForCausalLM"
    source = "base, folder" if is_nameless else "folder"
    if is_adapter:
        head = [f"from peft import {loader}"]
        head.append("from transformers import AutoTokenizer, GenerationConfig")
    else:
        loader = "AutoModelForCausalLM"
        head = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    lines = [*head, "", 'folder = "."  # this folder, or its hub id']
    if is_nameless:
        lines.append("base = ...  # the model that was trained, as it was before")
    lines.append(f"model = {loader}.from_pretrained({source})")
    if is_adapter:  # peft does not read an adapter's own
        lines.append("model.generation_config = GenerationConfig.from_pretrained(folder)")
    stop = config.sampling.stop
    more = f", stop_strings={stop!r}, tokenizer=tokenizer" if stop else ""
    lines += [
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'inputs = tokenizer("On Monday the", return_tensors="pt")',
        f"print(tokenizer.decode(model.generate(**inputs{more})[0]))",
    ]
    notes = [
        "`generation_config.json` samples as in training: the same temperature and length, no "
        "top-k or top-p. `value_head.safetensors` is the critic, which generating does not need."
    ]
    if stop:
        notes.append(
            "A response of the training ended at a stop string; `generate` takes them, with the "
            "tokenizer, as above."
        )
    if is_adapter and not is_nameless:
        notes.append(
            "The base model is fetched from where `adapter_config.json` says; change "
            "`base_model_name_or_path` there if it lies elsewhere."
        )
    code = "\n".join(lines)
    return "\n\n".join(["## How to load it", f"```python\n{code}\n```", *notes])


def _safe(text: str) -> str:
    """Text of the configuration: neither markup nor a secret of the environment."""
    return escape_markdown(redact_text(text))


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
