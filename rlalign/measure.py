"""`rlalign eval`: a trained run, checkpoint or model, measured against its reference."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlalign.algorithms.ppo import PPORun, optimum_warnings
from rlalign.checkpoint import CheckpointError, load_checkpoint, newest_sound
from rlalign.config import ConfigError, load_config
from rlalign.evaluate import Evaluation, evaluate
from rlalign.exits import run_safely
from rlalign.fitting import fit_target
from rlalign.models import first_line
from rlalign.policy import Policy
from rlalign.report.live import LiveView
from rlalign.runs import RunFolder
from rlalign.session import Session
from rlalign.startup import quiet_libraries, say
from rlalign.target import Target


def main(argv: Sequence[str] | None = None) -> int:
    """Measure RUN_OR_MODEL as its own or `--config`'s settings say; eval.json goes beside it."""
    target, *arguments = list(sys.argv[1:] if argv is None else argv)
    quiet_libraries()
    return run_safely(lambda: measure(Path(target), arguments))


def measure(target: Path, arguments: Sequence[str]) -> None:
    """Evaluate and print, before against after; the numbers go to `eval.json` in `target`."""
    if not target.is_dir():
        raise ConfigError(f"{target}: there is no such run or model folder")
    is_checkpoint = (target / "manifest.json").is_file()
    own = (target.absolute().parents[1] if is_checkpoint else target) / "config.yaml"
    has_config = any(argument.lstrip("-").partition("=")[0] == "config" for argument in arguments)
    if not has_config and not own.is_file():
        raise ConfigError(f"{target} has no config.yaml; say by --config FILE what to measure")
    config = load_config(PPORun, arguments, default=None if has_config else own)
    model = target / "model" if (target / "model").is_dir() else target
    settings = adapter_settings(model, config)
    for line in optimum_warnings(settings):
        say(f"warning: {line}")
    with Session(settings) as session:
        try:
            load_trained(session.policy, model)
        except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{model} holds no weights that fit model.name={settings.model.name}: "
                f"{first_line(error)}"
            ) from error
        coef = final_coef(target, settings)
        fitted = fitted_target(session, target)
        before = evaluate(session, coef, fitted, of_reference=True)
        after = evaluate(session, coef, fitted)
    view = LiveView(0, list(session.reward_set.names), quiet=False)
    view.final(RunFolder(target), before, after)
    write(target / "eval.json", before, after)
    print(f"eval.json    {target / 'eval.json'}")


def fitted_target(session: Session, folder: Path) -> Target:
    """The target with the lambdas that the run ended with, or fitted to the reference now."""
    declared = session.target
    if (folder / "manifest.json").is_file():
        saved = load_checkpoint(folder).state.get("target")
    else:
        newest = newest_sound(folder / "checkpoints")
        saved = None if newest is None else load_checkpoint(newest).state.get("target")
    if declared.is_fitted or saved is None or saved["hash"] != declared.hash:
        return declared if declared.is_fitted else fit_target(session, declared)[0]
    return declared.restored(saved)


def final_coef(target: Path, config: PPORun) -> float:
    """The beta of the target that was approached: where an adaptive coefficient ended."""
    metrics = target / "metrics.jsonl"
    if config.kl.target is None:
        return config.kl.coef
    at = target if (target / "manifest.json").is_file() else newest_sound(target / "checkpoints")
    if at is not None:
        return float(load_checkpoint(at).state["objective"]["controller"]["coef"])
    if metrics.is_file():  # the checkpoints were removed: what the last iteration began with
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        return float(next(row["kl/coef"] for row in reversed(rows) if "kl/coef" in row))
    return config.kl.coef


def write(path: Path, before: Evaluation, after: Evaluation) -> None:
    """Both evaluations as JSON."""
    content = {"reference": before.stats, "policy": after.stats, "samples": len(after.rows)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def adapter_settings(folder: Path, config: PPORun) -> PPORun:
    """The configuration with `model.lora` as the saved adapter has it; null for a whole model."""
    file = folder / "adapter_config.json"
    if (folder / "manifest.json").is_file():
        return config  # a checkpoint holds what the configuration says
    lora = None
    if file.is_file():
        saved = json.loads(file.read_text(encoding="utf-8"))
        modules = saved["target_modules"]
        lora = {"r": saved["r"], "alpha": saved["lora_alpha"], "target_modules": modules}
    model = {**config.model.model_dump(), "lora": lora}
    return PPORun.model_validate({**config.model_dump(), "model": model})


@torch.no_grad()
def load_trained(policy: Policy, folder: Path) -> None:
    """Put a saved adapter, model or checkpoint into the policy; the reference stays as it is."""
    if (folder / "manifest.json").is_file():
        saved = load_checkpoint(folder).tensors["policy"]
        for name, parameter in policy.trainable().items():
            parameter.copy_(saved[name])
        return
    if isinstance(policy.lm, PeftModel):
        set_peft_model_state_dict(policy.lm, load_peft_weights(str(folder), device="cpu"))
    else:
        trained = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        policy.lm.load_state_dict(trained.state_dict())
    head = folder / "value_head.safetensors"
    if head.is_file():
        policy.value_head.load_state_dict(load_file(head))
