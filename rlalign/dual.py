"""The moments' lambdas as the policy improves: steps of the dual on each iteration's samples."""

import math

import torch
from torch import Tensor

from rlalign.moments import Samples, newton_step, tilt
from rlalign.partition import Gather, keys_of
from rlalign.target import Target
from rlalign.types import ScoredRollout


def moved(
    target: Target,
    scored: ScoredRollout,
    log_ratio: Tensor,
    log_kl: Tensor,
    update: str,
    rate: float,
    gather: Gather,
) -> Target:
    """The target after one damped Newton step of its dual on an iteration's samples.

    Of each sample `log_ratio` (B,) is log reference / proposal, `log_kl` (B,) log policy /
    reference. The step shrinks with the effective number of the weighted samples.

    `policy`: the policy's own means stand for the target's, which is dual ascent on the Lagrangian;
    a moment waits until the policy has come half of the way, or a lambda that was right would grow
    for as long as the policy is only on its way. Samples of another proposal are weighted by
    policy / proposal.

    `importance`: they are weighted by target / proposal. A prompt without a hit among its samples
    reads as one that has none, so it needs many samples a prompt.
    """
    names = [entry.name for entry in target.entries]
    index = [names.index(entry.name) for entry in target.moments]
    features = scored.features  # (B, R)
    lambdas = torch.tensor([target.lambdas[e.name] for e in target.moments], dtype=torch.float64)
    log_weights = (log_ratio + log_kl).cpu().double()
    if update == "importance":
        own = features[:, index] @ lambdas
        log_weights = log_ratio.cpu().double() + scored.log_potential.cpu() - own
    rows = list(
        zip(
            features[:, index].tolist(),
            log_weights.tolist(),
            keys_of(scored.rollout.prompts),
            strict=True,
        )
    )
    everyone = gather(rows)
    numbers = {key: i for i, key in enumerate(dict.fromkeys(key for _, _, key in everyone))}
    samples = Samples(
        torch.tensor([x for x, _, _ in everyone], dtype=torch.float64),
        torch.tensor([w for _, w, _ in everyone], dtype=torch.float64),
        torch.tensor([numbers[key] if update == "importance" else 0 for _, _, key in everyone]),
    )
    if not bool((samples.log_weights > -math.inf).any()):
        return target  # nothing that was drawn is possible: nothing to learn from
    wishes = [entry.moment for entry in target.moments if entry.moment is not None]
    at = torch.zeros_like(lambdas) if update == "policy" else lambdas
    new = newton_step(samples, wishes, lambdas, at, rate)
    if update == "policy":
        means = tilt(samples, at).means
        new = torch.where(has_come_near(target, means), new, lambdas)
    return target.fitted(dict(zip((e.name for e in target.moments), new.tolist(), strict=True)), {})


def has_come_near(target: Target, means: Tensor) -> Tensor:
    """(M,) whether the policy's mean is half of the way from the reference's to the wish, or more.

    Beyond the wish counts too: there lambda must fall.
    """
    near = []
    for entry, mean in zip(target.moments, means.tolist(), strict=True):
        assert entry.moment is not None
        low, high = entry.moment
        base = target.bases.get(entry.name, mean)
        end = min(max(base, low), high)  # of the interval, the nearest to the reference
        toward = math.copysign(1.0, end - base)
        near.append((end - mean) * toward <= 0.5 * abs(end - base) or base == end)
    return torch.tensor(near)


def change_of_log_z(before: Target, after: Target) -> float:
    """About what log Z gained from one target to the next: sum of E[phi] times lambda's change.

    Under the target a mean is the wish, or the end of the interval that lambda's sign stands for.
    """
    change = 0.0
    for entry in after.moments:
        assert entry.moment is not None
        was, now = before.lambdas[entry.name], after.lambdas[entry.name]
        change += entry.moment[0 if was + now > 0 else 1] * (now - was)
    return change
