"""What happens before a run: libraries told to be quiet, names and notices."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rlalign.terminal import printable

QUICKSTART = "experiments/quickstart.yaml"


def is_rank_zero() -> bool:
    """Whether this process speaks for the run, known before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """A notice on stderr, once a run."""
    if is_rank_zero():
        print(printable(f"rlalign: {line}"), file=sys.stderr, flush=True)


class Printable(logging.Formatter):
    """Log lines in which nothing acts on the terminal: they may hold what a model wrote."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def quiet_libraries() -> None:
    """Our own notices on stderr, libraries' only from warnings on, progress bars off."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Printable("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    level = logging.INFO if is_rank_zero() else logging.WARNING
    for name in ("rlalign", "rewards"):
        logging.getLogger(name).setLevel(level)
    # torch says this of meetings of processes on a CPU.
    warnings.filterwarnings("ignore", message=".*No device id is provided.*")
    # peft asks transformers by an older name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def config_stem(argv: Sequence[str], default: str) -> str:
    """The configuration file's name without its ending: how an unnamed run's folder begins."""
    chosen = default
    for i, argument in enumerate(argv):
        if argument == "--config" and i + 1 < len(argv):
            chosen = argv[i + 1]
        elif argument.lstrip("-").startswith("config="):
            chosen = argument.partition("=")[2]
    return Path(chosen).stem
