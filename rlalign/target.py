"""The target distribution that a configuration declares: P_T(y|x) = a(y|x) exp(potential) / Z(x).

a is the reference as sampled. Each reward adds to the potential: weight / beta times its value; or
lambda times it, where a moment is wished; or 0 where it holds and -inf where it does not, if hard.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.compose import RewardSet
from rewards.contract import RewardError
from rewards.entries import RewardEntry
from rlalign.config import ConfigError
from rlalign.files import sha256
from rlalign.settings.sections import RunConfig, ScoreSection

SMOOTHING = 0.003  # epsilon over the base rate: how much of the target may violate what is hard


@dataclass(frozen=True)
class Target:
    """What a run is to come near; λ and ε are 0 and none until they are fitted."""

    entries: tuple[RewardEntry, ...]
    beta: float  # reward per nat; 0: the weights have no target
    score: ScoreSection
    reference: Mapping[str, Any]  # what `a` is: model, temperature, longest response, stops
    lambdas: Mapping[str, float] = field(default_factory=dict)  # of the moments, by reward
    errors: Mapping[str, float] = field(default_factory=dict)  # standard errors of the lambdas
    log_epsilon: Mapping[str, float] = field(default_factory=dict)  # of what is hard, smoothed
    bases: Mapping[str, float] = field(default_factory=dict)  # the moments' means under `a`
    sources: tuple[str, ...] = ()  # sha256 of the files that define rewards
    kl_target: float | None = None  # nats that beta is steered to; None: beta stays
    rewards: RewardSet | None = field(default=None, compare=False, repr=False)

    # -- what it is ----------------------------------------------------------------------------

    @property
    def moments(self) -> tuple[RewardEntry, ...]:
        return tuple(entry for entry in self.entries if entry.moment is not None)

    @property
    def hard(self) -> tuple[RewardEntry, ...]:
        return tuple(entry for entry in self.entries if entry.hard)

    @property
    def is_fitted(self) -> bool:
        """Whether every moment has its lambda and everything hard its epsilon."""
        has_lambdas = all(entry.name in self.lambdas for entry in self.moments)
        return has_lambdas and all(entry.name in self.log_epsilon for entry in self.hard)

    @property
    def hash(self) -> str:
        """sha256 of the declaration: the wishes, not what they were fitted to."""
        return self._digest({"sources": self.sources} if self.sources else {})

    @property
    def wishes(self) -> str:
        """The same without the reward files' content, which changes with a mere comment."""
        return self._digest({})

    def _digest(self, more: Mapping[str, Any]) -> str:
        declared = {
            "rewards": {entry.name: entry.settings() for entry in self.entries},
            "beta": self.beta,
            "clip": self.score.clip,
            "missing_eos_penalty": self.score.missing_eos_penalty,
            "reference": self.reference,
            **more,
        }
        canonical = json.dumps(declared, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def __str__(self) -> str:
        """The formula, then where each number of it comes from."""
        weighted, fitted, notes = [], [], []
        for entry in self.entries:
            if entry.moment is not None:
                fitted.append(f"λ_{entry.name}·{entry.name}(x, y)")
                notes.append(self._moment_note(entry))
            elif not entry.hard and entry.weight_at(None):
                factor = entry.weight_at(None) / self.beta if self.beta else math.inf
                weighted.append(f"{factor:.4g}·{entry.name}(x, y)")
                notes.append(f"{factor:.4g} = weight {entry.weight_at(None):g} / β {self.beta:g}")
                if self.kl_target is not None:
                    notes[-1] += f" at the start; β is steered to {self.kl_target:g} nats of KL"
            if entry.is_shaped and (entry.is_constraint or entry.weight_at(None)):
                notes.append(f"{entry.name}(x, y) = {shown_shape(entry)}")
        if weighted and self.score.clip is not None and self.beta:
            low, high = (end / self.beta for end in self.score.clip)
            weighted = [f"clip({' + '.join(weighted)}, {low:.4g}, {high:.4g})"]
        terms = [*weighted, *fitted]
        if self.score.missing_eos_penalty and self.beta:
            terms.append(f"{-self.score.missing_eos_penalty / self.beta:.4g}·[y has no end]")
        formula = "P_T(y|x) ∝ a(y|x)"
        if terms:
            formula += " · exp( " + " + ".join(terms).replace("+ -", "- ") + " )"
        formula += "".join(f" · 1[{entry.name}(x, y) = 1]" for entry in self.hard)
        shown = ", ".join(f"{key} {value}" for key, value in self.reference.items())
        return "\n    ".join([formula, f"a: {shown}", *notes])

    def _moment_note(self, entry: RewardEntry) -> str:
        assert entry.moment is not None
        low, high = entry.moment
        wish = f"= {low:g}" if low == high else f"in [{low:g}, {high:g}]"
        if entry.name not in self.lambdas:
            return f"λ_{entry.name}, not fitted yet, so that E[{entry.name}] {wish}"
        error = self.errors.get(entry.name)
        shown = f"{self.lambdas[entry.name]:.4g}" + (f" ± {error:.2g}" if error else "")
        return f"λ_{entry.name} = {shown}, so that E[{entry.name}] {wish}"

    # -- what it says of a response ------------------------------------------------------------

    def log_potential(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
        finished: Sequence[bool] | None = None,
    ) -> Tensor:
        """(B,) float64 log P_T / a up to log Z(x); -inf where something hard is violated."""
        if self.rewards is None:
            raise RuntimeError("this target was made without its rewards; use potential_of")
        if waiting := [entry.name for entry in self.moments if entry.name not in self.lambdas]:
            raise RuntimeError(f"lambda of {', '.join(waiting)} is not fitted yet; fit_target does")
        output = self.rewards(prompts, completions, columns or {})
        ended = torch.ones(len(completions)) if finished is None else torch.tensor(finished)
        features = self.features(torch.from_numpy(output.values))
        return self.potential_of(features, ended.bool())

    def potential_of(self, features: Tensor, finished: Tensor, smooth: bool = False) -> Tensor:
        """The same from `features` (B, R) and whether each response has ended (B,).

        `smooth` gives what violates something hard log epsilon in place of -inf.
        """
        weighted = torch.zeros(len(features), dtype=torch.float64, device=features.device)
        total = torch.zeros_like(weighted)
        for i, entry in enumerate(self.entries):
            if entry.moment is not None:
                total = total + self.lambdas.get(entry.name, 0.0) * features[:, i]
            elif entry.hard:
                floor = self.log_epsilon[entry.name] if smooth else -math.inf
                total = total + torch.where(features[:, i] > 0.5, 0.0, floor)
            else:
                weighted = weighted + entry.weight_at(None) * features[:, i].nan_to_num(0.0)
        if self.score.clip is not None:
            weighted = weighted.clamp(*self.score.clip)
        weighted = weighted - self.score.missing_eos_penalty * (~finished).double()
        return total if self.beta == 0 else total + weighted / self.beta

    def features(self, values: Tensor) -> Tensor:
        """(B, R) float64 clip(scale * value), or 0 and 1 under a threshold; NaN stays.

        Raises RewardError where a constraint's value is missing, or neither 0 nor 1 if it is hard.
        """
        columns = [shaped(values[:, i], entry) for i, entry in enumerate(self.entries)]
        for entry, column in zip(self.entries, columns, strict=True):
            if entry.is_constraint:
                check_values(entry, column)
        return torch.stack(columns, 1) if columns else values.double()

    # -- what a method that maximises a score is told ------------------------------------------

    def weights(self, beta: float | None = None) -> dict[str, float]:
        """The constraints as weights of a score: beta lambda, and -beta log epsilon for hard.

        With the KL's price beta the maximum is the target with what is hard smoothed.
        """
        beta = self.beta if beta is None else beta
        found = {entry.name: beta * self.lambdas.get(entry.name, 0.0) for entry in self.moments}
        return found | {e.name: -beta * self.log_epsilon.get(e.name, 0.0) for e in self.hard}

    def fitted(
        self,
        lambdas: Mapping[str, float],
        errors: Mapping[str, float],
        base_rates: Mapping[str, float] | None = None,
    ) -> "Target":
        """With these lambdas; and, by the base rates of what is hard, their epsilons."""
        rates = base_rates or {}
        epsilon = {name: math.log(SMOOTHING * rate) for name, rate in rates.items()}
        return replace(
            self,
            lambdas={**self.lambdas, **lambdas},
            # The error of a first fit says nothing of a lambda that has moved since.
            errors={k: v for k, v in self.errors.items() if k not in lambdas} | dict(errors),
            log_epsilon={**self.log_epsilon, **epsilon},
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "hash": self.hash,
            "wishes": self.wishes,
            "lambdas": dict(self.lambdas),
            "errors": dict(self.errors),
            "log_epsilon": dict(self.log_epsilon),
            "bases": dict(self.bases),
        }

    def restored(self, state: Mapping[str, Any]) -> "Target":
        """With what `state_dict` held; ValueError where that is no number."""

        def numbers(key: str) -> dict[str, float]:
            return {str(name): float(value) for name, value in state[key].items()}

        return replace(
            self,
            lambdas=numbers("lambdas"),
            errors=numbers("errors"),
            log_epsilon=numbers("log_epsilon"),
            bases=numbers("bases"),
        )


def declare(config: RunConfig, rewards: RewardSet) -> Target:
    """The target of a configuration, not yet fitted; ConfigError where it has none."""
    entries = rewards.entries
    constrained = [entry.name for entry in entries if entry.is_constraint]
    if constrained and config.score.clip is not None:
        raise ConfigError(
            f"score.clip={list(config.score.clip)} bounds a sum of weights, and "
            f"rewards.{constrained[0]} has none; bound each reward by its own clip"
        )
    if constrained and config.kl.coef == 0:
        raise ConfigError(
            f"kl.coef=0 with a moment or hard: true of rewards.{constrained[0]}: without a price "
            "on the KL there is no target to fit; set kl.coef=0.1 (any value will do where there "
            "are no weights)"
        )
    if constrained and config.kl.target is not None and config.target.update == "importance":
        raise ConfigError(
            "target.update=importance with kl.target: the samples' weights need a fixed beta; use "
            "target.update=policy"
        )
    sampling, model = config.sampling, config.model
    reference: dict[str, Any] = {"model": model.name}
    if model.revision:
        reference["revision"] = model.revision
    reference |= {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
    if sampling.stop:
        reference["stop"] = list(sampling.stop)
    return Target(
        entries, config.kl.coef, config.score, reference,
        sources=tuple(sorted(sha256(Path(file)) for file in config.reward_files)),
        kl_target=config.kl.target, rewards=rewards,
    )  # fmt: skip


def shown_shape(entry: RewardEntry) -> str:
    """What `RewardEntry.shaped` makes of a value, as in a formula."""
    shown = "value" if entry.threshold is None else f"[value ≥ {entry.threshold:g}]"
    if entry.scale != 1.0:
        shown = f"{entry.scale:g}·{shown}"
    return shown if entry.clip is None else f"clip({shown}, {entry.clip[0]:g}, {entry.clip[1]:g})"


def shaped(values: Tensor, entry: RewardEntry) -> Tensor:
    """`RewardEntry.shaped` of many values; NaN stays NaN."""
    x = values.double()
    if entry.threshold is not None:
        x = torch.where(x.isnan(), x, (x >= entry.threshold).double())
    x = entry.scale * x
    return x if entry.clip is None else x.clamp(*entry.clip)


def check_values(entry: RewardEntry, column: Tensor) -> None:
    """Refuse a constraint's value that is missing, or that is neither 0 nor 1 under `hard`."""
    wish = "hard" if entry.hard else "moment"
    if bool(column.isnan().any()):
        row = int(column.isnan().nonzero()[0])
        raise RewardError(
            f"reward '{entry.name}' ({entry.kind}) gave sample {row} no value (None), and "
            f"rewards.{entry.name}.{wish} needs one of every sample; return a number there"
        )
    if entry.hard and bool(((column != 0.0) & (column != 1.0)).any()):
        row = int(((column != 0.0) & (column != 1.0)).nonzero()[0])
        raise RewardError(
            f"reward '{entry.name}' ({entry.kind}) is {float(column[row]):g} for sample {row}, and "
            f"under hard: true it must be 0 or 1; set rewards.{entry.name}.threshold"
        )
