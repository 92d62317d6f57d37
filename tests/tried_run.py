"""A small trained run with a reward file of its own, to be sampled, exported and pushed."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from rlalign.config import from_mapping
from rlalign.loop import train
from rlalign.methods import METHODS
from rlalign.session import Session
from rlalign.trainer import Trainer

REWARD = """
from rewards import reward

@reward("tried.starts", bounds=(0, 1), example={"data": {"opening": ["Once", "The"]}})
def starts(completions: list[str], opening: list[str]) -> list[float]:
    return [float(t.lstrip().startswith(o)) for t, o in zip(completions, opening, strict=True)]
"""
SETTINGS: dict[str, Any] = {
    "model": {"name": "glass-tiny", "dtype": "float32", "lora": {"r": 4}},
    "sampling": {"max_new_tokens": 8, "temperature": 0.8},
    "rewards": {
        "she": {"kind": "lexical.contains", "words": ["she", "the", "a"], "weight": 2.0},
        "queen": {"kind": "lexical.contains", "words": ["queen"], "weight": 0},
    },
    "kl": {"coef": 0.1},
    "ppo": {"minibatches": 2, "lr": 2e-2},
    "train": {"iterations": 3, "samples": 16, "threads": 1},
    "eval": {"every": 1, "samples": 8},
    "trackers": [],
}


def trained(folder: Path, name: str = "run", **sections: Any) -> Path:
    """The folder of a run of three iterations of PPO; `sections` change its settings."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "Alice"}\n{"prompt": "The Queen"}\n{"prompt": "Once"}\n')
    settings = SETTINGS | {
        "prompts": {"path": str(prompts)},
        "run": {"dir": str(folder), "name": name},
    }
    for section, given in sections.items():
        whole = section in ("rewards", "trackers", "reward_files")
        settings[section] = given if whole else {**settings.get(section, {}), **given}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    config = from_mapping(METHODS["ppo"].run_model, settings)
    without_plots = patch("rlalign.loop.draw_plots")  # they take longer than the training
    with without_plots, Session(config) as session:
        train(Trainer(session, METHODS["ppo"].objective(config)), quiet=True)
    return folder / name
