"""eval.json as the pages need it, checked: it may come from anybody."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import from_json

from rlalign.problems import ConfigError
from rlalign.report.yardstick_table import DIVERGENCES, TEXTS, TO_REFERENCE
from rlalign.settings.fields import FiniteFloat
from rlalign.yardstick.numbers import FORMAT


def read_eval(folder: Path) -> dict[str, Any]:
    """What `rlalign eval` wrote into a folder; ConfigError where there is none, or none of ours."""
    file = folder / "eval.json"
    if not file.is_file():
        raise ConfigError(f"{folder} has no eval.json; run `rlalign eval {folder}` first")
    again = f"run `rlalign eval {folder}` again"
    try:
        text = file.read_text(encoding="utf-8")
        content: dict[str, Any] = from_json(text)
        if isinstance(content, dict) and content.get("format") != FORMAT:
            number = repr(content.get("format", "no number"))
            raise ConfigError(f"{file} has format {number}, and {FORMAT} is read here; {again}")
        EvalFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise ConfigError(f"{file} is damaged: {place}: {first['msg']}; {again}") from error
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); {again}") from error
    return content


class Part(BaseModel):
    """Types as JSON has them; what the page does not show may be there too."""

    model_config = ConfigDict(strict=True)


class Number(Part):
    value: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    note: str = ""

    @model_validator(mode="after")
    def _has_both_ends_or_none(self) -> "Number":
        ends = [end for end in (self.low, self.high) if end is not None]
        if len(ends) == 1 or (ends and self.value is None):
            raise ValueError("an interval with one end, or without a value")
        return self


class Both(Part):
    policy: Number
    reference: Number


class FeaturePart(Both):
    target: Number
    shaped: bool = False
    role: str
    wish: tuple[FiniteFloat, FiniteFloat] | None


class TargetPart(Part):
    formula: str
    hash: str
    notes: list[str]
    lambdas: dict[str, FiniteFloat]


class SupportPart(Part):
    ess: FiniteFloat
    pareto_k: FiniteFloat | None
    is_whole: bool
    refusal: str


class LogZ(Part):
    lower: Number
    upper: Number


class Witness(Part):
    prompt: str
    response: str
    log_ratio: FiniteFloat | None


Numbers = dict[str, FiniteFloat | None]


class EvalFile(Part):
    """`yardstick.numbers.as_json`, as far as it is shown."""

    reference_model: str
    prompts: int
    prompts_hash: str
    samples: int
    target: TargetPart
    features: dict[str, FeaturePart]
    to_target: dict[str, Both]
    to_reference: dict[str, Number]
    support: SupportPart
    log_z: LogZ
    texts: dict[str, Numbers]
    witnesses: dict[str, list[Witness]]
    policy: Numbers
    reference: Numbers

    @model_validator(mode="after")
    def _names_every_number(self) -> "EvalFile":
        missing = {*DIVERGENCES} - self.to_target.keys() | {
            *TO_REFERENCE
        } - self.to_reference.keys()
        for of in ("policy", "reference"):
            missing |= {"texts", *TEXTS} - self.texts.get(of, {}).keys()
        if missing:
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        return self
