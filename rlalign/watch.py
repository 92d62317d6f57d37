"""`rlalign watch`: a run's view from its folder, wherever it runs, and how it ended."""

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlalign.config import read_file
from rlalign.nearby import run_hint
from rlalign.problems import ConfigError
from rlalign.report.follow import Lines, Metrics, Row, reward_names, rows_in, seconds_of
from rlalign.report.live import LiveView
from rlalign.report.live_text import duration
from rlalign.runs import MEANINGS, RunFolder
from rlalign.startup import say

RUNS = Path("runs")
POLL_SECONDS = 0.5
QUIET_SECONDS = 60.0  # without a row, after which it is said, if iterations are shorter


HUNG = 7  # exit code; see rlalign.exits


def main(
    run: str | None,
    wait: bool = False,
    once: bool = False,
    rows: int = 20,
    give_up: float | None = None,
) -> int:
    """Show a run until it ends, and return its exit code; 0 of one that is left running.

    7 once no row has come for `give_up` seconds.
    """
    try:
        folder = find(run) if not wait else waited_for(run)
        with closing(Watch(folder, rows)) as watch:
            return watch.once() if once else watch.follow(give_up)
    except KeyboardInterrupt:
        say("no longer watching; the run goes on")
        return 130


def find(run: str | None) -> RunFolder:
    """The run of that name or path, or the newest in runs/; ConfigError with the nearest name."""
    if run is None:
        return newest(RUNS)
    places = [Path(run).expanduser(), RUNS / run]
    for place in places:
        if is_run(place):
            return RunFolder(place)
    if places[0].is_dir() and any(map(is_run, places[0].iterdir())):
        raise ConfigError(f"{run} is a folder of runs; name one, as {newest(places[0]).path}")
    hint = run_hint(run) or "; --wait waits for it"
    what = "a folder without a run" if places[0].is_dir() else "no such run"
    raise ConfigError(f"{run}: {what} (no run.json in it){hint}")


def waited_for(run: str | None) -> RunFolder:
    """`find`, as soon as there is something to find; without a name, a run that is not over."""
    over = {place for place in runs_in(RUNS) if not _is_running(place)} if run is None else set()
    is_told = False
    while True:
        try:
            found = find(run)
            if found.path not in over or _is_running(found.path):  # resumed
                return found
        except ConfigError:
            pass
        if not is_told:
            say(f"waiting for {run or f'a run in {RUNS}'}")
        is_told = True
        time.sleep(POLL_SECONDS)


def _is_running(place: Path) -> bool:
    return RunFolder(place).read_run_json().get("status") == "running"


def newest(folder: Path) -> RunFolder:
    """The run in a folder that was begun or ended last."""
    runs = runs_in(folder)
    if not runs:
        raise ConfigError(f"there is no run in {folder}; name one by its folder")
    return RunFolder(max(runs, key=lambda place: (place / "run.json").stat().st_mtime))


def runs_in(folder: Path) -> list[Path]:
    return sorted(filter(is_run, folder.iterdir())) if folder.is_dir() else []


def is_run(place: Path) -> bool:
    return (place / "run.json").is_file()


class RunClock:
    """Seconds of the run: of the rows that are told, then of this machine's clock."""

    def __init__(self) -> None:
        self.told, self._since = 0.0, 0.0

    def follow(self) -> None:
        self._since = time.monotonic()

    def __call__(self) -> float:
        return self.told + (time.monotonic() - self._since if self._since else 0.0)


@dataclass(frozen=True)
class Measured:
    """An evaluation, as the run's files hold it."""

    stats: Row
    rows: list[Row]
    is_held_out: bool


