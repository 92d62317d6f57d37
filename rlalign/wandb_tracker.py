"""Weights & Biases: on line when logged in, else off line into the run's folder."""

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb

from rlalign.files import encodable
from rlalign.runs import RunFolder
from rlalign.wandb_login import logged_in

logger = logging.getLogger(__name__)

START_SECONDS = 6  # until an unreachable server counts as one; the fallback then takes a second
DATA_DIR = "WANDB_DATA_DIR"


class WandbTracker:
    """Logs metrics, a table of samples and the configuration, whose secrets the caller hid.

    Joins the run of a sweep's agent. A resumed run goes on under the id that run.json keeps.
    """

    def __init__(self, run: RunFolder, config: Mapping[str, Any], resolved_yaml: str) -> None:
        self._folder = run
        # Tables wait here for their upload; in the user's home they would outlive the run.
        self._own_data_dir = DATA_DIR not in os.environ
        if self._own_data_dir:
            os.environ[DATA_DIR] = str(run.path / "wandb")
        wandb.setup(wandb.Settings(silent=True, console="off"))
        known = run.read_run_json().get("wandb") or {}
        run_id = os.environ.get("WANDB_RUN_ID") or known.get("id") or secrets.token_hex(4)
        self._run = _start(run, run_id, config)
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        (Path(self._run.dir) / "rlalign.yaml").write_text(resolved_yaml, encoding="utf-8")
        mode = "offline" if self._run.settings.mode == "offline" else "online"
        run.write_run_json({"wandb": {"id": self._run.id, "mode": mode, "url": self._run.url}})
        if self._run.url:
            logger.info("W&B: %s", self._run.url)

    def log(self, step: int, stats: Mapping[str, float]) -> None:
        self._run.log({**stats, "iteration": step})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for split in sorted({str(row.get("split", "train")) for row in rows}):
            chosen = [row for row in rows if str(row.get("split", "train")) == split]
            self._run.log({f"samples/{split}": sample_table(step, chosen), "iteration": step})

    def close(self) -> None:
        self._run.finish(exit_code=self._folder.read_run_json().get("exit_code") or 0)
        if self._own_data_dir:
            os.environ.pop(DATA_DIR, None)


def abandon() -> None:
    """Let go of W&B's dead or hanging process, or its exit handler would wait for it."""
    with contextlib.suppress(BaseException):
        wandb.teardown(exit_code=1)


def sample_table(step: int, rows: Sequence[Mapping[str, Any]]) -> wandb.Table:
    """Samples as plain text and numbers; as wandb.Html, what a model wrote would run."""
    names = sorted({name for row in rows for name in row.get("rewards") or {}})
    texts = ["prompt", "response", "reference_response"]
    columns: list[str | int] = [
        "iteration",
        *texts,
        "score",
        "kl",
        *(f"reward/{name}" for name in names),
    ]
    data: list[Iterable[Any]] = [
        [
            step,
            *(encodable(str(row.get(key) or "")) for key in texts),
            row.get("score"),
            row.get("kl"),
            *((row.get("rewards") or {}).get(name) for name in names),
        ]
        for row in rows
    ]
    return wandb.Table(columns=columns, data=data)


def _start(run: RunFolder, run_id: str, config: Mapping[str, Any]) -> wandb.Run:
    wished = os.environ.get("WANDB_MODE")
    if wished not in ("online", "offline", "disabled", "shared"):
        wished = "online" if logged_in() or "WANDB_SWEEP_ID" in os.environ else "offline"
    if wished != "online":
        return _init(run, run_id, config, "disabled" if wished == "disabled" else "offline")
    try:
        return _init(run, run_id, config, "online")
    except (wandb.Error, OSError) as error:
        reason = str(error).splitlines()[0]
        logger.warning(
            "W&B did not start on line (%s): the run is logged off line, to be uploaded later with "
            "`wandb sync %s/wandb/offline-run-*`",
            reason,
            run.path,
        )
        abandon()  # or the run's id would still be in use
        return _init(run, run_id, config, "offline")


def _init(
    run: RunFolder,
    run_id: str,
    config: Mapping[str, Any],
    mode: Literal["online", "offline", "disabled"],
) -> wandb.Run:
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT") or "rlalign",
        group=os.environ.get("WANDB_RUN_GROUP") or re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", run.name),
        name=run.name,
        id=run_id,
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=str(run.path),
        config=dict(config),
        settings=_settings(online=mode == "online"),
    )


def _settings(online: bool) -> wandb.Settings:
    """Quiet, and nothing stored that may hold a secret: no command line, code, packages, git."""
    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=START_SECONDS,
        x_service_wait=START_SECONDS,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=not online,  # the sampler asks the network which cloud it is in
        x_save_requirements=False,
    )
