"""`rlalign eval`: any run, checkpoint or model, measured against a target and a reference."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlalign.checkpoints.folder import load_checkpoint, newest_sound
from rlalign.config import ConfigError, from_mapping, load_config
from rlalign.exits import run_safely
from rlalign.fitting import InfeasibleError, fit_target
from rlalign.methods import METHODS
from rlalign.nearby import run_hint
from rlalign.optimum import shared_warnings
from rlalign.report.yardstick_picture import draw_yardstick
from rlalign.report.yardstick_table import yardstick_table
from rlalign.runs import RunFolder, versions
from rlalign.session import Session
from rlalign.settings.sections import RunConfig
from rlalign.startup import quiet_libraries, say
from rlalign.target import Target
from rlalign.terminal import printable
from rlalign.trained import is_checkpoint, load_trained, settings_for
from rlalign.trust import check_whole, settings_of
from rlalign.yardstick.measured import measure as measured
from rlalign.yardstick.numbers import as_json, write_json, write_rows


def main(
    run_or_model: str, arguments: Sequence[str], out: str | None = None, trust: bool = False
) -> int:
    """Measure as its own or `--config`'s settings say; the exit code of `rlalign.exits`."""
    quiet_libraries()

    def job() -> None:
        measure(run_or_model, arguments, out, trust)

    return run_safely(job)


def measure(
    run_or_model: str, arguments: Sequence[str], out: str | None = None, trust: bool = False
) -> dict[str, Any]:
    """What is in `eval.json`, which is written beside `eval_samples.jsonl` and `eval.png`.

    Under `trust` the run's own configuration, and code beside the model, may do what they like.
    """
    folder = Path(run_or_model).expanduser()
    place = Path(out) if out is not None else folder
    if not folder.exists() and (hint := run_hint(folder)):  # else it may be the hub's
        raise ConfigError(f"{run_or_model}: no such folder in {Path.cwd()}{hint}")
    if not place.is_dir():
        if out is None:
            raise ConfigError(
                f"{run_or_model} is no folder here, so --out must say where the results go, as in "
                "--out results"
            )
        place.mkdir(parents=True, exist_ok=True)
    config = configuration(folder, arguments, trust)
    for line in shared_warnings(config):  # what only training asks for is no matter here
        say(f"warning: {line}")
    source = source_of(run_or_model)
    with Session(settings_for(source, config)) as session:
        load_trained(session, source, trust)
        coef = final_coef(folder, config)
        target, unfitted = fitted_target(session, folder)
        found = measured(session, coef, target, unfitted)
        is_main = session.ranks.is_main
        about = {
            "measured": run_or_model,
            "reference_model": config.model.name,
            "method": recorded_method(folder),
            "held_out": session.evaluates_on_held_out,
            "seed": config.train.seed,
            "dtype": precision(session),
            "versions": versions(),
        }
    content = as_json(found, about)
    if is_main:
        write_rows(place / "eval_samples.jsonl", found.drawn.rows)
        write_json(place / "eval.json", content)
        print(yardstick_table(content))
        (place / "eval.png").unlink(missing_ok=True)  # a link there would be followed
        draw_yardstick(content, place / "eval.png")
        for name in ("eval.json", "eval_samples.jsonl", "eval.png"):
            print(printable(f"{name:<19} {place / name}"))
    return content


def source_of(run_or_model: str) -> str:
    """What holds the weights: a run's `model/`, or what was named."""
    folder = Path(run_or_model).expanduser()
    model = folder / "model"
    return str(model if model.is_dir() else folder) if folder.is_dir() else run_or_model


def precision(session: Session) -> str:
    """In which the likelihoods were computed."""
    own = session.policy.autocast_dtype
    is_float32 = session.config.eval.dtype == "float32" or own is None
    return "float32" if is_float32 else str(own).removeprefix("torch.")


def configuration(
    folder: Path, arguments: Sequence[str], trust: bool = False, command: str = "eval"
) -> RunConfig:
    """`--config`'s settings, or the run's own, as those of the method that trained it.

    ConfigError where the run's own need `trust`.
    """
    own = run_of(folder) / "config.yaml"
    has_config = any(argument.lstrip("-").partition("=")[0] == "config" for argument in arguments)
    if not has_config and not own.is_file():
        raise ConfigError(f"{folder} has no config.yaml; say by --config FILE what to measure")
    run_model = METHODS[method_of(folder)].run_model
    if has_config:
        return load_config(run_model, arguments)
    config = from_mapping(run_model, settings_of(str(folder), own, trust, command), arguments)
    check_whole(config, own)
    return config


def run_of(folder: Path) -> Path:
    """The run's folder: of a checkpoint the one that it lies in."""
    return folder.absolute().parents[1] if is_checkpoint(folder) else folder


def recorded_method(folder: Path) -> str | None:
    """What run.json says that the run was trained with: ppo, dpg, grpo, …"""
    method = RunFolder(run_of(folder)).read_run_json().get("method")
    return method if isinstance(method, str) else None


def method_of(folder: Path) -> str:
    """The method whose settings are read: PPO's where none of ours is recorded."""
    recorded = recorded_method(folder)
    return recorded if recorded in METHODS else "ppo"


def fitted_target(session: Session, folder: Path) -> tuple[Target, str]:
    """The target with the lambdas that the run ended with, or fitted to the reference now.

    And, where the reference does not show what is wished, why it is not fitted yet.
    """
    declared, saved = session.target, state_of(folder).get("target")
    if not declared.is_fitted and saved is not None and saved["hash"] == declared.hash:
        return declared.restored(saved), ""
    if declared.is_fitted:
        return declared, ""
    try:
        return fit_target(session, declared)[0], ""
    except InfeasibleError as error:
        # The model that is measured may show it: so it is drawn, and means are told in any case.
        lambdas = dict.fromkeys((entry.name for entry in declared.moments), 0.0)
        rare = 1.0 / session.config.target.samples
        rates = dict.fromkeys((entry.name for entry in declared.hard), rare)
        return declared.fitted(lambdas, {}, rates), str(error)


def state_of(folder: Path) -> Mapping[str, Any]:
    """The state in a checkpoint, or in a run's newest sound one; nothing where there is none."""
    newest = folder if is_checkpoint(folder) else newest_sound(folder / "checkpoints")
    return {} if newest is None else load_checkpoint(newest).state


def final_coef(folder: Path, config: RunConfig) -> float:
    """The beta of the target that was approached: where an adaptive coefficient ended."""
    metrics = folder / "metrics.jsonl"
    if config.kl.target is None:
        return config.kl.coef
    if "controller" in (objective := state_of(folder).get("objective", {})):
        return float(objective["controller"]["coef"])
    if metrics.is_file():  # the checkpoints were removed: what the last iteration began with
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        return float(next(row["kl/coef"] for row in reversed(rows) if "kl/coef" in row))
    return config.kl.coef
