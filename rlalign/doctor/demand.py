"""What a run asks of the machine before anything is loaded: memory, disk, files at hand."""

import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rewards import embedded, registry
from rewards.classifiers import first_line
from rlalign.config import ConfigError
from rlalign.doctor.checks import GIB, Finding
from rlalign.doctor.estimate import FLOAT32, Estimate, Part, Size, Work, estimate, total
from rlalign.doctor.machine import available_memory
from rlalign.doctor.packages import missing_extras
from rlalign.doctor.places import disk_free
from rlalign.models import check_quantization, check_tokenizer, compute_dtype, locate
from rlalign.prompts import load_prompts, read_rows
from rlalign.session import longest_prompt
from rlalign.settings.method_sections import PPORun
from rlalign.settings.sections import ModelSection, PromptsSection
from rlalign.sizes import token_budget

UNKNOWN_PROMPT = 128  # tokens, where the prompts are not at hand
CHARACTERS = 4  # of English a token, where no tokenizer is at hand
ROOMY = 0.8  # of the free memory: beyond that, other programs decide


@dataclass(frozen=True)
class Demand:
    """Bytes that the run comes to hold, and what was found on the way."""

    device: torch.device
    work: Work | None  # None where the model's config.json is not at hand
    memory: Estimate | None  # of the device
    host: Sequence[Part]  # of a process beside a GPU; empty where the device is the CPU
    facts: dict[str, str]
    findings: list[Finding]


def demand(config: PPORun, processes: int) -> Demand:
    """What each of `processes` needs; raises ConfigError where the run is refused anyhow.

    Called when a run's modules are imported and its rewards built: their memory is measured.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_quantization(config.model, device)
    of_model, findings = read_config(config.model)
    loaded = list(reward_models(config.rewards))
    findings += lacking(config, loaded)
    if of_model is None:
        return Demand(device, None, None, [], {}, findings)
    tokens, said, more = prompt_tokens(config, of_model)
    dtype = compute_dtype(config.model, device)
    size = Size.of(of_model, config.model)
    work = work_of(config, of_model, device, dtype, tokens, processes)
    of_lm = estimate(
        size, work, config.model, dtype, device.type, config.eval.dtype, config.sampling.engine
    )
    base = Part("Python and libraries", resident(), "measured here, with those of the rewards")
    rewards = Part("rewards' models", sum(map(weight_of, loaded)), ", ".join(sorted(loaded)))
    findings += more
    facts = {
        "model": f"{size.weights / 1e6:,.0f} M weights"
        + (f", {size.adapters / 1e6:,.1f} M in adapters" if size.adapters else ""),
        "precision": str(dtype).removeprefix("torch."),
        "prompts": said,
        "a micro-batch": f"{work.budget} tokens at most",
    }
    on_cpu = device.type == "cpu"
    held = [base, rewards] if on_cpu else [rewards, share_of_vllm(config)]
    memory = Estimate([*[p for p in held if p.bytes], *of_lm.held], of_lm.phases)
    loading = Part("weights on their way", total(of_lm.held[:2]), "loaded here first")
    host = [] if on_cpu else [base, loading]
    findings += memory_findings(memory, host, processes, levers(config))
    findings += disk_findings(config, size)
    return Demand(device, work, memory, host, facts, findings)


def share_of_vllm(config: PPORun) -> Part:
    """The memory of a GPU that a vLLM on it takes for itself."""
    is_there = config.sampling.engine == "vllm" and config.vllm.mode == "colocate"
    share = config.vllm.gpu_memory_utilization if is_there else 0.0
    sizes = [torch.cuda.mem_get_info(i)[1] for i in range(torch.cuda.device_count())]
    return Part("vLLM", round(share * min(sizes)), f"vllm.gpu_memory_utilization={share:g}")


def work_of(
    config: PPORun,
    of_model: Any,
    device: torch.device,
    dtype: torch.dtype,
    prompt: int,
    processes: int,
) -> Work:
    share = config.train.samples // processes
    at_once, evaluated = config.sampling.batch_size, -(-config.eval.samples // processes)
    return Work(
        decoded=min(max(at_once, config.sampling.samples_per_prompt), share) if at_once else share,
        minibatch=max(share // config.minibatches, 1),
        prompt=prompt,
        response=config.sampling.max_new_tokens,
        budget=token_budget(
            config.optim.micro_batch_tokens,
            of_model,
            device,
            dtype.itemsize,
            config.model.gradient_checkpointing,
        ),
        evaluated=min(at_once or evaluated, evaluated) if config.eval.every else 0,
    )


def read_config(model: ModelSection) -> tuple[Any | None, list[Finding]]:
    """The model's config.json where it is on this machine, and what is missing beside it."""
    findings = []
    source = model.name
    if embedded.is_embedded(source):
        if not embedded.is_prepared(source):
            fetch = f"python -m rewards.embedded {source}"
            says = f"model.name={source} is not in the cache yet; a run fetches it"
            return None, [Finding(says, f"to do it now, and see its memory: {fetch}")]
        source = str(embedded.path(source))
    else:
        try:
            source = locate(model)
        except ConfigError as error:
            findings.append(Finding(str(error), code=2))
            source = str(Path(source).expanduser())
            if not (Path(source) / "config.json").is_file():
                return None, findings
    try:
        options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        return AutoConfig.from_pretrained(source, local_files_only=True, **options), findings
    except (OSError, ValueError) as error:
        if Path(source).is_dir():
            raise ConfigError(
                f"model.name={model.name}: its config.json cannot be read: {first_line(error)}"
            ) from error
        says = f"model.name={model.name} is not on this machine; a run asks the hub for it"
        fix = f"to see its memory: hf download {model.name} config.json tokenizer.json"
        return None, [*findings, Finding(says, fix)]


