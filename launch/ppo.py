"""Train a language model with PPO on readable rewards.

    accelerate launch launch/ppo.py
    accelerate launch launch/ppo.py --config experiments/X.yaml --ppo.lr=2e-5
    accelerate launch --config_file launch/accelerate/cpu2.yaml launch/ppo.py

Without --config it runs experiments/quickstart.yaml. `rlalign config` prints every setting.
"""

import sys

from rlalign.ppo import main

if __name__ == "__main__":
    sys.exit(main())
