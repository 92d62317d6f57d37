"""Two iterations toward a moment by DPG and by REINFORCE, alone or under a launcher, saved.

    accelerate launch --config_file launch/accelerate/cpu2.yaml tests/target_update.py FOLDER

Every rank samples for itself; `update` then learns from what it is given.
"""

import sys
from dataclasses import replace
from pathlib import Path

import builders
import oracle
import torch

from rlalign.config import from_mapping
from rlalign.methods import METHODS
from rlalign.session import Session
from rlalign.trainer import Trainer
from rlalign.types import ScoredRollout
from rlalign.yardstick.measured import measure
from rlalign.yardstick.numbers import as_json

SECTIONS = {
    "dpg": {"divergence": "js", "lr": 1e-3},
    "reinforce": {"lr": 1e-3},
}


def new_trainer(method: str) -> Trainer:
    settings = oracle.config(
        rewards={"d": {"kind": "lexical.contains", "words": ["d"], "moment": 0.7}},
        sampling={"max_new_tokens": oracle.MAX_LENGTH, "samples_per_prompt": 4},
        train={"samples": 24},
        target={"samples": 256, "samples_per_prompt": 128, "rate": 0.2},
        eval={"target_samples": 512, "samples_per_prompt": 256},
        # A large eps, because Adam blows up what is rounding where a gradient is about 0.
        optim={"micro_batch_tokens": 60, "eps": 1e-3},
        kl={"coef": 0.5},
        **{method: SECTIONS[method]},
    )
    session = Session(
        from_mapping(METHODS[method].run_model, settings),
        lm=oracle.language_model(),
        tokenizer=oracle.tokenizer(),
        prompts=oracle.PROMPTS,
    )
    return Trainer(session, METHODS[method].objective(session.config))


def update(trainer: Trainer, scored: ScoredRollout) -> dict:
    """Two iterations on the same samples: what they did to parameters and lambda, what was said."""
    stats = [trainer.step(scored) for _ in range(2)]
    return {
        "scored": scored,
        "world": trainer.session.ranks.size,
        "parameters": builders.parameters(trainer.session.policy),
        "stats": [{k: v for k, v in s.items() if not k.startswith("time/")} for s in stats],
        "lambdas": dict(trainer.target.lambdas),
        "measured": measured(trainer),
    }


def measured(trainer: Trainer) -> dict:
    """The yardstick's numbers, and the texts behind them."""
    found = measure(trainer.session, 0.5, trainer.target)
    texts = [row["response"] for row in found.drawn.rows]
    return {"numbers": as_json(found, {}), "texts": texts}


def begin(trainer: Trainer) -> None:
    """The same lambda however many processes sampled for its fit, and near enough to move."""
    bases = {"d": -1.0}  # so the policy counts as having come near
    trainer.target = replace(trainer.target.fitted({"d": 1.2}, {}), bases=bases)


def main(folder: Path) -> None:
    for method in SECTIONS:
        trainer = new_trainer(method)
        trainer.fit_target()
        fitted = trainer.target.state_dict()
        begin(trainer)
        result = update(trainer, trainer.score(trainer.generate()))
        rank = trainer.session.ranks.rank
        torch.save(result | {"fitted": fitted}, folder / f"{method}-{rank}.pt")
        trainer.session.ranks.wait()
    trainer.session.ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
