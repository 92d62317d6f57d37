"""The trials of a sweep in one SQLite file, which several workers of a machine share.

Optuna keeps and draws them. What it leaves to chance under several workers is done under one lock:
the last trial is not begun twice, no point of a grid is left out or repeated, and a worker that
is killed at any moment leaves nothing behind that the next one would not see.
"""

import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlalign.problems import ConfigError
from rlalign.sweeps.child import Ending
from rlalign.sweeps.early import Behind
from rlalign.sweeps.file import Sweep, parse_sweep

try:
    import optuna
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import SQLAlchemyError

    from rlalign.sweeps.importances import Importances, importances
except ImportError as missing:
    raise ConfigError(
        "rlalign sweep --local needs optuna, which is not installed: pip install 'rlalign[sweeps]'"
    ) from missing

FILE = "trials.sqlite"
MOST_RETRIES = 2
BUSY_SECONDS = 60  # that a worker waits for another to write


@dataclass(frozen=True)
class Claimed:
    """A trial that this worker is to run."""

    number: int
    folder: str  # its run's name, that of its first attempt
    values: dict[str, Any]  # by the parameter's name
    is_retry: bool


@dataclass(frozen=True)
class Told:
    """A trial as the table shows it."""

    number: int
    state: str
    value: float | None
    values: dict[str, Any]
    folder: str
    reason: str  # why it failed, or was stopped early


