"""What a model can learn of a hard target: maximum likelihood on exact samples of it.

    python experiments/exact_samples.py --config experiments/grid/word_all.yaml --run.name=mle

Samples of the reference that satisfy what is hard are samples of the target. 12,000 of them, each
seen twice, are more than any method of this project is shown in a run of the grid, and exact: what
is left of KL(P_T‖π) afterwards is not a method's fault. Writes the model to the run's folder.
"""

import math
import sys

import torch

from rlalign.checkpoints.saving import save_model
from rlalign.config import load_config
from rlalign.generation import decode_engine
from rlalign.methods import METHODS
from rlalign.policy import logprobs_only, tensors
from rlalign.runs import open_run
from rlalign.session import Session
from rlalign.types import Rollout

WANTED, EPOCHS, AT_ONCE, LR = 12_000, 2, 128, 3e-4


def main() -> None:
    config = load_config(METHODS["dpg"].run_model, sys.argv[1:])
    with Session(config) as session:
        folder = open_run(config.run, "mle")
        fit(session, exact_samples(session))
        save_model(session, folder.path / "model", value_head=False)
        print(f"model        {folder.path / 'model'}")


def exact_samples(session: Session) -> list[Rollout]:
    """Rollouts of the reference, of which only what the target allows is kept."""
    engine = decode_engine(session.config.sampling, session.tokenizer)
    engine.sync(session.policy)  # which has learnt nothing yet
    prompts = session.prompts.batch(range(len(session.prompts)), session.ranks.device)
    kept: list[Rollout] = []
    drawn = 0
    while sum(map(len, kept)) < WANTED:
        each = engine.generate(prompts, 256, session.generator("exact", len(kept)))
        allowed = session.target.log_potential(list(each.prompts.texts), list(each.texts)) > -1e9
        kept.append(each.rows(allowed.nonzero().squeeze(1)))
        drawn += len(each)
    print(f"{sum(map(len, kept))} exact samples of {drawn} of the reference", flush=True)
    return kept


def fit(session: Session, rollouts: list[Rollout]) -> None:
    """Adam with a cosine to 0, about `AT_ONCE` samples a step."""
    policy = session.policy
    size = max(round(AT_ONCE * len(rollouts) / sum(map(len, rollouts))), 1)
    groups = [rollouts[i : i + size] for i in range(0, len(rollouts), size)]
    optimizer = torch.optim.AdamW(policy.trainable().values(), betas=(0.9, 0.95), weight_decay=0.0)
    steps = EPOCHS * len(groups)
    for step in range(steps):
        group = groups[step % len(groups)]
        for settings in optimizer.param_groups:
            settings["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        count = sum(map(len, group))
        for rollout in group:
            logprobs = policy(*tensors(rollout), logprobs_only)["logprobs"]
            (-logprobs.sum() / count).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
