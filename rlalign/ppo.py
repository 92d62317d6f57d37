"""PPO from a command line: `python -m rlalign.ppo`, `rlalign ppo`, `launch/ppo.py`."""

import sys
from collections.abc import Sequence

from rlalign import run_method


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit code of `rlalign.exits`."""
    return run_method.main("ppo", argv)


if __name__ == "__main__":
    sys.exit(main())
