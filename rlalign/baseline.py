"""Baselines that leave a policy gradient's expectation where it is."""

import torch
from torch import Tensor


def leave_one_out(values: Tensor, group: Tensor) -> Tensor:
    """(B,) the mean of the other values (B,) with the same `group` (B,); 0 where there are none.

    A sample's own value is not in it, so it is independent of the sample, and the gradient stays
    unbiased (Kool et al. 2019). Off the policy hand in ratio times reward: its mean is the reward's
    under the policy.
    """
    _, index = torch.unique(group, return_inverse=True)
    size = int(index.max()) + 1 if len(index) else 0
    sums = values.new_zeros(size).index_add(0, index, values)
    counts = torch.bincount(index, minlength=size).to(values.dtype)
    return (sums[index] - values) / (counts[index] - 1.0).clamp(min=1.0)