class Watch:
    """What of a run has been shown, and what has come since."""

    def __init__(self, folder: RunFolder, rows: int, stream: IO[str] | None = None) -> None:
        self.folder, self._rows = folder, rows
        self._metrics = Metrics(folder.metrics_jsonl)
        self._samples = Lines(folder.samples_jsonl, ends=True)
        self._clock = RunClock()
        self._first: Row | None = None  # rows with an evaluation
        self._last: Row | None = None
        self._evals: dict[int, list[Row]] = {}  # samples of the first evaluation and the last
        self._is_begun = False  # whether the view knows the first of them
        self._iteration = 0
        self._pace = 0.0  # seconds an iteration
        self._is_quiet = False  # no row for long
        self.view = LiveView(0, [], quiet=False, stream=stream, now=self._now, clock=self._clock)
        self._settle()

    def once(self) -> int:
        """Show how the run is now."""
        run = self.folder.read_run_json()
        self._catch_up()
        return self._end(run)

    def follow(self, give_up: float | None = None) -> int:
        """Show what comes until the run has ended, or no row has come for `give_up` seconds."""
        with self.view:
            run = self.folder.read_run_json()
            self._catch_up()
            self._clock.follow()
            while run.get("status") == "running":
                time.sleep(POLL_SECONDS)
                run = self.folder.read_run_json()  # before the rows: no more come after its end
                self._poll()
                self._say_if_quiet()
                if give_up is not None and (age := self._age()) > give_up:
                    break
        code = self._end(run)
        if run.get("status") == "running":
            say(f"gave up after {duration(age)} without a row; its machine may be lost")
            return HUNG
        return code

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()

    # -- rows

    def _catch_up(self) -> None:
        """What is there: the last rows, and a sample."""
        rows, _ = self._metrics.read()
        self._settle(*rows[:1])
        earlier = max(len(rows) - self._rows, 0) if self._rows else 0
        if earlier:
            self.view.say(f"({earlier} earlier rows in metrics.jsonl)")
        for index, row in enumerate(rows):
            self._clock.told += seconds_of(row)
            self._take(row, self.view.iteration if index >= earlier else self.view.count)
        self._take_samples()

    def _poll(self) -> None:
        rows, back = self._metrics.read()
        if back is not None:
            self.view.say(f"goes on after iteration {int(back)}")
            self._evals = {step: rows for step, rows in self._evals.items() if step <= back}
            self._settle()
        for row in rows:
            if not self._iteration:
                self._settle(row)
            self._take(row, self.view.iteration)
        self._take_samples()

    def _take(self, row: Row, show: Callable[[Row], None]) -> None:
        show(row)
        self._iteration = int(row["iteration"])
        self._pace = seconds_of(row) or self._pace
        if "eval/score" in row:
            self._first, self._last = self._first or row, row

    def _take_samples(self) -> None:
        lines, _ = self._samples.read()
        found: dict[int, list[Row]] = {}
        for row in rows_in(lines):
            if row.get("split") == self._split and "prompt" in row and "response" in row:
                found.setdefault(int(row["iteration"]), []).append(row)
        for step, rows in sorted(found.items()):
            self._evals.setdefault(step, []).extend(rows)
        if found:
            first, last = min(self._evals), max(self._evals)
            self._evals = {step: self._evals[step] for step in (first, last)}
            for step in [first] * (not self._is_begun) + [last] * (last > first):
                self.view.samples(self._evals[step])
            self._is_begun = True

    def _settle(self, *rows: Row) -> None:
        """Read how long the run is to be, and the names of its rewards."""
        try:
            config = read_file(self.folder.config_yaml)
        except ConfigError:
            config = {}
        iterations = _at(config, "train", "iterations")
        self.view.iterations = iterations if isinstance(iterations, int) else 0
        named = config.get("rewards")
        names = list(map(str, named)) if isinstance(named, dict) else []
        given = reward_names(rows[0]) if rows else []  # from Python, beside the configuration's
        self.view.names = list(dict.fromkeys([*names, *given]))
        self._split = "eval" if _at(config, "eval", "every") else "train"

    def _now(self) -> str:
        """Nothing, unless the last row is older than it should be."""
        age = self._age()
        return f"no row for {duration(age)}" if age > max(QUIET_SECONDS, 5 * self._pace) else ""

    def _say_if_quiet(self) -> None:
        """Where there is no bar to say it, say once that no more rows come."""
        quiet = self._now()
        if quiet and not self._is_quiet and not self.view.has_bar:
            self.view.say(quiet)
        self._is_quiet = bool(quiet)

    def _age(self) -> float:
        """Seconds since the last row, or since the run began or went on, by the files' times."""
        written = []
        for path in (self.folder.metrics_jsonl, self.folder.run_json):
            with suppress(OSError):
                written.append(path.stat().st_mtime)
        return max(time.time() - max(written), 0.0) if written else 0.0

    # -- the end

    def _end(self, run: dict[str, Any]) -> int:
        """Say how the run ended, or how it is; its exit code."""
        status, code = run.get("status"), run.get("exit_code")
        if status in ("done", "stopped"):
            warned = run.get("warnings")
            said = [_warning(each) for each in warned] if isinstance(warned, list) else []
            held_out = run.get("held_out_prompts") is not False
            pair = self._evaluations(held_out)
            self.view.final(self.folder, *pair, said)
        else:
            self.view.say("")
        for title, text in self._state(run).items():
            self.view.tell(title, text)
        return code if isinstance(code, int) and status != "running" else 0

    def _state(self, run: dict[str, Any]) -> dict[str, str]:
        status, code = str(run.get("status", "unknown")), run.get("exit_code")
        if status == "running":
            total = f" of {self.view.iterations}" if self.view.iterations else ""
            now = f"{status}, iteration {self._iteration}{total}"
            return {"status": now, "last row": f"{duration(self._age())} ago"}
        told = {"status": status}
        if isinstance(code, int):
            told["exit code"] = f"{code}: {MEANINGS.get(code, 'not one of ours')}"
        if run.get("message"):
            told["message"] = str(run["message"])
        if isinstance(run.get("where"), dict):
            told["where"] = str(run["where"].get("at"))
        if status in ("preempted", "failed") and any(self.folder.checkpoints.glob("step-*")):
            told["go on with"] = f"--run.name={self.folder.name} --run.resume=auto"
        return told

    def _evaluations(self, is_held_out: bool) -> tuple[Measured | None, Measured | None]:
        if self._first is None or self._last is None or self._split != "eval":
            return None, None
        rows = [self._evals.get(int(row["iteration"]), []) for row in (self._first, self._last)]
        return (
            Measured(self._first, rows[0], is_held_out),
            Measured(self._last, rows[1], is_held_out),
        )


def _at(config: dict[str, Any], section: str, key: str) -> object:
    found = config.get(section)
    return found.get(key) if isinstance(found, dict) else None


def _warning(about: object) -> str:
    """A warning of the audit as run.json holds it."""
    if not isinstance(about, dict):
        return str(about)
    until = "" if about.get("ended") is None else f", until iteration {about['ended']}"
    return f"{about.get('name')} from iteration {about.get('began')} on{until}: {about.get('text')}"
