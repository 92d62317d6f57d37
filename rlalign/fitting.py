"""From a declared target to a fitted one: ask the reference, say what can be had, fit lambda."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rewards.constraints import shown_moment
from rewards.trl_style import Logged
from rlalign.batches import calls_of_rank, shares
from rlalign.config import ConfigError
from rlalign.moments import Fit, Samples, fit, tilt
from rlalign.prompts import scheduled
from rlalign.scoring import columns_of, watched
from rlalign.session import Session
from rlalign.target import Target
from rlalign.types import Rollout

LEAST = 5  # effective responses that show a wish, below which its lambda is anybody's guess
ENOUGH = 100  # effective samples, below which the errors of lambda are worth a note
# The same of a single prompt: of 27 prompts with base rates about .03, 64 samples each (8 effective
# ones) and a wish of .5, a fit delivers .63; 128 (15 effective) .54; base rate .1, 64 (22) .52.
ENOUGH_A_PROMPT = 20


class InfeasibleError(ConfigError):
    """What a target asks for cannot be had, as far as the reference's samples show."""


@dataclass(frozen=True)
class Wish:
    """One constraint before training."""

    name: str
    asked: tuple[float, float]  # (1, 1) where it is hard
    base: float  # mean under the reference
    base_se: float
    weight: float  # lambda; log epsilon where it is hard
    weight_se: float | None  # None where it is hard: epsilon is chosen, not fitted


