"""`rlalign export`: the trained model as a plain Hugging Face folder."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rewards.classifiers import first_line
from rlalign.checkpoints.folder import CheckpointError, load_checkpoint
from rlalign.checkpoints.saving import check_tensors, generation_settings
from rlalign.config import ConfigError, from_mapping, read_file
from rlalign.exits import run_safely
from rlalign.files import DiskError, write_atomically
from rlalign.measure import method_of, recorded_method, run_of
from rlalign.methods import METHODS
from rlalign.models import adapted_lm, build_policy, complete_lm, load_lm, load_tokenizer
from rlalign.new_folder import ADVICE, new_folder, whole_folder
from rlalign.report.card import write_model_card
from rlalign.report.exported_card import exported_card
from rlalign.settings.sections import RunConfig
from rlalign.startup import quiet_libraries
from rlalign.terminal import printable
from rlalign.trained import BROKEN, check_base, is_adapter, is_checkpoint
from rlalign.trust import REWARDS, powers
from rlalign.trying.asked import found

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BESIDE = 2**24  # bytes left for tokenizer and card


@dataclass(frozen=True)
class Wish:
    """What is to be exported, and as what."""

    run: str
    as_adapter: bool = False
    dtype: str = "float32"
    trust: bool = False


@dataclass(frozen=True)
class Exported:
    folder: Path
    is_adapter: bool
    dtype: str

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())


def main(wish: Wish, out: str) -> int:
    """Export and say where; the exit code of `rlalign.exits`."""
    quiet_libraries()

    def job() -> None:
        path = new_folder(out)
        made = export(wish, path)
        loader = "AutoPeftModelForCausalLM" if made.is_adapter else "AutoModelForCausalLM"
        what = "adapter" if made.is_adapter else f"whole model, {made.dtype}"
        print(printable(f"exported  {out} ({what}, {made.bytes / 1e6:.1f} MB)"))
        print(printable(f"load it   {loader}.from_pretrained({str(out)!r}); README.md says more"))

    return run_safely(job)


def export(wish: Wish, out: Path) -> Exported:
    """Write weights, tokenizer, generation settings and card; `out` is there whole or not at all.

    ConfigError where the run has no such form, CheckpointError where its weights cannot be read,
    DiskError where they do not fit.
    """
    source = Path(found(wish.run, has_config=False))
    config = settings_of_model(source, wish)
    adapter = is_adapter(source) or (is_checkpoint(source) and config.model.lora is not None)
    if wish.as_adapter and not adapter:
        raise ConfigError(
            f"--adapter: {wish.run} was trained with all its weights (model.lora is null), so "
            "there is no adapter; leave --adapter out"
        )
    if wish.as_adapter and wish.dtype != "float32":
        raise ConfigError(
            f"--dtype={wish.dtype} with --adapter: an adapter is kept in float32; leave one out"
        )
    try:
        tokenizer = tokenizer_of(source, config)
        lm = trained_model(source, config, wish)
    except BROKEN as error:
        if isinstance(error, ConfigError | CheckpointError | DiskError):
            raise
        raise CheckpointError(
            f"{source} holds no weights that fit model.name={config.model.name}: "
            f"{first_line(error)}"
        ) from error
    check_room(lm, out)
    with whole_folder(out) as folder:
        write(lm, tokenizer, config, folder)
        write_card(source, config, folder, wish.as_adapter)
    return Exported(out, wish.as_adapter, wish.dtype)


def settings_of_model(source: Path, wish: Wish) -> RunConfig:
    """The run's settings, its rewards as mere data: no code of theirs is run to export a model."""
    folder = Path(wish.run).expanduser()
    file = run_of(folder) / "config.yaml"
    if not file.is_file():
        raise ConfigError(
            f"{wish.run} has no config.yaml: only a run, or a checkpoint in one, is exported"
        )
    given = read_file(file)
    rest = {key: value for key, value in given.items() if key not in REWARDS}
    if (does := powers(rest)) and not wish.trust:
        raise ConfigError(
            f"{file} would {'; '.join(does)}; if you trust whoever made this run, add --trust"
        )
    config = from_mapping(METHODS[method_of(folder)].run_model, rest, rewards_given=True)
    if not wish.trust:  # said, or transformers would ask at the terminal
        model = config.model.model_copy(update={"trust_remote_code": False})
        config = config.model_copy(update={"model": model})
    return config.model_copy(update={"rewards": given.get("rewards") or {}})


def tokenizer_of(source: Path, config: RunConfig) -> PreTrainedTokenizerBase:
    """The one that was saved with the model, or the base's."""
    if (source / "tokenizer_config.json").is_file():
        own: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=config.model.trust_remote_code
        )
        return own
    return load_tokenizer(config.model)


def trained_model(source: Path, config: RunConfig, wish: Wish) -> Any:
    """The model under its adapter, or with it merged, in the wished precision."""
    model = config.model.model_copy(update={"dtype": "float32", "quantization": "none"})
    check_base(str(source), config)
    cpu = torch.device("cpu")
    if is_checkpoint(source):
        policy = build_policy(model, config.sampling.temperature, cpu)
        saved = load_checkpoint(source).tensors["policy"]
        check_tensors(source, policy.trainable(), saved)
        with torch.no_grad():
            for name, parameter in policy.trainable().items():
                parameter.copy_(saved[name])
        lm: Any = policy.lm
    elif is_adapter(source):
        base: Any = load_lm(model.model_copy(update={"lora": None}), cpu)
        lm = adapted_lm(base, source)
    else:
        trust = config.model.trust_remote_code
        lm = complete_lm(str(source), dtype=torch.float32, trust_remote_code=trust)
    if isinstance(lm, PeftModel) and not wish.as_adapter:
        # In float32: merging into rounded weights would move the model by some hundredths of a nat.
        lm = lm.merge_and_unload()
    return lm if wish.as_adapter else lm.to(DTYPES[wish.dtype])


def check_room(lm: Any, out: Path) -> None:
    """DiskError before anything is written where it cannot fit."""
    parameters = lm.parameters()
    if isinstance(lm, PeftModel):
        parameters = [p for name, p in lm.named_parameters() if "lora_" in name]
    needed = sum(p.numel() * p.element_size() for p in parameters) + BESIDE
    above = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise DiskError(
            28, f"{out} needs {needed / 1e6:.0f} MB and {above} has {free / 1e6:.0f} MB free; "
            f"{ADVICE}",
        )  # fmt: skip


def write(lm: Any, tokenizer: PreTrainedTokenizerBase, config: RunConfig, folder: Path) -> None:
    generation = generation_settings(config.sampling, tokenizer)
    base: Any = lm.get_base_model() if isinstance(lm, PeftModel) else lm
    base.generation_config = generation
    base.config._name_or_path = ""  # a path of this machine
    lm.save_pretrained(str(folder))
    generation.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's own


def write_card(source: Path, config: RunConfig, folder: Path, as_adapter: bool) -> None:
    """The run's own card, about this form of the model; of a checkpoint one without results."""
    if (source / "README.md").is_file():
        card = (source / "README.md").read_text(encoding="utf-8")
    else:
        state = load_checkpoint(source).state
        method = (recorded_method(source) or "ppo").upper()
        path = write_model_card(folder, config, None, None, state["iteration"], method=method)
        card = path.read_text(encoding="utf-8")
    write_atomically(folder / "README.md", exported_card(card, config, is_adapter=as_adapter))
