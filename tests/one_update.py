"""One update of the oracle's model, run alone or under a launcher; what it saw and learnt, saved.

    accelerate launch --config_file launch/accelerate/cpu2.yaml tests/one_update.py FOLDER

Every rank samples for itself; `update` then learns from what it is given.
"""

import sys
from pathlib import Path

import builders
import torch

from rlalign.trainer import Trainer
from rlalign.types import ScoredRollout

MODELS = {"full": {}, "lora": {"lora": {"r": 2}}, "bfloat16": {"dtype": "bfloat16"}}
SECTIONS = {
    "ppo": {"epochs": 2, "minibatches": 1, "lr": 1e-3, "entropy_coef": 0.01},
    "train": {"samples": 24},
    "kl": {"coef": 0.2, "target": 1.0},
    "score": {"normalize": True},
    # So small that the ranks need different numbers of micro-batches. A large eps, because Adam
    # blows up what is rounding where a gradient is about 0.
    "optim": {"micro_batch_tokens": 20, "eps": 1e-3},
}


def letters_c(completions: list[str], **_: object) -> list[float]:
    return [float(text.count("c")) for text in completions]


def new_trainer(model: str) -> Trainer:
    return builders.trainer(rewards=[letters_c], model=MODELS[model], **SECTIONS)


def update(trainer: Trainer, scored: ScoredRollout) -> dict:
    """Two iterations on the same samples: what they did to the parameters, and what was said."""
    policy = trainer.session.policy
    reference = trainer.score(scored.rollout).ref_logprobs
    stats = [trainer.step(scored) for _ in range(2)]
    return {
        "scored": scored,
        "world": trainer.session.ranks.size,
        "parameters": builders.parameters(policy),
        "stats": [{k: v for k, v in s.items() if not k.startswith("time/")} for s in stats],
        "optimizer_steps": trainer.optimizer_steps,
        "samples": trainer.samples,
        "kl_coef": trainer.objective.kl_coef,
        "reference_moved": not torch.equal(trainer.score(scored.rollout).ref_logprobs, reference),
    }


def main(folder: Path) -> None:
    for model in MODELS:
        trainer = new_trainer(model)
        ranks = trainer.session.ranks
        scored = trainer.score(trainer.generate())
        result = update(trainer, scored)
        torch.save(result, folder / f"{model}-{ranks.rank}.pt")
        ranks.wait()
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
