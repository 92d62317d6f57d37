"""Train a reward model on preference pairs, through TRL's RewardTrainer.

    accelerate launch launch/reward_model.py
    accelerate launch launch/reward_model.py --pairs.path=my_pairs.jsonl --train.epochs=1

Without --config it runs experiments/reward_model.yaml. The folder that it saves is opened by the
reward `model.preference`; the lines for a configuration are printed at the end.
"""

import sys

from rlalign.reward_model import main

if __name__ == "__main__":
    sys.exit(main())