def prompt_tokens(config: PPORun, of_model: Any) -> tuple[int, str, list[Finding]]:
    """The longest prompt's tokens, how that is known, and what is missing."""
    section, most = config.prompts, longest_prompt(config, of_model)
    if is_elsewhere(section):
        return UNKNOWN_PROMPT, f"not on this machine: {UNKNOWN_PROMPT} tokens assumed", []
    try:
        tokenizer = local_tokenizer(config.model)
    except ConfigError as error:
        rows = read_rows(section.path, section.split, "prompts.path")
        longest = max((len(str(row.get(section.column, ""))) for row in rows), default=0)
        tokens = -(-longest // CHARACTERS)
        said = f"at most {tokens} tokens, by {CHARACTERS} characters each: there is no tokenizer"
        return tokens, said, [Finding(str(error), code=2)]
    prompts = load_prompts(section, tokenizer, most)
    lengths = [len(ids) for ids in prompts.ids]
    mean = sum(lengths) / len(lengths)
    return max(lengths), f"{len(lengths)}, of {mean:.0f} tokens, {max(lengths)} at most", []


def is_elsewhere(section: PromptsSection) -> bool:
    """Whether the prompts are a hub dataset: asking for it is left to the run."""
    path = Path(section.path).expanduser()
    looks_local = section.path.startswith((".", "/", "~")) or path.suffix[1:2].isalpha()
    return not (looks_local or path.exists())


def local_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer from this machine's files; ConfigError where there is none."""
    is_embedded = embedded.is_embedded(model.name)
    source = str(embedded.path(model.name) if is_embedded else Path(model.name).expanduser())
    options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    folder = Path(source)
    # transformers makes an empty tokenizer of some families from their config.json alone.
    if folder.is_dir() and not [*folder.glob("tokenizer*"), *folder.glob("vocab*")]:
        raise ConfigError(f"model.name={model.name}: the directory has no tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.name={model.name}: no tokenizer could be loaded: {first_line(error)}"
        ) from error
    return check_tokenizer(tokenizer, model.name)


# -- rewards ---------------------------------------------------------------------------------------


def reward_models(settings: Any) -> Iterator[str]:
    """Embedded models and directories that a configuration's rewards name or default to, once."""
    seen = set()
    for value in _values(settings):
        is_folder = "/" in value and Path(value).expanduser().is_dir()
        if (embedded.is_embedded(value) or is_folder) and value not in seen:
            seen.add(value)
            yield value


def _values(settings: Any) -> Iterator[str]:
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, list | tuple):
        for item in settings:
            yield from _values(item)
    elif isinstance(settings, Mapping):
        kind = settings.get("kind")
        known = registry.get(kind).signature.defaults if isinstance(kind, str) else {}
        if kind == "style.sentiment" and settings.get("backend", "reviews") == "reviews":
            yield "sentiment-reviews"
        yield from _values([value for name, value in known.items() if name not in settings])
        for item in settings.values():
            yield from _values(item)


