"""KL to the reference: estimators, the places where each is right, and the adaptive coefficient."""

from typing import Any

import torch
from torch import Tensor

from rlalign.config import ConfigError
from rlalign.masking import last_index
from rlalign.settings.sections import KLSection

# exp(20) is 5e8: far outside any ratio that means something, far inside float32.
MAX_EXPONENT = 20.0

# Schulman's "Approximating KL divergence" names the estimators; where each may stand follows from
# the expectation of its gradient under the policy, see docs/correctness.md.
IN_THE_LOSS = ("loss", "ratio_loss")
WRONG = {
    ("k2", "reward"): "E[k2] is not the KL, so another distribution would be learnt; use k1",
    ("k3", "reward"): "its gradient is that of KL(policy|ref) - KL(ref|policy); use k1",
    ("k2", "score"): "E[k2] is not the KL, so another distribution would be learnt; use k1",
    ("k3", "score"): "its gradient is that of KL(policy|ref) - KL(ref|policy); use k1",
    ("k1", "loss"): "its gradient is zero in expectation; use k2, or put k1 in the reward",
    ("k3", "loss"): "its gradient is that of the forward KL(ref|policy); use k2",
    ("k2", "ratio_loss"): "E[k2] is not the KL; use k1 or k3",
}


def check_kl(kl: KLSection) -> None:
    """Refuse a KL that is not the one of KL(policy | reference), or that cannot be steered."""
    reason = WRONG.get((kl.estimator, kl.placement))
    if reason:
        raise ConfigError(f"kl.estimator={kl.estimator} with kl.placement={kl.placement}: {reason}")
    if kl.coef == 0 and kl.target is not None:
        raise ConfigError(
            f"kl.coef=0 with kl.target={kl.target:g}: the coefficient is adapted by factors, and 0 "
            "stays 0; start from kl.coef=0.1"
        )


def kl_tokens(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token KL(policy | reference) in nats at sampled tokens, same shape as the inputs.

    With log r = ref - policy: k1 = -log r (unbiased), k2 = log^2 r / 2, k3 = r - 1 - log r.
    """
    log_r = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return 0.5 * log_r**2
    return safe_exp(log_r) - 1.0 - log_r


def kl_charge(kl: Tensor, mask: Tensor, placement: str, coef: float) -> Tensor:
    """(B, T) what each token's reward loses to `kl` (B, T) nats, where rewards pay for it."""
    if placement == "reward":
        return coef * kl
    charge = torch.zeros_like(kl)
    if placement == "score":
        at_end = last_index(mask).unsqueeze(1)
        charge.scatter_(1, at_end, coef * kl.sum(1, keepdim=True))
    return charge


def safe_exp(x: Tensor) -> Tensor:
    """exp with the exponent clamped to +-20, so that one stray token cannot make an infinity."""
    return torch.exp(x.clamp(-MAX_EXPONENT, MAX_EXPONENT))


class KLController:
    """The coefficient beta: fixed, or steered to `target` nats a response (Ziegler 2019, eq. 2)."""

    def __init__(self, kl: KLSection) -> None:
        self.coef = kl.coef
        self.target = kl.target
        self.horizon = kl.horizon

    def update(self, kl: float, samples: int) -> None:
        """Move by at most 20% a horizon; `kl` is the one that the reward used, in nats."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        # More samples than the horizon count as one: the coefficient would otherwise turn negative.
        self.coef *= 1.0 + error * min(samples / self.horizon, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.target is not None:  # a fixed coefficient is the configuration's, also if changed
            self.coef = float(state["coef"])
