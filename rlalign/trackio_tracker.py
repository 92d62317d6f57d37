"""Trackio: rows in its own database on this machine, for its own dashboard.

What `trackio.init` does beside that is left out: it prints, it asks the hub who is logged in, and
it takes every failure for a warning, so that a run could not say that nothing was written. Nothing
leaves the machine; `trackio sync` uploads it where that is wanted.
"""

import logging
import math
import os
import re
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from rlalign.files import encodable
from rlalign.runs import RunFolder

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
TEXTS = ("prompt", "response", "reference_response")


class TrackioTracker:
    """Logs metrics, samples and the configuration, whose secrets the caller hid.

    A resumed run goes on under the id that run.json keeps, without the rows past `resumed_at`.
    """

    def __init__(
        self, run: RunFolder, config: Mapping[str, Any], resumed_at: int | None = None
    ) -> None:
        try:
            from trackio.sqlite_storage import SQLiteStorage
            from trackio.utils import TRACKIO_DIR, get_storage_mode
        except ImportError as error:
            raise RuntimeError(
                "trackio is not installed: pip install 'rlalign[trackers]'"
            ) from error
        if get_storage_mode() != "sqlite":  # SQLite's locks do not hold there
            raise RuntimeError(
                f"TRACKIO_DIR={TRACKIO_DIR} is on a network file system; name a local folder"
            )
        self._storage = SQLiteStorage
        self._project = os.environ.get("TRACKIO_PROJECT") or "rlalign"
        self._name = run.name
        known = run.read_run_json().get("trackio") or {}
        self._id = known.get("id") or secrets.token_hex(16)
        if resumed_at is not None:
            self._take_back(resumed_at)
        self._config: dict[str, Any] | None = {
            **config,
            "_Username": None,
            "_Created": datetime.now(UTC).isoformat(),
            "_Group": re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", run.name),
        }
        about = {"project": self._project, "id": self._id, "dir": str(TRACKIO_DIR)}
        run.write_run_json({"trackio": about})
        logger.info("Trackio: trackio show --project %s", self._project)

    def log(self, step: int, stats: Mapping[str, float]) -> None:
        kept = {key: value for key, value in stats.items() if math.isfinite(value)}
        kept.pop("iteration", None)  # it is the step
        self._write(step, kept)

    def samples(self, step: int, rows: Sequence[Row]) -> None:
        """A table of the evaluation's samples, and one of the training's highest by each reward."""
        for split in ("train", "eval"):
            chosen = [row for row in rows if row.get("split", "train") == split]
            if split == "train":  # the dashboard reads all of them at once
                chosen = [row for row in chosen if row.get("top")]
            if chosen:
                self._write(step, {f"samples/{split}": sample_table(chosen)})

    def close(self) -> None:
        pass  # every row is in the database

    def _write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._storage.bulk_log(
            project=self._project,
            run=self._name,
            run_id=self._id,
            metrics_list=[dict(metrics)],
            steps=[step],
            config=self._config,
        )
        self._config = None

    def _take_back(self, iteration: int) -> None:
        database = self._storage.get_project_db_path(self._project)
        if database.exists():
            with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
                connection.execute(
                    "DELETE FROM metrics WHERE run_id = ? AND step > ?", (self._id, iteration)
                )


def sample_table(rows: Sequence[Row]) -> dict[str, Any]:
    """Samples as Trackio stores a table: text and numbers."""
    names = sorted({name for row in rows for name in row.get("rewards") or {}})
    cells = [
        {key: encodable(str(row.get(key) or "")) for key in TEXTS if any(key in r for r in rows)}
        | {"score": _rounded(row.get("score")), "kl": _rounded(row.get("kl"))}
        | {f"reward/{name}": _rounded((row.get("rewards") or {}).get(name)) for name in names}
        for row in rows
    ]
    return {"_type": "trackio.table", "_value": cells}


def _rounded(value: object) -> float | None:
    """A number as short as a table wants it."""
    return round(value, 4) if isinstance(value, int | float) and math.isfinite(value) else None