def weight_of(name: str) -> int:
    """Bytes of a model's parameter files; 0 where they are not on this machine."""
    if embedded.is_embedded(name) and not embedded.is_prepared(name):
        return embedded.PACKAGES[name].megabytes * 2**20
    folder = embedded.path(name) if embedded.is_embedded(name) else Path(name).expanduser()
    files = [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]
    return sum(file.stat().st_size for file in files)


def lacking(config: PPORun, loaded: Sequence[str]) -> list[Finding]:
    """Extras and models that this configuration needs and that are not there."""
    findings, missing = [], missing_extras()
    needed = {
        "classifiers": bool(loaded),
        "trackers": bool({"tensorboard", "trackio"} & set(config.trackers)),
    }
    wanted = [*loaded, config.model.name]
    absent = [n for n in wanted if embedded.is_embedded(n) and not embedded.is_prepared(n)]
    needed["embedded"] = any(embedded.PACKAGES[name].needs for name in absent)
    for extra in missing:
        if needed.get(extra):
            says = f"this configuration needs packages of the extra '{extra}'"
            findings.append(Finding(says, f"pip install 'rlalign[{extra}]'", 2))
    for name in absent:
        if name != config.model.name:
            says = f"the rewards' model {name} is not in the cache yet; a run fetches it"
            findings.append(Finding(says, f"to do it now: python -m rewards.embedded {name}"))
    return findings


# -- what does not fit -----------------------------------------------------------------------------


def levers(config: PPORun) -> str:
    """The settings that this run can still take memory back by, the cheapest first."""
    is_copied = config.eval.every and config.eval.dtype == "float32"
    settings = ["eval.dtype=train"] if is_copied else []
    settings += ["model.lora={r: 16}"] if config.model.lora is None else []
    settings += ["a smaller optim.micro_batch_tokens", "a smaller sampling.batch_size"]
    settings += [] if config.model.gradient_checkpointing else ["model.gradient_checkpointing=true"]
    return f"in this order: {', '.join(settings)}; docs/doctor.md says what each costs"


def memory_findings(
    memory: Estimate, host: Sequence[Part], processes: int, fix: str
) -> list[Finding]:
    """Whether the peak fits the memory that is free; processes of a machine share its RAM."""
    free, where = available_memory().available, "memory"
    findings = []
    if host:
        findings += shortage(processes * total(host), free, where, "while loading", fix)
        free, where = min(map(free_of_gpu, range(torch.cuda.device_count()))), "GPU memory"
        processes = 1  # each has its own
    return findings + shortage(processes * memory.peak, free, where, f"phase: {memory.worst}", fix)


def free_of_gpu(index: int) -> int:
    return int(torch.cuda.mem_get_info(index)[0])


def shortage(needed: int, free: int, where: str, why: str, fix: str) -> list[Finding]:
    says = f"it needs about {needed / GIB:.1f} GiB of {where} ({why}), and {free / GIB:.1f} is free"
    if needed > free:
        return [Finding(says, fix, 4)]
    return [Finding(f"{says}: little is left for others", fix)] if needed > ROOMY * free else []


def disk_findings(config: PPORun, size: Size) -> list[Finding]:
    """Checkpoints: what learns and its two moments, kept ones, the best and one being written."""
    trained = size.adapters or size.weights
    needed = FLOAT32 * trained * (3 * (config.checkpoint.keep + 2) + 1)
    free = disk_free(config.run.dir)
    if needed <= free:
        return []
    says = f"run.dir={config.run.dir}: checkpoints need up to {needed / GIB:.1f} GiB, "
    fix = "lower checkpoint.keep, or name another run.dir"
    return [Finding(f"{says}and {free / GIB:.1f} is free", fix, 4)]


def resident() -> int:
    """Bytes of RAM that this process holds now (its peak where the system does not say)."""
    file = Path("/proc/self/statm")
    if file.is_file():
        return int(file.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
