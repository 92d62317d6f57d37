"""The yardstick: how far a policy is from its target and its reference, and what its texts are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rewards.entries import RewardEntry
from rlalign.fitting import InfeasibleError, fitted, too_few_a_prompt
from rlalign.metrics import distinct_n
from rlalign.moments import Samples
from rlalign.session import Session
from rlalign.target import Target
from rlalign.yardstick.diversity import self_bleu
from rlalign.yardstick.drawing import DRAWN_BY, Drawn, Row, draw
from rlalign.yardstick.estimators import (
    Estimate,
    divergence_to_reference,
    divergence_to_target,
    mean_of,
    mean_under_target,
)
from rlalign.yardstick.log_z import Bounds, highest_potential, log_z_bounds
from rlalign.yardstick.support import Support, support_of

TO_TARGET = ("forward_kl", "reverse_kl", "tv", "js")
MOST_ALIKE = 500  # texts whose diversity is measured, where there are as many
WITNESSES = 5  # of each kind
ONE_SIDED = "one-sided: the samples support no upper one"


@dataclass(frozen=True)
class Feature:
    """One reward's values: its mean under the policy, its reference and the target."""

    role: str  # weight, moment, hard, judge, or metric
    kind: str
    wish: tuple[float, float] | None
    is_shaped: bool  # by scale, clip or threshold: the means are not those that a run logs
    means: Mapping[str, Estimate]  # policy, reference, target


@dataclass(frozen=True)
class Yardstick:
    """Everything that is said of a policy; `numbers.as_json` writes it."""

    target: Target
    notes: tuple[str, ...]  # on the target
    drawn: Drawn  # with the potential of the target
    features: Mapping[str, Feature]
    to_reference: Mapping[str, Estimate]  # KL(pi||a), KL(a||pi)
    to_target: Mapping[str, Mapping[str, Estimate]]  # divergence -> policy, reference
    support: Support
    log_z: Bounds
    texts: Mapping[str, Mapping[str, float]]  # policy, reference -> number
    witnesses: Mapping[str, Sequence[Row]]


def measure(session: Session, coef: float, target: Target, unfitted: str = "") -> Yardstick:
    """Draw, and measure; the lambdas that `target` has are fitted again to these samples.

    `unfitted` says why it has none of its own yet, where it has none.
    """
    drawn = draw(session, coef, target)
    # With an adaptive coefficient, the one it ended with.
    declared = replace(target, beta=coef, kl_target=None)
    target, notes, columns = refitted(declared, drawn)
    drawn = with_target(drawn, target)
    drawn = replace(drawn, evidence=replace(drawn.evidence, fitted=columns))
    evidence, highest = drawn.evidence, highest_potential(target)
    support = support_of(evidence, highest)
    if unfitted:
        notes = (unfitted, *notes)
        if target.moments and not columns:
            support = replace(support, refusal=unfitted)
    if coef == 0:
        refusal = "kl.coef=0: without a price on the KL there is no target"
        support = replace(support, refusal=refusal)
        bounds = Bounds(Estimate(None), Estimate(None), 0, 0)
    else:
        bounds = log_z_bounds(evidence, highest, torch.Generator().manual_seed(0))
        if support.refusal:  # the lower bound holds all the same
            bounds = replace(bounds, upper=Estimate(None, note=ONE_SIDED))
    return Yardstick(
        target=target,
        notes=notes,
        drawn=drawn,
        features=features_of(session, drawn, target, support),
        to_reference={
            "kl_policy_reference": divergence_to_reference(evidence, "reverse_kl"),
            "kl_reference_policy": divergence_to_reference(evidence, "forward_kl"),
        },
        to_target={
            name: {
                of: distance(drawn, target, support, name, of_reference=of == "reference")
                for of in DRAWN_BY
            }
            for name in TO_TARGET
        },
        support=support,
        log_z=bounds,
        texts={of: texts_of(drawn, of) for of in DRAWN_BY},
        witnesses={} if support.refusal else witnesses(drawn),
    )


def refitted(target: Target, drawn: Drawn) -> tuple[Target, tuple[str, ...], tuple[int, ...]]:
    """The lambdas that give these prompts the wished means, by all samples: those of the policy
    show what the reference's are too few to show. Also notes, and the columns that were fitted."""
    names = [entry.name for entry in target.entries]
    index = [names.index(entry.name) for entry in target.moments]
    if not index:
        return target, (), ()
    evidence = drawn.evidence
    bare = replace(target, lambdas=dict.fromkeys(target.lambdas, 0.0))
    potential = bare.potential_of(evidence.features, drawn.finished)
    log_weights = potential + evidence.log_reference - evidence.log_mixture
    if not bool((log_weights > -torch.inf).any()):
        return target, ("no sample satisfies what is hard, so no lambda was fitted",), ()
    try:
        samples = Samples(evidence.features[:, index], log_weights, evidence.prompt)
        found = fitted(target, samples, "responses of the two", "eval.target_samples")
    except InfeasibleError as error:
        note = f"not fitted to these samples, but left as they were: {error}"
        return target, (note,), ()
    moments = [entry.name for entry in target.moments]
    lambdas = dict(zip(moments, found.lambdas.tolist(), strict=True))
    errors = dict(zip(moments, found.se.tolist(), strict=True))
    shown = ", ".join(f"{name} {target.lambdas[name]:.4g}" for name in moments)
    notes = (
        f"fitted to these samples; before they were {shown}",
        too_few_a_prompt(found, "eval.samples_per_prompt"),
    )
    # Within its interval a mean is free, and its lambda 0 for certain.
    columns = tuple(i for i, at in zip(index, found.lambdas.tolist(), strict=True) if at != 0.0)
    return target.fitted(lambdas, errors), tuple(note for note in notes if note), columns


