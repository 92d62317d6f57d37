"""A run on the oracle's model for a launcher: FOLDER [CALL at which rank 1's reward breaks]."""

import os
import sys
from pathlib import Path

import oracle
from test_resume import breaks_at_call, run

if __name__ == "__main__":
    breaks = len(sys.argv) > 2 and os.environ["RANK"] == "1"
    reward = breaks_at_call(int(sys.argv[2])) if breaks else oracle.sparse
    run(Path(sys.argv[1]), reward=reward, model={"lora": {"r": 2}})
