"""The section `audit` of a configuration: the lines that its warnings are about."""

from typing import Literal

from pydantic import Field, model_validator

from rlalign.settings.fields import NonNegative, Positive, PositiveFloat, Section, Share

WarningName = Literal[
    "length-driven",
    "length-runs",
    "repeated-phrase",
    "same-opening",
    "duplicates",
    "collapsed-diversity",
    "traded-away",
    "judge-disagrees",
    "far-from-reference",
]


class AuditSection(Section):
    """Signs that a reward is being hacked: when a run warns, and which warnings end it.

    Every line is compared with a mean over `window` iterations; null turns its warning off.
    docs/reward-hacking.md says what to do about each.
    """

    window: Positive = Field(
        5,
        description="iterations that a warning looks back on; more where they hold under 64 "
        "responses",
    )
    top: NonNegative = Field(
        3, description="responses marked in samples.jsonl as the highest by each reward and score"
    )
    length_corr: Share | None = Field(
        0.8, description="length-driven: |rank correlation| of score and length"
    )
    length_factor: float | None = Field(
        2.0, gt=1, description="length-runs: how many times longer or shorter than at the start"
    )
    phrase_share: Share | None = Field(
        0.25,
        description="repeated-phrase: share of responses with one same phrase of 3 words, "
        "above that of the first iteration",
    )
    opening_share: Share | None = Field(
        0.25,
        description="same-opening: share of responses with the same first 3 words, above "
        "that of the first iteration",
    )
    duplicates: Share | None = Field(
        0.25,
        description="duplicates: share of responses that repeat another, above that of the "
        "first iteration",
    )
    distinct2_lost: Share | None = Field(
        0.3,
        description="collapsed-diversity: share of the first iteration's distinct-2 that is gone",
    )
    traded_drop: PositiveFloat | None = Field(
        0.5,
        description="traded-away: fall of a reward while another rises, in its standard deviations",
    )
    judge_drop: PositiveFloat | None = Field(
        0.25,
        description="judge-disagrees: fall of one of `judges` while the score rises, in its "
        "standard deviations",
    )
    kl_per_token: PositiveFloat | None = Field(
        1.0, description="far-from-reference: nats of KL a token"
    )
    judges: list[str] = Field(
        [], description="rewards, commonly of weight 0, that ought to rise with the score"
    )
    stop: list[WarningName] = Field(
        [], description="warnings that end the run: evaluated, saved, exit code 6"
    )

    @model_validator(mode="after")
    def _stops_on_what_is_on(self) -> "AuditSection":
        for name in self.stop:
            if vars(self)[LINES[name]] is None:
                raise ValueError(f"stop names {name}, which {LINES[name]}=null turns off")
        if "judge-disagrees" in self.stop and not self.judges:
            raise ValueError("stop names judge-disagrees, and judges names none")
        return self


# The setting that holds each warning's line.
LINES: dict[WarningName, str] = {
    "length-driven": "length_corr",
    "length-runs": "length_factor",
    "repeated-phrase": "phrase_share",
    "same-opening": "opening_share",
    "duplicates": "duplicates",
    "collapsed-diversity": "distinct2_lost",
    "traded-away": "traded_drop",
    "judge-disagrees": "judge_drop",
    "far-from-reference": "kl_per_token",
}
