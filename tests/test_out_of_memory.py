"""Where memory runs out in the update, smaller micro-batches learn the same."""

import builders
import pytest
import torch
from builders import parameters
from torch.testing import assert_close

from rlalign.algorithms.ppo import PPO
from rlalign.checkpoints.saving import training_state
from rlalign.exits import exit_code, last_line
from rlalign.ranks import OutOfMemory

BOTH = pytest.mark.parametrize("model", [{}, {"lora": {"r": 2}}], ids=["full", "lora"])


def exhausted_above(monkeypatch, rows: int):
    """Memory that holds a pass of at most so many responses."""
    loss = PPO.loss

    def bounded(self, policy, batch, norm):
        if len(batch.rollout.response_ids) > rows:
            raise torch.OutOfMemoryError("no more")
        return loss(self, policy, batch, norm)

    monkeypatch.setattr(PPO, "loss", bounded)


@BOTH
def test_micro_batches_are_halved_until_they_fit(model, monkeypatch, caplog):
    def updated():
        trainer = builders.trainer(model=model, ppo={"epochs": 1, "minibatches": 1})
        stats = trainer.step(trainer.generate())
        return trainer, stats, parameters(trainer.session.policy)

    _, plain, expected = updated()
    exhausted_above(monkeypatch, 3)
    trainer, stats, found = updated()
    assert_close(found, expected, rtol=0, atol=1e-6)
    assert stats["ppo/grad_norm"] == pytest.approx(plain["ppo/grad_norm"], rel=1e-5)
    assert trainer.budget < trainer.session.budget and "out of memory" in caplog.text
    # What was learnt of the memory is kept, in the run and over a restart.
    assert training_state(trainer)[1]["micro_batch_tokens"] == trainer.budget


def test_a_response_that_does_not_fit_alone_ends_the_run(monkeypatch):
    exhausted_above(monkeypatch, 0)
    trainer = builders.trainer(ppo={"epochs": 1})
    with pytest.raises(OutOfMemory, match="one response at a time") as ended:
        trainer.step(trainer.generate())
    assert exit_code(ended.value) == 4 and "lower optim.micro_batch_tokens" in last_line(
        ended.value
    )
