"""Several rewards as one score: build them, call all, weigh, and keep each one's credit."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards import registry, schema
from rewards.apart import Apart
from rewards.asking import Call
from rewards.building import construct
from rewards.calling import BuiltReward, Columns, Scorer, State, Value, is_async, label
from rewards.columns import PerPromptReward
from rewards.combine import Combination
from rewards.contract import LARGEST, RewardError, Score, Span, brief
from rewards.entries import Ramp, RewardEntry, check_names, parse_entries, parse_parts
from rewards.randomness import derived
from rewards.spec import RewardSpec, column_of
from rewards.together import values_of_all

logger = logging.getLogger(__name__)

__all__ = ["RewardEntry", "RewardOutput", "RewardSet", "parse_entries"]

PROBE_TEXTS = (
    " The ship left the harbour at dawn, and she watched it go.",
    "",
    " rain",
    "\U0001f680✨ 東京に雨が降る。",
    " very long" * 500 + ".",
    ' One line.\n\nAnother, with "quotes" and {"a": 1}',
)
ELSEWHERE = {"remote.http", "judge.openai"}  # kinds that ask a server
_NO_COLUMNS: Columns = MappingProxyType({})
_OF_THE_WHOLE = ("on_error", "error_value", "isolate", "deadline")  # a part's are its combination's


@dataclass(frozen=True)
class RewardOutput:
    """What B samples earned under R rewards."""

    names: tuple[str, ...]
    values: NDArray[np.float64]  # (B, R) as returned, NaN where a reward did not apply
    valid: NDArray[np.bool_]  # (B, R)
    score: NDArray[np.float64]  # (B,): sum over valid of weight * entry.shaped(value)
    spans: tuple[
        tuple[Span, ...], ...
    ]  # B, in score units, by end; the rest of the score: last action
    own_spans: tuple[
        tuple[tuple[Span, ...], ...], ...
    ]  # (R, B), as each reward returned them, whatever its weight
    skipped: Mapping[str, int]  # failures under on_error: skip and value, by reward
    weights: Mapping[str, float]  # as they were, of the rewards whose weight is on a schedule

    def __len__(self) -> int:
        return len(self.score)


class RewardSet:
    """Rewards that score together; models are loaded when it is made, after every check."""

    def __init__(
        self,
        entries: Sequence[RewardEntry],
        extra: Sequence[Callable[..., Any]] = (),
        seed: int | None = None,
    ) -> None:
        """`seed` is that of what rewards draw at random while they are built and loaded."""
        pairs = [(entry, registry.get(entry.kind, f"rewards.{entry.name}")) for entry in entries]
        for function in extra:
            spec = registry.from_function(function)
            pairs.append((RewardEntry(spec.kind.rpartition(".")[2], spec.kind), spec))
        check_names([entry.name for entry, _ in pairs])
        self._rewards: list[Scorer] = []
        try:
            for entry, spec in pairs:
                self._rewards.append(build(entry, spec, derived(seed, entry.name)))
            for reward in self._rewards:
                reward.load()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the workers of isolated rewards, which would otherwise end with this process."""
        with ExitStack() as closing:  # all of them, whatever one raises
            for reward in self._rewards:
                closing.callback(reward.close)

    @property
    def entries(self) -> tuple[RewardEntry, ...]:
        return tuple(reward.entry for reward in self._rewards)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries)

    @property
    def weights(self) -> tuple[float, ...]:
        """The final ones."""
        return tuple(entry.weight_at(None) for entry in self.entries)

    @property
    def waits(self) -> bool:
        """Whether this process waits for some reward, and this machine's processor with it."""
        return any(reward.entry.kind in ELSEWHERE or is_async(reward) for reward in self._rewards)

    @property
    def columns(self) -> frozenset[str]:
        """Columns beside prompts and completions that some reward cannot do without."""
        needed = frozenset(name for reward in self._rewards for name in reward.needs)
        return needed - {"prompts", "completions"}

    def check(self, prompts: Sequence[str], columns: Columns = _NO_COLUMNS) -> None:
        """Refuse prompts that lack a column, or with a value that a parameter does not allow.

        Raises RewardConfigError; nothing is scored.
        """
        data = {**columns, "prompts": prompts, "completions": [""] * len(prompts)}
        for reward in self._rewards:
            reward.check(data)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Columns = _NO_COLUMNS,
        iteration: int | None = None,
        weights: Mapping[str, float] = MappingProxyType({}),
        seed: int | None = None,
    ) -> RewardOutput:
        """Score B completions; every column holds B values.

        Weights on a schedule are those of the iteration, the first being 0, or the final ones;
        `weights` stand in for those of the rewards that they name. What rewards draw at random is a
        function of `seed`; without one, their streams of random numbers go on.
        Raises RewardError, or RewardConfigError where a column is missing.
        """
        return self._score(prompts, completions, columns, iteration, weights, Call(seed))

    def state_dict(self) -> dict[str, State]:
        """JSON, by name, of the rewards that have a state: see `Stateful`. Raises RewardError."""
        states = {reward.entry.name: reward.state() for reward in self._rewards}
        return {name: state for name, state in states.items() if state is not None}

    def load_state_dict(self, states: Mapping[str, State]) -> None:
        """Go on from a `state_dict`; where the sets differ, a warning says what is left out."""
        own = {r.entry.name: r for r in self._rewards if r.state() is not None}
        for name in sorted(own.keys() ^ states.keys()):
            what = "has no state there: it begins anew" if name in own else "is not here any more"
            logger.warning("of the rewards' states that were kept, '%s' %s", name, what)
        for name in own.keys() & states.keys():
            own[name].restore(states[name])

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Within it the rewards are called without a trace: their states are put back after it."""
        before = self.state_dict()
        try:
            yield
        finally:
            for reward in self._rewards:
                if reward.entry.name in before:
                    reward.restore(before[reward.entry.name])

    def probe(
        self,
        prompts: Sequence[str] = ("",),
        columns: Columns = _NO_COLUMNS,
        seed: int | None = None,
    ) -> RewardOutput:
        """Score a few awkward texts, in one batch and one alone, to meet a faulty reward early.

        The prompts and their columns are repeated in turn as far as there are texts.
        """
        turn = [i % len(prompts) for i in range(len(PROBE_TEXTS))]
        given = [prompts[i] for i in turn]
        repeated = {name: [column[i] for i in turn] for name, column in columns.items()}
        first = {name: column[:1] for name, column in repeated.items()}
        with self.measuring():
            output = self._score(given, PROBE_TEXTS, repeated, call=Call(seed, reuse=False))
            self._score(given[:1], PROBE_TEXTS[:1], first, call=Call(seed, reuse=False))
        return output

    def _score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Columns,
        iteration: int | None = None,
        given_weights: Mapping[str, float] = MappingProxyType({}),
        call: Call = Call(),  # noqa: B008 - it is handed on, never changed
    ) -> RewardOutput:
        data = {**columns, "prompts": list(prompts), "completions": list(completions)}
        size = len(completions)
        for name, column in data.items():
            if len(column) != size:
                raise RewardError(f"'{name}' has {len(column)} values for {size} completions")
        raw = np.full((size, len(self._rewards)), np.nan)
        score = np.zeros(size)
        spans: list[list[Span]] = [[] for _ in range(size)]
        own_spans, skipped, weights = [], {}, {}
        nothing: list[tuple[list[Value], int]] = [([], 0)] * len(self._rewards)
        answers = values_of_all(self._rewards, data, call) if size else nothing
        for column_index, reward in enumerate(self._rewards):
            entry = reward.entry
            weight = given_weights.get(entry.name, entry.weight_at(iteration))
            returned, failed = answers[column_index]
            own_spans.append(tuple(v.spans if isinstance(v, Score) else () for v in returned))
            if entry.on_error != "raise":
                skipped[entry.name] = failed
            if isinstance(entry.weight, Ramp):
                weights[entry.name] = weight
            for i, value in enumerate(returned):
                if value is not None:
                    raw[i, column_index] = value
                    score[i] += weight * entry.shaped(value)
                    spans[i] += score_spans(entry, value, weight)
        for i, text in enumerate(data["completions"]):
            for number in (float(score[i]), *(span.credit for span in spans[i])):
                if not abs(number) <= LARGEST:
                    raise RewardError(
                        f"the score, or a part of it, is {number:g} for sample {i}: {brief(text)}; "
                        f"the most is {LARGEST:g}: lower a weight, scale or clip"
                    )
        by_end = (
            tuple(sorted(sample, key=lambda span: (span.end, span.start))) for sample in spans
        )
        return RewardOutput(
            names=self.names,
            values=raw,
            valid=~np.isnan(raw),
            score=score,
            spans=tuple(by_end),
            own_spans=tuple(own_spans),
            skipped=MappingProxyType(skipped),
            weights=MappingProxyType(weights),
        )


def build(entry: RewardEntry, spec: RewardSpec, seed: int | None = None) -> Scorer:
    """The reward of an entry, its parameters checked once more; nothing slow is loaded."""
    params = schema.check_params(spec, entry.params, f"rewards.{entry.name}")
    if spec.joins:
        whole = {name: getattr(entry, name) for name in _OF_THE_WHOLE}
        parts = [replace(part, **whole) for part in parse_parts(entry.name, params["parts"])]
        built = [build(p, registry.get(p.kind), derived(seed, p.name)) for p in parts]
        return Combination(entry, spec, built)
    if any(column_of(value) is not None for value in params.values()):
        return PerPromptReward(entry, spec, params, seed)
    apart = Apart(label(entry, spec), seed)
    return BuiltReward(entry, spec, construct(entry, spec, params, apart, seed), apart)


def score_spans(entry: RewardEntry, value: Value, weight: float | None = None) -> list[Span]:
    """The spans of a value in score units, under this weight (default: the final one).

    Under `threshold` and `clip` the credits are the differences of the shaped running sum: dropping
    them only where the final value is clipped would let earlier credit depend on later text.
    """
    weight = entry.weight_at(None) if weight is None else weight
    if not isinstance(value, Score) or weight == 0:
        return []
    spans, total, before = [], 0.0, entry.shaped(0.0)
    for span in sorted(value.spans, key=lambda span: span.end):
        total += span.credit
        after = entry.shaped(total)
        if after != before:
            spans.append(Span(span.start, span.end, weight * (after - before)))
        before = after
    return spans
