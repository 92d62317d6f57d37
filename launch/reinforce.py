"""Train a language model by REINFORCE with a leave-one-out baseline (RLOO).

    accelerate launch launch/reinforce.py --sampling.samples_per_prompt=4
    accelerate launch launch/reinforce.py --config experiments/X.yaml --kl.coef=0.2

`rlalign config` prints every setting. `launch/rloo.py` runs TRL's trainer of that name instead.
"""

import sys

from rlalign.reinforce import main

if __name__ == "__main__":
    sys.exit(main())
