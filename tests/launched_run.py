"""A run on the oracle's model: FOLDER [CALL at which the last rank's reward breaks]."""

import os
import sys
from pathlib import Path

import oracle
from test_resume import breaks_at_call, run

from rlalign.exits import run_safely

if __name__ == "__main__":
    is_last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
    breaks = len(sys.argv) > 2 and is_last
    reward = breaks_at_call(int(sys.argv[2])) if breaks else oracle.sparse
    model = {"lora": {"r": 2}}
    iterations = int(os.environ.get("ITERATIONS", "5"))
    sys.exit(
        run_safely(
            lambda: run(Path(sys.argv[1]), reward=reward, model=model, iterations=iterations)
        )
    )
