"""What a reward costs: texts a second and memory, with its example's parameters, on the CPU."""

import importlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rewards import conformance, registry
from rewards.contract import RewardConfigError, RewardError, described
from rewards.embedded import EmbeddedError

REPEATS = 5
# What a run has imported anyway: no reward is charged for it.
SHARED = ("torch", "transformers")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}

_WHO = (
    "The old clockmaker",
    "My neighbour's daughter",
    "A tired reporter from the coast",
    "The captain of the ferry",
    "Nobody in the village",
    "Her younger brother",
    "The new science teacher",
    "A woman with a red umbrella",
)
_DID = (
    "opened the door and looked at the moon",
    "counted the boats in the harbour twice",
    "had never seen so much rain in one night",
    "wrote a long letter about the stars",
    "repaired the telescope on the roof",
    "walked home through the quiet streets",
    "laughed, because the answer was so simple",
    "remembered what the radio had said about the storm",
)
_THEN = (
    "It was a wonderful morning, and the whole town smelled of bread.",
    '"Where did everybody go?" she asked, but no one answered.',
    "Later that year the factory closed, and nothing was quite the same.",
    "The match had ended 3:2, so the streets were full of singing people.",
    "In the end they agreed to try again on Tuesday, weather permitting.",
    "Two days later the parcel arrived, badly damaged and completely empty.",
    "They shared the last of the coffee and waited for the sun to rise.",
    "It's hard to explain, but the silence felt like an old friend.",
)


@dataclass(frozen=True)
class Cost:
    """What scoring a batch with one reward took."""

    kind: str
    texts_per_second: float  # the batch over the median of REPEATS timed calls
    load_seconds: float  # building and loading, models included
    megabytes: float | None  # rise of the process's peak memory; None where /proc does not say


@dataclass(frozen=True)
class NotMeasured:
    """Why one reward has no cost."""

    kind: str
    reason: str
    has_failed: bool  # false where its model, its library or its example is not at hand


def sample_texts(count: int) -> list[str]:
    """Two sentences each, 19 to 29 words together; the first 512 differ."""
    n = len(_WHO)
    return [f"{_WHO[i % n]} {_DID[i // n % n]}. {_THEN[i // n**2 % n]}" for i in range(count)]


def measure(kind: str, count: int) -> Cost:
    """The cost of a kind on `count` texts in one call, in this process, equal ones included."""
    before, start = _peak(), time.perf_counter()
    subject = conformance.build(registry.get(kind), texts=sample_texts(count))
    load_seconds = time.perf_counter() - start
    subject.values(subject.data)  # warm-up
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subject.values(subject.data)
        seconds.append(time.perf_counter() - start)
    after = _peak()
    rise = None if before is None or after is None else after - before
    return Cost(kind, count / statistics.median(seconds), load_seconds, rise)


def measure_apart(
    kinds: Sequence[str], count: int, files: Sequence[str] = ()
) -> Iterator[Cost | NotMeasured]:
    """Each kind in a fresh process, so that what another loaded does not count; nothing is fetched.

    `files` are reward files, which each process loads.
    """
    # As in rewards.isolation: -m would look for `rewards` in the working directory first.
    program = "import sys; sys.path[:] = sys.argv[2:]; from rewards.bench import main; "
    asked = json.dumps([kinds, count, files])
    command = [sys.executable, "-c", program + "main(sys.argv[1])", asked, *sys.path]
    left = list(kinds)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **_OFFLINE}
    ) as process:
        for line in process.stdout or ():
            row = json.loads(line)
            left.remove(row["kind"])
            yield NotMeasured(**row) if "reason" in row else Cost(**row)
    for kind in left:
        reason = f"the process that measures ended with {process.returncode}"
        yield NotMeasured(kind, reason, has_failed=True)


def main(argument: str) -> None:
    """What `measure_apart` starts: a fork of this process a kind, each printing a line of JSON."""
    kinds, count, files = json.loads(argument)
    for module in SHARED:
        with suppress(ImportError):
            importlib.import_module(module)
    context = multiprocessing.get_context("fork")
    for kind in kinds:
        process = context.Process(target=_report, args=(kind, count, files))
        process.start()
        process.join()
        if process.exitcode:
            _write(1, NotMeasured(kind, f"its process ended with {process.exitcode}", True))


def _report(kind: str, count: int, files: Sequence[str]) -> None:
    report = os.dup(1)
    os.dup2(2, 1)  # what a reward prints is no part of the report
    for file in files:
        registry.load_file(file)
    _write(report, _attempt(kind, count))


def _write(descriptor: int, outcome: Cost | NotMeasured) -> None:
    os.write(descriptor, (json.dumps(asdict(outcome)) + "\n").encode())


def _attempt(kind: str, count: int) -> Cost | NotMeasured:
    try:
        return measure(kind, count)
    except (RewardConfigError, EmbeddedError) as error:
        return NotMeasured(kind, str(error), has_failed=False)
    except RewardError as error:
        return NotMeasured(kind, str(error), has_failed=True)
    except (Exception, SystemExit) as error:  # of its __init__ or load
        return NotMeasured(kind, described(error), has_failed=True)


def _peak() -> float | None:
    """The most memory that this process has held, in MB; getrusage would count the parent's."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) / 1024 if lines else None