@dataclass(frozen=True)
class Feasibility:
    """What the reference's samples say of a target before any training."""

    wishes: tuple[Wish, ...]
    samples: int
    prompts: int
    ess: float  # of all samples under the fitted target
    impossible_prompts: int  # without one sample that satisfies what is hard
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"target: {self.samples} responses of the reference to {self.prompts} prompt(s), worth "
            f"{self.ess:.0f} of the target"
        ]
        for wish in self.wishes:
            low, high = wish.asked
            asked = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            sign = "log ε" if wish.weight_se is None else "λ"
            error = f" ± {wish.weight_se:.2g}" if wish.weight_se else ""
            lines.append(
                f"  {wish.name}: {wish.base:.4g} ± {wish.base_se:.2g} under the reference, asked "
                f"{asked}, {sign} {wish.weight:.4g}{error}"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Drawn:
    """The reference's responses on every rank, as a fit reads them."""

    features: Tensor  # (N, R) shaped values
    finished: Tensor  # (N,)
    prompt: Tensor  # (N,) int64


@torch.no_grad()
def fit_target(session: Session, target: Target) -> tuple[Target, Feasibility]:
    """The target with its lambdas and epsilons, and what the reference's samples say of it.

    Raises InfeasibleError, in words, where a wish cannot be met.
    """
    drawn = draw(session, target)
    values = drawn.features
    names = [entry.name for entry in target.entries]
    rates = {
        entry.name: float(per_prompt(values[:, names.index(entry.name)], drawn.prompt).mean())
        for entry in target.hard
    }
    check_hard(target, values, rates)
    # With the constraints at nothing the potential is that of the weights, and -inf where hard.
    declared = target.fitted(dict.fromkeys((e.name for e in target.moments), 0.0), {}, rates)
    base = declared.potential_of(values, drawn.finished)
    index = [names.index(entry.name) for entry in target.moments]
    samples = Samples(values[:, index], base, drawn.prompt)
    found = fitted(target, samples) if index else None
    lambdas, errors = {}, {}
    if found is not None:
        for i, entry in enumerate(target.moments):
            lambdas[entry.name] = float(found.lambdas[i])
            errors[entry.name] = float(found.se[i])
    done = replace(
        target.fitted(lambdas, errors, rates),
        bases={
            entry.name: float(per_prompt(values[:, i], drawn.prompt).mean())
            for i, entry in zip(index, target.moments, strict=True)
        },
    )
    return done, report(done, drawn, samples, found)


def draw(session: Session, target: Target) -> Drawn:
    """Responses of the reference to some of the training prompts, with the rewards' values."""
    section, ranks = session.config.target, session.ranks
    prompts, each = shares(len(session.prompts), section.samples, section.samples_per_prompt)
    chosen = sorted(scheduled(len(session.prompts), session.config.train.seed, 0, prompts))
    mine = calls_of_rank(chosen, each, ranks.rank, ranks.size)
    rows = ranks.together(
        lambda: [
            (call, row)
            for call, part, n in mine
            for row in valued(session, target, sample(session, part, n, call), part, call)
        ]
    )
    # By prompt, those of one as they were drawn: a row begins with its prompt.
    in_order = sorted(ranks.gather(rows), key=lambda numbered: (numbered[1][0], numbered[0]))
    everyone = [row for _, row in in_order]
    numbers = {number: i for i, number in enumerate(chosen)}
    return Drawn(
        torch.tensor([values for _, _, values in everyone], dtype=torch.float64),
        torch.tensor([finished for _, finished, _ in everyone]),
        torch.tensor([numbers[number] for number, _, _ in everyone]),
    )


def sample(session: Session, numbers: Sequence[int], n: int, call: int) -> Rollout:
    """`n` responses of the reference to each of these prompts."""
    engine = session.measuring_engine()
    batch = session.prompts.batch(numbers, session.ranks.device)
    with session.policy.reference() as reference:
        engine.sync(reference)
        return engine.generate(batch, n, session.generator("fit", 0, call, of_rank=False))


def valued(
    session: Session, target: Target, rollout: Rollout, numbers: Sequence[int], call: int
) -> list[tuple[int, bool, list[float]]]:
    """(prompt, finished, shaped values) of each response of a call of the sampler."""
    prompts = rollout.prompts
    columns = columns_of(rollout, session.trainer_state(0), Logged())
    seed = session.seed("rewards of fit", 0, call, of_rank=False)
    with session.reward_set.measuring(), watched():
        output = session.reward_set(list(prompts.texts), list(rollout.texts), columns, seed=seed)
    features = target.features(torch.from_numpy(output.values)).tolist()
    group, finished = rollout.group.tolist(), rollout.finished.tolist()
    return [(numbers[g], f, row) for g, f, row in zip(group, finished, features, strict=True)]


def check_hard(target: Target, features: Tensor, rates: dict[str, float]) -> None:
    """Refuse what no response satisfied, alone or together."""
    n = len(features)
    for name, rate in rates.items():
        if rate == 0.0:
            raise InfeasibleError(
                f"rewards.{name}.hard=true: none of {n} responses of the reference satisfies it: "
                f"its base rate is below {3 / n:.2g} (95%), and sampling alone does not get there. "
                "Ask for something more frequent, raise target.samples, or begin with a weight"
            )
    hard = [i for i, entry in enumerate(target.entries) if entry.hard]
    if hard and not bool((features[:, hard] > 0.5).all(1).any()):
        named = " and ".join(f"rewards.{target.entries[i].name}" for i in hard)
        shown = ", ".join(f"{name} {rate:.2g}" for name, rate in rates.items())
        raise InfeasibleError(
            f"{named} are hard, and none of {n} responses satisfies all of them (base rates: "
            f"{shown}); they contradict each other, or need more target.samples"
        )


def fitted(
    target: Target,
    samples: Samples,
    of: str = "responses of the reference",
    setting: str = "target.samples",
) -> Fit:
    """The fit of every moment; InfeasibleError says which wish cannot be met, and why.

    `of` and `setting` say in it whose the samples are and what raises their number.
    """
    entries, possible = target.moments, samples.possible()
    wishes = [entry.moment for entry in entries if entry.moment is not None]
    base = tilt(possible, torch.zeros(len(entries), dtype=torch.float64)).means.tolist()
    for i, entry in enumerate(entries):
        low, high = reach(possible, i)
        where = f"rewards.{entry.name}.moment={shown_moment(entry.moment)}"
        among = f"{len(possible.features)} {of}"
        if low == high and not wishes[i][0] <= low <= wishes[i][1]:
            raise InfeasibleError(
                f"{where}: its value is {low:g} in all {among}: what is never seen cannot be "
                f"weighed up. Ask for something more frequent, raise {setting}, or begin with a "
                "weight"
            )
        is_held = wishes[i][0] <= base[i] <= wishes[i][1]
        if not is_held and (wishes[i][0] >= high or wishes[i][1] <= low):
            raise InfeasibleError(
                f"{where} is out of reach: by weighing {among} within each prompt the mean can be "
                f"{low:.4g} to {high:.4g} (unweighted {base[i]:.4g}). "
                + why_out_of_reach(possible.features[:, i], (low, high), wishes[i], setting)
            )
    found = fit(possible, wishes)
    if not found.is_reached:
        raise InfeasibleError(contradiction(target, possible, wishes, base))
    for entry, carried in zip(entries, carrying(possible, found), strict=True):
        if carried < LEAST:
            raise InfeasibleError(
                f"rewards.{entry.name}.moment={shown_moment(entry.moment)}: its lambda would rest "
                f"on {carried:.1f} of {len(possible.features)} {of}, and {LEAST} are the least; "
                f"raise {setting}, or ask for something more frequent"
            )
    return found


def carrying(samples: Samples, found: Fit) -> list[float]:
    """How many effective responses each lambda rests on: on the rarer side of the mean.

    Samples that only say what is common, as those of a prompt that never shows it, carry nothing.
    """
    tilted = tilt(samples, found.lambdas)
    apart = tilted.weights.unsqueeze(1) * (samples.features - tilted.of_prompts[samples.prompt])
    numbers = []
    for column, at in zip(apart.T, found.lambdas.tolist(), strict=True):
        sides = column.clamp(min=0.0), (-column).clamp(min=0.0)
        effective = [float(x.sum() ** 2 / (x**2).sum().clamp(min=1e-300)) for x in sides]
        numbers.append(min(effective) if at != 0.0 else math.inf)
    return numbers


def why_out_of_reach(
    values: Tensor, ends: tuple[float, float], wish: tuple[float, float], setting: str
) -> str:
    """And what to do, of a wish beyond the ends of what weighing can give."""
    too_high = wish[0] >= ends[1]
    word, more = ("above", "less") if too_high else ("below", "more")
    end, seen = (ends[1], values.max()) if too_high else (ends[0], values.min())
    reason = f"No response has a value {word} {float(seen):.4g}"
    if float(seen) != end:
        reason = f"Some prompts show no value as far {word} as others do"
    return f"{reason}; ask for {more}, raise {setting}, or choose other prompts"


def reach(samples: Samples, column: int) -> tuple[float, float]:
    """The least and the largest mean that weights within the prompts can give one feature."""
    x = torch.where(samples.log_weights > -math.inf, samples.features[:, column], math.nan)
    ends = []
    for kind, worst in (("amin", math.inf), ("amax", -math.inf)):
        start = torch.full((samples.prompts,), worst, dtype=x.dtype)
        ends.append(start.scatter_reduce(0, samples.prompt, x.nan_to_num(worst), kind).mean())
    return float(ends[0]), float(ends[1])


def contradiction(
    target: Target, samples: Samples, wishes: Sequence[tuple[float, float]], base: list[float]
) -> str:
    """Which wishes, each possible alone, are not possible together."""
    entries = target.moments
    shown = [f"rewards.{e.name}.moment={shown_moment(e.moment)}" for e in entries]
    rates = ", ".join(f"{e.name} {x:.3g}" for e, x in zip(entries, base, strict=True))
    if len(entries) == 1:
        return (
            f"{shown[0]} is too near the end of what weighing the reference's samples can give "
            f"(under the reference: {rates}). Ask for less, or raise target.samples"
        )
    for i in range(len(entries)):
        for j in range(i + 1, len(entries)):
            if not fit(samples.columns([i, j]), [wishes[i], wishes[j]]).is_reached:
                return (
                    f"{shown[i]} and {shown[j]} contradict each other: each could be had alone, "
                    f"no weights give both (under the reference: {rates}). Ask for less of one"
                )
    return (
        f"{', '.join(shown)} cannot be had together, although any two can (under the reference: "
        f"{rates}). Ask for less, or for intervals"
    )


def report(target: Target, drawn: Drawn, samples: Samples, found: Fit | None) -> Feasibility:
    names, wishes, notes = [entry.name for entry in target.entries], [], []
    for entry in (*target.hard, *target.moments):
        values = drawn.features[:, names.index(entry.name)]
        base, error = float(per_prompt(values, drawn.prompt).mean()), None
        weight = target.log_epsilon.get(entry.name, 0.0)
        if entry.moment is not None:
            weight, error = target.lambdas[entry.name], target.errors[entry.name]
        asked = entry.moment or (1.0, 1.0)
        se = error_of_mean(values, drawn.prompt)
        wishes.append(Wish(entry.name, asked, base, se, weight, error))
    prompts, possible = int(drawn.prompt.max()) + 1, samples.possible().prompts
    of_base = (samples.log_weights > -math.inf).sum()
    ess = float(of_base if found is None else found.ess.sum())
    if possible < prompts:
        notes.append(
            f"{prompts - possible} of {prompts} prompts have no response that satisfies what is "
            "hard: they were left out of the fit"
        )
    if found is not None and ess < ENOUGH:
        notes.append(
            f"{ess:.0f} effective samples make a rough fit; it is refined as the policy improves, "
            "and target.samples raises it from the start"
        )
    if found is not None and (note := too_few_a_prompt(found, "target.samples_per_prompt")):
        notes.append(note)
    return Feasibility(
        tuple(wishes), len(drawn.features), prompts, ess, prompts - possible, tuple(notes)
    )


def too_few_a_prompt(found: Fit, setting: str) -> str:
    """A note where the samples of most prompts hardly show what is wished; empty elsewhere."""
    median = float(found.ess.median())
    if median >= ENOUGH_A_PROMPT:
        return ""
    return (
        f"most prompts' samples are worth {median:.0f} of their target or fewer, and under "
        f"{ENOUGH_A_PROMPT} lambda comes out too far from 0; raise {setting}"
    )


def per_prompt(values: Tensor, prompt: Tensor) -> Tensor:
    """(P,) mean of each prompt's values."""
    size = int(prompt.max()) + 1
    sums = torch.zeros(size, dtype=values.dtype).index_add(0, prompt, values)
    return sums / torch.bincount(prompt, minlength=size)


def error_of_mean(values: Tensor, prompt: Tensor) -> float:
    """Standard error of the mean over prompts, the prompts taken as given."""
    means, counts = per_prompt(values, prompt), torch.bincount(prompt).double()
    centred = (values - means[prompt]) ** 2 / ((counts - 1).clamp(min=1) * counts)[prompt]
    return float(centred.sum().sqrt()) / len(means)
