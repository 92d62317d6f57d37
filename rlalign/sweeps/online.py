"""`rlalign sweep FILE`: a sweep on W&B's server, and an agent for it here."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import wandb
from wandb.errors import AuthenticationError

from rlalign.problems import ConfigError
from rlalign.startup import say
from rlalign.wandb_login import logged_in
from rlalign.wandb_tracker import START_SECONDS

NEEDED = ("method", "parameters")


class Unreachable(Exception):
    """W&B's server cannot be had at the moment."""


def start(file: Path, content: Mapping[str, Any], trials: int | None, has_agent: bool) -> None:
    """Make the sweep and run its trials, at most `trials`, until W&B has none left.

    ConfigError where the file or the account is at fault, Unreachable where the server is.
    """
    local = f"rlalign sweep {file} --local runs it here, without an account"
    for key in NEEDED:
        if not content.get(key):
            raise ConfigError(f"{key} is missing in {file}: W&B needs it; add it")
    _check_account(local)
    _check_server(local)
    entity = os.environ.get("WANDB_ENTITY") or content.get("entity")
    project = os.environ.get("WANDB_PROJECT") or content.get("project") or "rlalign"
    try:
        sweep_id = wandb.sweep(dict(content), entity=entity, project=project)
    except AuthenticationError as error:
        raise ConfigError(
            f"W&B does not know this account: {_first_line(error)}; `wandb login --relogin`, or "
            f"correct WANDB_API_KEY. {local}"
        ) from error
    except (wandb.Error, ValueError) as error:
        raise ConfigError(f"W&B did not take {file}: {_first_line(error)}; {local}") from error
    path = "/".join(filter(None, (os.environ.get("WANDB_ENTITY"), project, sweep_id)))
    if not has_agent:
        print(f"run its trials, on as many machines as you like: wandb agent {path}")
        return
    say(f"an agent for {path}; Ctrl-C ends it, and `wandb agent {path}` goes on")
    # Its trials start `python` and `accelerate`: those of this environment, activated or not.
    here = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([here, os.environ.get("PATH", "")])
    try:
        wandb.agent(sweep_id, entity=entity, project=project, count=trials, forward_signals=True)
    except wandb.Error as error:
        raise Unreachable(
            f"the agent lost W&B: {_first_line(error)}; `wandb agent {path}` goes on"
        ) from error


def _check_account(local: str) -> None:
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled"):
        raise ConfigError(f"WANDB_MODE={mode}: a sweep on line needs W&B; unset it. {local}")
    if not logged_in():
        raise ConfigError(
            f"a sweep on line needs a W&B account: `wandb login`, or set WANDB_API_KEY. {local}"
        )


def _check_server(local: str) -> None:
    """Refuse at once what W&B's own client would try again for minutes."""
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    try:
        httpx.get(server, timeout=START_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(
            f"W&B's server {server} cannot be reached ({_first_line(error)}): try again later. "
            f"{local}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
