"""Training from Python: the same runs, with functions, models and prompts in place of names."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rlalign import loop
from rlalign.config import ConfigError, from_mapping
from rlalign.loop import Result
from rlalign.methods import METHODS
from rlalign.runs import check_run
from rlalign.session import RewardFunction, Session
from rlalign.settings.schema import nearest
from rlalign.settings.sections import RunConfig
from rlalign.startup import is_rank_zero, say
from rlalign.trainer import Trainer

Config = RunConfig | Mapping[str, Any] | str | Path | None
Prompts = Sequence[str | Mapping[str, Any]]


def train(
    config: Config = None,
    *,
    rewards: Sequence[RewardFunction] = (),
    model: str | nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Prompts | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    quiet: bool = False,
    method: str = "ppo",
) -> Result:
    """A whole run; where it lies and how it went.

    `config`: nested settings, a file's path, a run model, or None for the defaults. `method`: ppo,
    dpg or reinforce, which reads its own section beside the shared ones. `rewards`: plain
    functions `f(completions) -> list[float]`, added to the configuration's own. `model`: a name,
    or a causal LM with its `tokenizer`. `prompts`: texts, or rows with further columns.
    `overrides`: {"ppo.lr": 1e-5} or ["--ppo.lr=1e-5"]. Raises ConfigError before any long work.
    """
    settings = resolve(config, model, overrides, method)
    if is_rank_zero():
        check_run(settings.run)
    trainer = open_trainer(
        settings,
        rewards=rewards,
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        method=method,
    )
    with trainer.session, no_progress_bars():
        return loop.train(trainer, quiet=quiet)


def open_trainer(
    config: Config = None,
    *,
    rewards: Sequence[RewardFunction] = (),
    model: str | nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Prompts | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    method: str = "ppo",
) -> Trainer:
    """A trainer for a loop of your own: `.generate()` responses, `.step()` on them.

    The arguments are those of `train`. Nothing is written to disk.
    """
    settings = resolve(config, model, overrides, method)
    objective = METHODS[method].objective(settings)
    for line in objective.warnings:
        say(f"warning: {line}")
    with no_progress_bars():
        session = Session(
            settings,
            lm=model if isinstance(model, nn.Module) else None,
            tokenizer=tokenizer,
            prompts=prompts,
            rewards=rewards,
        )
    return Trainer(session, objective)


def resolve(
    config: Config,
    model: str | nn.Module | None,
    overrides: Mapping[str, Any] | Sequence[str],
    method: str = "ppo",
) -> RunConfig:
    """The checked configuration; a model's name given beside it counts as an override."""
    if method not in METHODS:
        close = nearest(method, METHODS)
        hint = f"did you mean {close!r}?" if close else f"there are {', '.join(METHODS)}"
        raise ConfigError(f"method={method!r} is unknown; {hint}")
    if isinstance(model, str) and isinstance(overrides, Mapping):
        overrides = {**overrides, "model.name": model}
    elif isinstance(model, str):
        overrides = [*overrides, f"model.name={model}"]
    return from_mapping(METHODS[method].run_model, config, overrides, rewards_given=True)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Within it transformers shows no bars for loading and saving; after it, as before."""
    was_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers_logging.enable_progress_bar()