class Queue:
    """A sweep's trials, `total` of them beside what is repeated.

    `grace`: seconds without a heartbeat after which a trial's worker counts as dead.
    """

    def __init__(self, folder: Path, sweep: Sweep, total: int, grace: int) -> None:
        self.sweep, self.total = sweep, total
        self.heartbeat = max(grace // 3, 1)
        self._lock = folder / "trials.lock"
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self._locked():
            self._storage = RDBStorage(
                f"sqlite:///{folder / FILE}",
                engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}},
                heartbeat_interval=self.heartbeat,
                grace_period=grace,
            )
            names = optuna.get_all_study_names(self._storage)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=names[0] if names else folder.name,  # which may be another's now
                direction=sweep.goal,
                sampler=_sampler(sweep.method),
                load_if_exists=True,
            )
            self._refuse_another_sweep(folder)

    # -- a worker's trials ---------------------------------------------------------------------

    def claim(self) -> Claimed | None:
        """The next trial to run; None where there is none at the moment."""
        with self._locked():
            self._give_back_lost()
            trials = self._study.get_trials(deepcopy=False)
            if not any(trial.state == TrialState.WAITING for trial in trials):
                begun = sum(not _history(trial) for trial in trials)
                if begun >= self.total:
                    return None
                if self.sweep.method == "grid":
                    self._study.enqueue_trial(self.sweep.grid_point(begun))
            kinds = {name: each.distribution() for name, each in self.sweep.parameters.items()}
            trial = self._study.ask(kinds)
            number = trial.number
            self._storage.record_heartbeat(self._id(number))
            folder = trial.user_attrs.get("folder", f"trial-{number:04d}")
            trial.set_user_attr("folder", folder)
            trial.set_user_attr("worker", os.getpid())
            is_retry = bool(_history(self._storage.get_trial(self._id(number))))
            return Claimed(number, folder, self.sweep.values(trial.params), is_retry)

    def is_busy(self) -> bool:
        """Whether some worker runs a trial, which may come back, or one waits."""
        with self._locked():
            states = [trial.state for trial in self._study.get_trials(deepcopy=False)]
            return any(not state.is_finished() for state in states)

    def beat(self, claimed: Claimed) -> bool:
        """Tell that the trial is being run; whether it still is this worker's to run."""
        with self._locked():
            if not self._is_running(claimed):
                return False
            self._storage.record_heartbeat(self._id(claimed.number))
            return True

    def report(self, claimed: Claimed, values: Sequence[float]) -> Behind | None:
        """Write down the metric's values so far; why the trial is to be stopped, if it is.

        Nothing is written where the sweep stops no trial early.
        """
        if self.sweep.early is None:
            return None
        with self._locked():
            if not self._is_running(claimed):
                return None
            self._write_values(claimed, values)
            runs = {
                trial.user_attrs.get("folder"): list(trial.intermediate_values.values())
                for trial in self._study.get_trials(deepcopy=False)  # the last of a folder stays
            }
            maximize = self.sweep.goal == "maximize"
            return self.sweep.early.judge(values, list(runs.values()), maximize)

    def end(self, claimed: Claimed, ending: Ending, was_stopped: bool = False) -> None:
        """Write down how it ended; `was_stopped`: by its worker, which was told to stop.

        A trial that is lost waits again at once.
        """
        with self._locked():
            if not self._is_running(claimed):
                return
            if ending.is_pruned:
                self._storage.set_trial_user_attr(
                    self._id(claimed.number), "message", ending.message
                )
                self._study.tell(claimed.number, state=TrialState.PRUNED)  # with the last value
            elif ending.value is None:
                about = {"message": ending.message, "lost": ending.is_lost, "stopped": was_stopped}
                for name, value in ({"exit_code": ending.exit_code} | about).items():
                    self._storage.set_trial_user_attr(self._id(claimed.number), name, value)
                self._study.tell(claimed.number, state=TrialState.FAIL)
                self._give_back_lost()
            else:
                self._study.tell(claimed.number, ending.value)

    def table(self) -> list[Told]:
        """Every trial, in the order in which they were begun."""
        trials = self._study.get_trials(deepcopy=False)
        successors = {history[-1]: t.number for t in trials if (history := _history(t))}
        return [self._told(trial, successors.get(trial.number)) for trial in trials]

    def _told(self, trial: FrozenTrial, successor: int | None) -> Told:
        reason = ""
        if trial.state == TrialState.PRUNED:
            reason = trial.user_attrs.get("message", "")
        if trial.state == TrialState.FAIL:
            reason = trial.user_attrs.get("message", "its worker was lost")
            code = trial.user_attrs.get("exit_code")
            reason = reason if code is None else f"exit code {code}: {reason}"
            reason += "" if successor is None else f"; went on as trial {successor}"
        return Told(
            trial.number,
            {TrialState.COMPLETE: "done", TrialState.FAIL: "failed"}.get(
                trial.state, trial.state.name.lower()
            ),
            trial.value,
            self.sweep.values(trial.params),
            trial.user_attrs.get("folder", ""),
            reason,
        )

    def importances(self) -> Importances | None:
        """Which parameters the metric depends on, as far as the trials say."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importances(self._study)

    # -- what is done under the lock -----------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Within it no other worker changes the trials."""
        with alone(self._lock), warnings.catch_warnings():
            # Heartbeats are "experimental", and "supposed to be used with Study.optimize", which
            # has no room for the lock.
            warnings.simplefilter("ignore")
            yield

    def _give_back_lost(self) -> None:
        """Fail the trials whose workers are gone; what was lost waits again, at most twice.

        From what the file says alone, so that a worker that dies in the midst changes nothing.
        """
        optuna.storages.fail_stale_trials(self._study)
        trials = self._study.get_trials(deepcopy=True)
        for trial in trials:
            if trial.state == TrialState.RUNNING and "worker" not in trial.user_attrs:
                # Its worker died while it claimed it, before the first heartbeat.
                self._study.tell(trial.number, state=TrialState.FAIL)
                trial.state = TrialState.FAIL
        went_on = {history[-1] for trial in trials if (history := _history(trial))}
        for trial in trials:
            if trial.number in went_on or not _is_lost(trial):
                continue
            attempts = [trials[number] for number in _history(trial)] + [trial]
            killed = sum(not attempt.user_attrs.get("stopped", False) for attempt in attempts)
            if killed <= MOST_RETRIES:
                folder = trial.user_attrs.get("folder", f"trial-{trial.number:04d}")
                trial.user_attrs = {"folder": folder}
                RetryHeartbeatStaleTrialCallback()(self._study, trial)

    def _write_values(self, claimed: Claimed, values: Sequence[float]) -> None:
        trial_id = self._id(claimed.number)
        written = self._storage.get_trial(trial_id).intermediate_values
        for step, value in enumerate(values, 1):
            if written.get(step) != value:
                self._storage.set_trial_intermediate_value(trial_id, step, value)

    def _is_running(self, claimed: Claimed) -> bool:
        state = self._storage.get_trial(self._id(claimed.number)).state
        return bool(state == TrialState.RUNNING)

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(self._study.study_name)
        return int(self._storage.get_trial_id_from_study_id_trial_number(study, number))

    def _refuse_another_sweep(self, folder: Path) -> None:
        before = self._study.user_attrs.get("sweep")
        if before is None:
            self._study.set_user_attr("sweep", self.sweep.definition)
        elif before != self.sweep.definition:
            old, new = json.loads(before), json.loads(self.sweep.definition)
            keys = dict.fromkeys([*new, *old])
            changed = ", ".join(key for key in keys if old.get(key) != new.get(key))
            raise ConfigError(
                f"{folder} holds the trials of a sweep with another {changed}; give another "
                "--name, or the file as it was"
            )


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Within it no other process of this machine is; the kernel frees it where one dies."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep_in(folder: Path) -> Sweep:
    """The sweep whose trials lie in a folder, as it was begun; ConfigError where there is none."""
    file = folder / FILE
    if not file.is_file():
        raise ConfigError(
            f"{folder} holds no local sweep (it has no {FILE}); name a sweep file, or a folder "
            "under runs/sweeps/"
        )
    try:
        storage = RDBStorage(f"sqlite:///{file}")
        names = optuna.get_all_study_names(storage)
        attrs = optuna.load_study(study_name=names[0], storage=storage).user_attrs if names else {}
        return parse_sweep(json.loads(attrs["sweep"]))
    except (KeyError, ValueError, SQLAlchemyError, RuntimeError) as error:
        raise ConfigError(f"{file} is not the record of a sweep: {error}; remove it") from error


def _sampler(method: str) -> "optuna.samplers.BaseSampler":
    """TPE, which takes running trials for bad ones so that workers do not crowd; or none."""
    if method == "bayes":
        return optuna.samplers.TPESampler(constant_liar=True)
    return optuna.samplers.RandomSampler()


def _history(trial: FrozenTrial) -> list[int]:
    """The numbers of the attempts before this one."""
    return list(trial.system_attrs.get("retry_history", []))


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether it failed for no reason of its own; a worker that was killed could not say so."""
    return bool(trial.state == TrialState.FAIL and trial.user_attrs.get("lost", True))
