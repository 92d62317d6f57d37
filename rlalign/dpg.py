"""The distributional policy gradient from a command line: `rlalign dpg`, `launch/dpg.py`."""

import sys
from collections.abc import Sequence

from rlalign import run_method


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit code of `rlalign.exits`."""
    return run_method.main("dpg", argv)


if __name__ == "__main__":
    sys.exit(main())
