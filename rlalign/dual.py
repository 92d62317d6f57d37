"""The moments' lambdas as the policy improves: steps of the dual on each iteration's samples."""

import math

import torch
from torch import Tensor

from rlalign.moments import Samples, newton_step
from rlalign.partition import Gather, keys_of
from rlalign.target import Target
from rlalign.types import ScoredRollout


def moved(
    target: Target,
    scored: ScoredRollout,
    log_ratio: Tensor,
    update: str,
    rate: float,
    gather: Gather,
) -> Target:
    """The target after one damped Newton step of its dual on an iteration's samples.

    `policy`: the policy's own means stand for the target's, which is dual ascent on the Lagrangian;
    a moment waits until the policy has come half of the way, or a lambda that was right would grow
    for as long as the policy is only on its way.

    `importance`: its samples are weighted by target / proposal, `log_ratio` (B,) being
    log reference / proposal; the step shrinks with their effective number. A prompt without a hit
    among its samples reads as one that has none, so it needs many samples a prompt.
    """
    names = [entry.name for entry in target.entries]
    index = [names.index(entry.name) for entry in target.moments]
    features = scored.features  # (B, R)
    lambdas = torch.tensor([target.lambdas[e.name] for e in target.moments], dtype=torch.float64)
    log_weights = torch.zeros(len(features), dtype=torch.float64)
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
        means = samples.features.mean(0)
        new = torch.where(has_come_near(target, means), new, lambdas)
    return target.fitted(dict(zip((e.name for e in target.moments), new.tolist(), strict=True)), {})


def has_come_near(target: Target, means: Tensor) -> Tensor:
    """(M,) whether the policy's mean is at most half as far from the wish as the reference's."""
    near = []
    for entry, mean in zip(target.moments, means.tolist(), strict=True):
        assert entry.moment is not None
        low, high = entry.moment
        base = target.bases.get(entry.name, mean)
        left, was = (abs(x - min(max(x, low), high)) for x in (mean, base))
        near.append(left <= 0.5 * was)
    return torch.tensor(near)


def change_of_log_z(before: Target, after: Target) -> float:
    """About what log Z gained from one target to the next: sum of E[phi] times lambda's change."""
    change = 0.0
    for entry in after.moments:
        assert entry.moment is not None
        change += sum(entry.moment) / 2 * (after.lambdas[entry.name] - before.lambdas[entry.name])
    return change
