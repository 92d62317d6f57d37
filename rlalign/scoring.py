"""What a rollout is worth: rewards of its texts, credit of its tokens, the reference's opinion."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerState

from rewards.compose import RewardSet
from rewards.contract import Span
from rewards.trl_style import Logged, context
from rewards.waiting import pulse, watcher
from rlalign.guard import stopping
from rlalign.guard.whereabouts import HERE
from rlalign.masking import SumOverRanks, last_index, masked_moments, one_rank
from rlalign.offsets import Offsets
from rlalign.policy import Policy, evaluate_rollout, logprobs_only
from rlalign.settings.sections import ScoreSection
from rlalign.target import Target
from rlalign.types import Rollout, ScoredRollout


def score_rollout(
    rollout: Rollout,
    reward_set: RewardSet,
    section: ScoreSection,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    budget: int,
    iteration: int | None = None,
    state: TrainerState | None = None,
    target: Target | None = None,
    beta: float | None = None,
    smooth: bool = False,
    seed: int | None = None,
) -> ScoredRollout:
    """Rewards, per-token rewards and the reference's log-probabilities of a rollout.

    Weights on a schedule are those of the iteration, the first being 0, or the final ones. `state`
    is what rewards written for TRL get as `trainer_state`. The reference reads the responses at the
    same time where the rewards and it do not want the same processor. `target`, by default that of
    the rewards' weights alone, gives moments and what is hard their weights in the score, at the
    KL's price `beta`; `smooth` as in `Target.potential_of`. What rewards draw is a function of
    `seed`. Raises RewardError with the reward and the sample.
    """
    device = rollout.response_ids.device
    asked, texts = (rollout, policy, budget), (rollout.prompts.texts, rollout.texts)
    fitted = {} if target is None else target.weights(beta)
    logged = Logged()
    columns = columns_of(rollout, state or TrainerState(), logged)
    # The rewards stay in the main thread: worker processes end with the thread that started them.
    overlaps = device.type != "cpu" or reward_set.waits
    beside = ThreadPoolExecutor(1, initializer=enter, initargs=(device,)) if overlaps else None
    with beside or nullcontext():
        ahead = None if beside is None else beside.submit(reference_logprobs, *asked)
        with watched():
            output = reward_set(*texts, columns, iteration, fitted, seed)
    reference = ahead.result() if ahead else reference_logprobs(*asked)
    finished = rollout.finished.cpu()
    score = potential(torch.as_tensor(output.score).float(), finished, section)  # (B,)
    of_spans = output.spans if section.credit == "spans" else ()
    spans = [clipped_spans(sample, section.clip) for sample in of_spans]
    token_rewards = place_credit(rollout, score.to(device), spans, tokenizer)
    log_potential = torch.zeros(len(rollout), dtype=torch.float64)
    features = log_potential.new_zeros(len(rollout), 0)
    if target is not None:
        features = target.features(torch.from_numpy(output.values))
        log_potential = target.potential_of(features, finished, smooth)
    return ScoredRollout(
        rollout=rollout,
        rewards=torch.as_tensor(output.values, dtype=torch.float64),
        valid=torch.as_tensor(output.valid, dtype=torch.bool, device=device),
        score=score.to(device),
        token_rewards=token_rewards,
        ref_logprobs=reference,
        log_potential=log_potential.to(device),
        features=features,
        failures=dict(output.skipped),
        weights=dict(output.weights),
        logged=logged,
        own_spans=output.own_spans,
    )


def marks(
    names: Sequence[str], own_spans: Sequence[Sequence[Sequence[Span]]], i: int
) -> dict[str, Any]:
    """`spans` of sample i as its row holds them: [start, end, credit] by reward; or nothing."""
    found = {
        name: [[span.start, span.end, float(f"{span.credit:.6g}")] for span in of_reward[i]]
        for name, of_reward in zip(names, own_spans, strict=False)  # none of scores from outside
        if of_reward[i]
    }
    return {"spans": found} if found else {}


@contextmanager
def watched() -> Iterator[None]:
    """Rewards are code of others: the run says which one it waits for, and can be stopped in it."""
    before, was = watcher.set(HERE.does), pulse.set(HERE.tick)
    try:
        with stopping.interruptible():
            yield
        HERE.does("")  # after an error it stands, because that is where it was
    finally:
        watcher.reset(before)
        pulse.reset(was)


def columns_of(rollout: Rollout, state: TrainerState, logged: Logged) -> dict[str, Any]:
    """What rewards get beside prompts and responses."""
    prompts = rollout.prompts
    return {**prompts.columns, **context(sampled_ids(rollout), prompts.messages, state, logged)}


def enter(device: torch.device) -> None:
    """What a thread does first: its current GPU is the first one, whatever the main thread's is."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def sampled_ids(rollout: Rollout) -> list[list[int]]:
    """The ids of each response, the token that ends it included."""
    lengths = rollout.response_mask.sum(1).tolist()
    rows = rollout.response_ids.tolist()
    return [row[:n] for row, n in zip(rows, lengths, strict=True)]


