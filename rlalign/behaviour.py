"""What the behaviour policy, the one that sampled, said of each token before the update.

In float32 the decode loop has it already: a token's log-probability, entropy and value are at hand
as it is drawn, and a pass over the whole text would only repeat them, for a seventh of an
iteration's work. Elsewhere that pass is made.
"""

import logging
import math

import torch
from torch import Tensor

from rlalign.policy import Policy, all_outputs, evaluate_rollout
from rlalign.types import Rollout

logger = logging.getLogger(__name__)

# By which a token's numbers may differ between the decode loop and a pass (nats; values above 1 in
# proportion): float32's rounding over a deep model. Wrong weights or caches are off by tenths.
AGREES = 1e-3


@torch.no_grad()
def behaviour(policy: Policy, rollout: Rollout, budget: int) -> tuple[dict[str, Tensor], Tensor]:
    """`all_outputs` of a rollout, each (B, T), and the tokens (B, T) that a pass has read.

    What the sampler noted is used where a pass over the longest response agrees with it, and that
    response's numbers are those of the pass. The caller sees to it that the policy has not moved
    since (`Trainer.step` drops what is stale).
    """
    mask = rollout.response_mask
    if rollout.recorded is None:
        return evaluate_rollout(policy, rollout, all_outputs, budget), mask
    row = mask.sum(1).argmax().view(1)
    passed = evaluate_rollout(policy, rollout.rows(row), all_outputs, budget)
    outputs = {name: x.clone() for name, x in rollout.recorded.outputs.items()}
    width = passed["logprobs"].shape[1]
    gap = max(apart(outputs[name][row, :width], x) for name, x in passed.items())
    if not gap < AGREES:
        logger.warning(
            "what the sampler noted is off by up to %.2g from a pass over the same tokens: it is "
            "not used, and an iteration takes a pass longer",
            gap,
        )
        return evaluate_rollout(policy, rollout, all_outputs, budget), mask
    for name, x in passed.items():
        outputs[name][row, :width] = x
    read = torch.zeros_like(mask)
    read[row] = mask[row]
    return outputs, read


def apart(noted: Tensor, passed: Tensor) -> float:
    """The largest difference; infinite where one is no number."""
    gap = ((noted - passed).abs() / passed.abs().clamp(min=1.0)).amax()
    return float(gap.nan_to_num(nan=math.inf))
