"""Train a language model toward a target distribution by the distributional policy gradient.

    accelerate launch launch/dpg.py --sampling.samples_per_prompt=8
    accelerate launch launch/dpg.py --config experiments/X.yaml --dpg.divergence=js

`rlalign config` prints every setting; docs/target.md says what the target is.
"""

import sys

from rlalign.dpg import main

if __name__ == "__main__":
    sys.exit(main())