def score_given(
    rollout: Rollout, scores: Sequence[float], policy: Policy, budget: int, beta: float = 0.0
) -> ScoredRollout:
    """A rollout with scores from outside, one a response, in place of the run's rewards.

    `beta` is the price of a nat, by which they become the target's potential.
    """
    if len(scores) != len(rollout):
        raise ValueError(f"{len(scores)} scores were given for {len(rollout)} responses")
    score = torch.tensor([float(s) for s in scores], device=rollout.response_ids.device)
    if not bool(score.isfinite().all()):
        raise ValueError("a score is NaN or infinite")
    none = score.new_zeros(len(rollout), 0)
    return ScoredRollout(
        rollout=rollout,
        rewards=none.double().cpu(),
        valid=none.bool(),
        score=score,
        token_rewards=place_credit(rollout, score),
        ref_logprobs=reference_logprobs(rollout, policy, budget),
        log_potential=score.double() / beta if beta > 0 else torch.zeros_like(score).double(),
        features=none.double().cpu(),
        failures={},
    )


def reference_logprobs(rollout: Rollout, policy: Policy, budget: int) -> Tensor:
    """(B, T) float32 log-probabilities of the responses under the reference."""
    with policy.reference() as reference:
        return evaluate_rollout(reference, rollout, logprobs_only, budget)["logprobs"]


def potential(raw: Tensor, finished: Tensor, section: ScoreSection) -> Tensor:
    """(B,) the score that the target holds: the weighted sum, clipped, less the EOS penalty."""
    score = raw if section.clip is None else raw.clamp(*section.clip)
    return score - section.missing_eos_penalty * (~finished).float()


def clipped_spans(spans: Sequence[Span], clip: tuple[float, float] | None) -> Sequence[Span]:
    """The spans of a clipped score: the differences of the clipped running sum of their credits.

    Dropping the credit of clipped samples alone would let it depend on the text behind it.
    """
    if clip is None:
        return spans
    low, high = clip
    kept, total, before = [], 0.0, min(max(0.0, low), high)
    for span in spans:
        total += span.credit
        after = min(max(total, low), high)
        if after != before:
            kept.append(Span(span.start, span.end, after - before))
        before = after
    return kept


def place_credit(
    rollout: Rollout,
    score: Tensor,
    spans: Sequence[Sequence[Span]] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Tensor:
    """(B, T) float32 rewards on actions that add up to `score` (B,), to one rounding.

    A span's credit lands on the token that fixes the character at its `end`, the first from which
    the match can no longer be undone; what spans leave over lands on the last action, EOS included.
    """
    placed = torch.zeros(rollout.response_ids.shape)  # on the CPU: a span is a write of its own
    last = last_index(rollout.action_mask).cpu()  # (B,)
    offsets = Offsets(tokenizer) if tokenizer is not None and any(spans) else None
    for row, row_spans in enumerate(spans):
        if not row_spans or offsets is None:
            continue
        ids = rollout.response_ids[row][rollout.response_mask[row]].tolist()
        fixed = offsets.fixed(ids, rollout.texts[row])
        actions = rollout.action_mask[row].tolist()
        for span in row_spans:
            token = bisect_right(fixed, span.end)  # the first that fixes more characters than `end`
            # Credit that falls on a token the policy did not choose goes to its next action.
            token = next((t for t in range(token, len(ids)) if actions[t]), int(last[row]))
            placed[row, token] += span.credit
    total = score.detach().cpu().double()
    rows = torch.arange(len(total))
    # In float64 and after the others are rounded, so that their errors end here too.
    left = total - placed.double().sum(1)
    placed[rows, last] = (placed[rows, last].double() + left).float()
    return placed.to(score.device)


def rollout_stats(
    scored: ScoredRollout,
    names: Sequence[str],
    skipping: Sequence[str] = (),
    sum_over_ranks: SumOverRanks = one_rank,
) -> dict[str, float]:
    """Score, rewards and lengths of a rollout over every rank's samples, by metric key.

    `names` are the rewards' in order, `skipping` those whose failures are counted.
    """
    everyone = torch.ones_like(scored.score, dtype=torch.bool)

    def mean(x: Tensor, mask: Tensor = everyone) -> float:
        on_device = x.to(everyone.device, torch.float32)
        return float(masked_moments(on_device, mask, sum_over_ranks)[0])

    score, variance = masked_moments(scored.score, everyone, sum_over_ranks)
    lengths = scored.rollout.response_mask.sum(1).float()
    stats = {
        "score": float(score),
        "score/std": float(variance.sqrt()),
        "length": mean(lengths),
        "finished": mean(scored.rollout.finished),
        "tokens": float(sum_over_ranks(lengths.sum())),
    }
    for i, name in enumerate(names):
        valid = scored.valid[:, i]
        share = mean(valid)
        if share > 0:  # else there is no mean: 0 would be read as one, and NaN spoil others
            stats[f"reward/{name}"] = mean(scored.rewards[:, i], valid)
        stats[f"reward/{name}/valid"] = share
    for name in skipping:
        failed = torch.tensor(float(scored.failures.get(name, 0)), device=scored.score.device)
        stats[f"reward/{name}/failed"] = float(sum_over_ranks(failed))
    for name, weight in scored.weights.items():
        stats[f"reward/{name}/weight"] = weight
    return stats


def logged_stats(of_ranks: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """reward/ENTRY/log/NAME: the mean of what the rewards logged under a name on every rank."""
    values: dict[str, list[float]] = {}
    for metrics in of_ranks:
        for name, logged in metrics.items():
            values.setdefault(name, []).extend(logged)
    stats = {}
    for name, logged in sorted(values.items()):
        entry, _, rest = name.partition("/")
        stats[f"reward/{entry}/log/{rest}"] = sum(logged) / len(logged)
    return stats
