"""What one measurement runs, the settings of each system, and the inputs that all systems share."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRL_PPO = (
    ROOT / "benchmarks" / ".trl-1.12.0"
)  # the last release with PPO; the Makefile puts it there
OPENINGS = ROOT / "experiments" / "data" / "openings.jsonl"

OURS, PPO, GRPO = "rlalign", "TRL 1.12 PPO", "TRL GRPO"
SYSTEMS = (OURS, PPO, GRPO)

# The keyword task of experiments/dense_credit.yaml: how many different ones a response uses.
WORDS = [
    "time",
    "day",
    "night",
    "world",
    "way",
    "life",
    "people",
    "man",
    "woman",
    "one",
    "new",
    "old",
    "long",
    "little",
    "good",
    "great",
    "home",
    "house",
    "eyes",
    "hand",
]

# Where TRL's trainers and ours need another learning rate or batch, it is written here and only
# here. TRL's are its documented defaults (PPO: 4 epochs of one step; GRPO: groups of 8, batches of
# 8) but for the learning rate: 3e-6 and 1e-6 are meant for whole models and leave adapters where
# they are, so both get 3e-4, the upper end of what is used with LoRA. Ours are the quickstart's.
LEARNING: dict[str, dict[str, Any]] = {
    OURS: {"lr": 6.5e-4, "epochs": 1, "minibatches": 4},
    PPO: {"lr": 3e-4, "epochs": 4, "minibatches": 1},
    GRPO: {"lr": 3e-4, "epochs": 1, "minibatches": 4, "generations": 8},
}


@dataclass(frozen=True)
class Setting:
    """One run of one system: its result is a row."""

    system: str = OURS
    model: str = "smollm2-135m"  # an embedded model's name, or one of models.SHAPES
    lora: int | None = 16
    dtype: str = "float32"
    regime: str = "fixed"  # nothing ends a response; or mixed: a full stop does
    prompt_length: int = 6
    response_length: int = 32
    samples: int = 32
    generations: int = 4  # GRPO's group; the others draw one response a prompt
    epochs: int = 2
    minibatches: int = 1  # TRL's PPO makes one optimiser step an epoch whatever it is told
    lr: float = 1e-4
    kl_coef: float = 0.05
    iterations: int = 4
    seed: int = 0
    threads: int = 2  # over all processes
    processes: int = 1
    floors: bool = False
    target: float | None = None  # stop where the score has reached it
    window: int = 3  # iterations whose mean score counts
    seconds: float | None = None  # stop after these
    technique: str | None = None  # an ablation's name

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Setting":
        return cls(**json.loads(text))

    def of(self, **changes: Any) -> "Setting":
        return replace(self, **changes)


@dataclass(frozen=True)
class Job:
    """A setting with its place in a table; `repeat` tells runs of the same setting apart."""

    table: str
    name: str
    setting: Setting
    repeat: int = 0

    @property
    def key(self) -> str:
        """What a finished row is recognised by; a cut-off follows from other rows, so it is out."""
        return f"{self.table}/{self.name}/{self.repeat}/{self.setting.of(seconds=None).to_json()}"


def tokenizer_of(setting: Setting) -> Any:
    """The model's tokenizer; in the mixed regime its EOS is the full stop, in all systems."""
    from transformers import AutoTokenizer

    from benchmarks.models import source

    tokenizer = AutoTokenizer.from_pretrained(source(setting.model), padding_side="left")
    if setting.regime == "mixed":
        (tokenizer.eos_token,) = tokenizer.tokenize(".")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        # TRL's PPO reads a response's end from its pad, which must not be its EOS.
        others = [t for t in tokenizer.all_special_tokens if t != tokenizer.eos_token]
        tokenizer.pad_token = others[-1]
    return tokenizer


def prompts_of(tokenizer: Any, length: int, at_least: int) -> list[list[int]]:
    """Token ids of real openings, each cut to `length`; several are joined where one is too short.

    Only cuts that encode back to the same ids are kept: some systems take ids, others text.
    """
    lines = OPENINGS.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    cuts = _cut(tokenizer, texts, length)
    if len(cuts) < at_least:
        joined = [" ".join([*texts[i:], *texts[:i]][: length // 2]) for i in range(len(texts))]
        cuts = _cut(tokenizer, joined, length)
    if not cuts:
        raise SystemExit(f"no opening can be cut to {length} tokens")
    return cuts


def _cut(tokenizer: Any, texts: list[str], length: int) -> list[list[int]]:
    cuts = [tokenizer(text)["input_ids"][:length] for text in texts]
    return [
        ids
        for ids in cuts
        if len(ids) == length and tokenizer(tokenizer.decode(ids))["input_ids"] == ids
    ]


def keyword_score(completions: list[str]) -> list[float]:
    """How many different ones of the words each completion uses."""
    from rewards import lexical

    return [float(x) * len(WORDS) for x in lexical.contains(completions, words=WORDS, mode="share")]
