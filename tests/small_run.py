"""A run model as small as they come, for tests of the configuration alone."""

from typing import Literal

from pydantic import Field

from rlalign.settings.fields import Positive, PositiveFloat, Section
from rlalign.settings.sections import RunConfig


class SmallPPOSection(Section):
    epochs: Positive = Field(2, description="passes over the samples")
    minibatches: Positive = 4
    lr: PositiveFloat = 1e-4
    value_lr: PositiveFloat | None = None
    value_clip: PositiveFloat | None = 0.2
    norm: Literal["whiten", "none"] = "whiten"


class SmallRun(RunConfig):
    ppo: SmallPPOSection = SmallPPOSection()
