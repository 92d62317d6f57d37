"""Where a run's numbers and samples go.

The two JSONL files are the run's record: where they cannot be written, the run ends. No other
tracker can stop the loop, or keep it waiting.
"""

import json
import logging
import math
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlalign.files import encodable, write_atomically, writing_to
from rlalign.redact import redact_mapping, redact_text
from rlalign.runs import RunFolder

logger = logging.getLogger(__name__)

WAITING = 1000  # calls that may wait for a slow tracker before it is given up
CLOSE_SECONDS = 60.0  # what W&B may take to upload the rest
Row = Mapping[str, Any]


class Tracker(Protocol):
    def log(self, step: int, stats: Mapping[str, float]) -> None: ...

    def samples(self, step: int, rows: Sequence[Row]) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """metrics.jsonl and samples.jsonl: a row each, in the file before `log` returns.

    Strict JSON: NaN and infinity become null. Raises DiskError where a row does not fit.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._metrics = Lines(run.metrics_jsonl)
        self._samples = Lines(run.samples_jsonl)

    def log(self, step: int, stats: Mapping[str, float]) -> None:
        row = {"iteration": step, **stats} | {"iteration": step}
        self._metrics.write(_line(row))

    def samples(self, step: int, rows: Sequence[Row]) -> None:
        self._samples.write(b"".join(_line({"iteration": step, **row}) for row in rows))

    def truncate_after(self, iteration: int) -> None:
        """Drop the rows past `iteration`, so that a resumed run's files equal an unbroken one's."""
        self.close()
        for path in (self._run.metrics_jsonl, self._run.samples_jsonl):
            with path.open(encoding="utf-8", newline="\n") as lines:
                kept = [line for line in lines if _iteration(line) <= iteration]
            write_atomically(path, "".join(kept))
        self._metrics = Lines(self._run.metrics_jsonl)
        self._samples = Lines(self._run.samples_jsonl)

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()


class Lines:
    """A file of whole lines: what a full disk, or a kill, leaves of one is taken away again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing_to(path):
            # Unbuffered: a row that was written outlives the process.
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - `close` closes it
            self._file.seek(0)
            self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def write(self, lines: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        with writing_to(self._path):
            try:
                while lines:  # a disk that is nearly full takes a part
                    lines = lines[self._file.write(lines) :]
            except OSError:
                self._file.truncate(end)
                raise

    def close(self) -> None:
        self._file.close()


class Background:
    """A tracker that starts and works in a thread of its own.

    However long it takes to start, hangs or dies, the loop goes on at once: calls wait in a queue,
    and a tracker that fails, or falls too far behind, is given up with one warning. `abandon`
    then frees what it held.
    """

    def __init__(
        self, name: str, start: Callable[[], Tracker], abandon: Callable[[], None] | None = None
    ) -> None:
        self._name = name
        self._start = start
        self._abandon = abandon
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(WAITING)
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, stats: Mapping[str, float]) -> None:
        stats = dict(stats)
        self._later(lambda tracker: tracker.log(step, stats))

    def samples(self, step: int, rows: Sequence[Row]) -> None:
        rows = [dict(row) for row in rows]
        self._later(lambda tracker: tracker.samples(step, rows))

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        self._later(None)
        self._thread.join(2 if self._given_up.is_set() else seconds)
        if self._thread.is_alive() and not self._given_up.is_set():
            self._give_up(TimeoutError(f"it did not end within {seconds:.0f} s"))

    def _later(self, call: Callable[[Tracker], None] | None) -> None:
        if self._given_up.is_set():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._give_up(TimeoutError(f"{WAITING} calls wait for it"))

    def _work(self) -> None:
        try:
            tracker = self._start()
            while (call := self._calls.get()) is not None and not self._given_up.is_set():
                call(tracker)
            tracker.close()
        except BaseException as error:  # libraries also raise SystemExit, here of a thread
            if not self._given_up.is_set():
                self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        self._given_up.set()
        _warn_of(self._name, error)
        if self._abandon is not None:
            freeing = threading.Thread(target=self._abandon, daemon=True)
            freeing.start()
            freeing.join(2)


class TensorBoardTracker:
    """Event files under `tensorboard/`; samples as literal text, as its page reads Markdown."""

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RuntimeError("tensorboard is not installed: pip install tensorboard") from error
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def log(self, step: int, stats: Mapping[str, float]) -> None:
        for key, value in stats.items():
            if math.isfinite(value):
                self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def samples(self, step: int, rows: Sequence[Row]) -> None:
        for index, row in enumerate(rows):
            text = encodable(json.dumps(finite(row), indent=1, ensure_ascii=False))
            # Not splitlines: a text may hold U+2028, which JSON leaves as it is.
            literal = "\n".join(f"    {line}" for line in text.split("\n"))
            name = f"samples/{row.get('split', 'train')}/{index}"
            self._writer.add_text(name, literal, step)

    def close(self) -> None:
        self._writer.close()


class Trackers:
    """All of a run's trackers as one."""

    def __init__(self, trackers: Sequence[JsonlTracker | Background]) -> None:
        self._trackers = trackers

    def log(self, step: int, stats: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, stats)

    def samples(self, step: int, rows: Sequence[Row]) -> None:
        for tracker in self._trackers:
            tracker.samples(step, rows)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """End them all; less than the default `seconds` where a grace period is short."""
        for tracker in self._trackers:
            if isinstance(tracker, Background):
                tracker.close(seconds)
            else:
                tracker.close()


def build_trackers(
    names: Sequence[str],
    run: RunFolder,
    config_flat: Mapping[str, Any],
    resolved_yaml: str,
    resumed_at: int | None = None,
) -> Trackers:
    """The JSONL files and the trackers in `names`; only the first process of a run has them.

    `resumed_at` is the last iteration whose rows stay, of a run that goes on; -1: none of them.
    """
    lines = JsonlTracker(run)
    if resumed_at is not None:
        lines.truncate_after(resumed_at)
    trackers: list[JsonlTracker | Background] = [lines]
    if "wandb" in names:
        from rlalign.wandb_tracker import WandbTracker, abandon

        config, text = redact_mapping(config_flat), redact_text(resolved_yaml)
        trackers.append(Background("wandb", lambda: WandbTracker(run, config, text), abandon))
    if "tensorboard" in names:
        folder = run.path / "tensorboard"
        trackers.append(Background("tensorboard", lambda: TensorBoardTracker(folder, resumed_at)))
    if "trackio" in names:
        from rlalign.trackio_tracker import TrackioTracker

        flat = redact_mapping(config_flat)
        trackers.append(Background("trackio", lambda: TrackioTracker(run, flat, resumed_at)))
    return Trackers(trackers)


def finite(value: Any) -> Any:
    """`value` with null for NaN and infinity, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(row: Row) -> bytes:
    text = json.dumps(finite(row), allow_nan=False, ensure_ascii=False)
    return (encodable(text) + "\n").encode()


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a damaged line is dropped with the late ones


def _warn_of(name: str, error: BaseException) -> None:
    kind = type(error).__name__
    logger.warning("%s is given up, and the run goes on: %s: %s", name, kind, error)
