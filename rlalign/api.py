"""Training from Python: the same runs, with functions, models and prompts in place of names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from rlalign import loop
from rlalign.algorithms.ppo import PPO, PPORun, optimum_warnings
from rlalign.config import from_mapping
from rlalign.loop import Result
from rlalign.session import RewardFunction, Session
from rlalign.startup import say
from rlalign.trainer import Trainer

Config = PPORun | Mapping[str, Any] | str | Path | None
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
) -> Result:
    """A whole PPO run; where it lies and how it went.

    `config`: nested settings, a file's path, a PPORun, or None for the defaults. `rewards`: plain
    functions `f(completions) -> list[float]`, added to the configuration's own. `model`: a name,
    or a causal LM with its `tokenizer`. `prompts`: texts, or rows with further columns.
    `overrides`: {"ppo.lr": 1e-5} or ["--ppo.lr=1e-5"]. Raises ConfigError before any long work.
    """
    trainer = open_trainer(
        config,
        rewards=rewards,
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        overrides=overrides,
    )
    with trainer.session:
        return loop.train(trainer, quiet=quiet)


def open_trainer(
    config: Config = None,
    *,
    rewards: Sequence[RewardFunction] = (),
    model: str | nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Prompts | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Trainer:
    """A trainer for a loop of your own: `.generate()` responses, `.step()` on them.

    The arguments are those of `train`. Nothing is written to disk.
    """
    changes = (
        [f"{k}={v!r}" for k, v in overrides.items()]
        if isinstance(overrides, Mapping)
        else list(overrides)
    )
    if isinstance(model, str):
        changes.append(f"model.name={model!r}")
    settings = from_mapping(PPORun, config, changes, rewards_given=True)
    for line in optimum_warnings(settings):
        say(f"warning: {line}")
    session = Session(
        settings,
        lm=model if isinstance(model, nn.Module) else None,
        tokenizer=tokenizer,
        prompts=prompts,
        rewards=rewards,
    )
    return Trainer(session, PPO(settings, session.ranks.sum))
