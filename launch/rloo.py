"""Train a language model with RLOO, by TRL's trainer, on the configuration of a PPO run.

    accelerate launch launch/rloo.py --config experiments/quickstart.yaml
    accelerate launch launch/rloo.py --config experiments/X.yaml --trl.num_generations=16

docs/trl.md says what becomes of each setting, and which are refused.
"""

import sys

from rlalign.trl_trainers.run import main

if __name__ == "__main__":
    sys.exit(main("rloo"))