def with_target(drawn: Drawn, target: Target) -> Drawn:
    """The potential and the scores under this target."""
    evidence = drawn.evidence
    potential = target.potential_of(evidence.features, drawn.finished)
    scores = [row["score"] for row in drawn.rows]
    if target.beta > 0:
        smooth = target.potential_of(evidence.features, drawn.finished, smooth=True)
        scores = (target.beta * smooth).tolist()
    rows = [
        {**row, "score": score, "log_potential": value}
        for row, score, value in zip(drawn.rows, scores, potential.tolist(), strict=True)
    ]
    return replace(drawn, evidence=evidence.with_potential(potential), rows=rows)


def distance(
    drawn: Drawn, target: Target, support: Support, name: str, *, of_reference: bool
) -> Estimate:
    """A divergence to the target; or none, and why."""
    if support.refusal:
        return Estimate(None, note=support.refusal)
    evidence = drawn.evidence
    if name != "reverse_kl" or not target.hard:
        return divergence_to_target(evidence, name, of_reference=of_reference)
    # A softmax gives nothing exactly 0, so KL(pi||P_T) is infinite under anything hard.
    smooth = target.potential_of(evidence.features, drawn.finished, smooth=True)
    found = divergence_to_target(evidence.with_potential(smooth), name, of_reference=of_reference)
    return replace(found, note="to the target with what is hard smoothed; infinite without")


def features_of(
    session: Session, drawn: Drawn, target: Target, support: Support
) -> dict[str, Feature]:
    """Every reward, the judges among them."""
    evidence, found = drawn.evidence, {}
    for i, entry in enumerate(target.entries):
        values = evidence.features[:, i]
        means = {
            of: mean_of(values[mask], evidence.prompt[mask])
            for of, mask in (("policy", evidence.is_policys), ("reference", ~evidence.is_policys))
        }
        if support.refusal:
            means["target"] = Estimate(None, note=support.refusal)
        elif bool(values.isnan().any()):
            means["target"] = Estimate(None, note="some samples have no such value")
        else:
            means["target"] = mean_under_target(evidence, i)
        role = role_of(entry, session.config.audit.judges)
        found[entry.name] = Feature(role, entry.kind, entry.moment, entry.is_shaped, means)
    return found


def role_of(entry: RewardEntry, judges: Sequence[str]) -> str:
    if entry.is_constraint:
        return "hard" if entry.hard else "moment"
    if entry.name in judges:
        return "judge"
    return "weight" if entry.weight_at(None) else "metric"


def texts_of(drawn: Drawn, of: str) -> dict[str, float]:
    """Diversity at a fixed count of texts, perplexity under the reference, lengths."""
    mask = drawn.evidence.is_policys if of == "policy" else ~drawn.evidence.is_policys
    rows = mask.nonzero().squeeze(1)
    responses = [drawn.rows[i]["response"] for i in rows.tolist()]
    count = min(len(responses), MOST_ALIKE)
    # Evenly from all prompts: the first ones alone would be more alike.
    some = [responses[i * len(responses) // count] for i in range(count)]
    lengths = drawn.lengths[rows].double()
    return {
        "texts": count,
        **{f"distinct_{n}": distinct_n(some, n, count) for n in (1, 2, 3)},
        "self_bleu_5_words": self_bleu(some),
        "self_bleu_5_characters": self_bleu(some, characters=True),
        "perplexity_under_reference": perplexity(drawn.evidence.log_reference[rows], lengths),
        "length": float(lengths.mean()),
        "length_std": float(lengths.std()) if count > 1 else 0.0,
        "unfinished": float((~drawn.finished[rows]).double().mean()),
    }


def perplexity(log_reference: Tensor, lengths: Tensor) -> float:
    """exp of the mean negative log-probability of a token, over all tokens of (N,) responses."""
    return float((-log_reference.sum() / lengths.sum()).exp())


def witnesses(drawn: Drawn) -> dict[str, list[Row]]:
    """The responses that the policy writes most too often, and most too seldom.

    `log_ratio` is log pi / P_T; those that are forbidden count as too often, the likeliest first.
    """
    evidence = drawn.evidence
    log_z = torch.stack([part.log_weights.logsumexp(0) for part in evidence.by_prompt()])
    log_z = log_z - torch.bincount(evidence.prompt).double().log()
    log_target = evidence.log_reference + evidence.log_potential - log_z[evidence.prompt]
    ratio = evidence.log_policy - log_target  # inf where it is forbidden
    kinds = {
        "too_often": (evidence.is_policys, ratio),
        # Only the reference's: the policy seldom draws what it writes too seldom.
        "too_seldom": (~evidence.is_policys & (log_target > -torch.inf), -ratio),
    }
    found: dict[str, list[Row]] = {}
    for kind, (mask, key) in kinds.items():
        rows = mask.nonzero().squeeze(1).tolist()
        rows.sort(key=lambda i: (float(key[i]), float(evidence.log_policy[i])), reverse=True)
        seen: dict[tuple[str, str], Row] = {}
        for i in rows:
            row: dict[str, Any] = drawn.rows[i]
            value = float(ratio[i])
            shown = {
                "prompt": row["prompt"],
                "response": row["response"],
                "log_ratio": value if abs(value) < torch.inf else None,
            }
            seen.setdefault((row["prompt"], row["response"]), shown)
            if len(seen) == WITNESSES:
                break
        found[kind] = list(seen.values())
    return found
