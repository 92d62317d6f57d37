"""Every method through the whole loop: a run's folder, resumed bit for bit, one file for all."""

import json

import builders
import oracle
import pytest
import torch

from rlalign import loop, open_trainer
from rlalign.checkpoints.folder import CheckpointError
from rlalign.config import ConfigError, from_mapping, load_config
from rlalign.methods import METHODS
from rlalign.session import Session
from rlalign.settings.method_sections import AnyRun
from rlalign.trainer import Trainer

REWARDS = {
    "hit": {"kind": "lexical.contains", "words": ["d a"], "moment": 0.5},
    "begins": {"kind": "lexical.pattern", "pattern": "^[ab]", "threshold": 1.0, "hard": True},
}


def run(method, folder, iterations, **sections):
    own = {"dpg": {"proposal": "best", "proposal_every": 1}, "ppo": {"minibatches": 2}}
    settings = oracle.config(
        rewards=REWARDS,
        sampling={"max_new_tokens": 5, "samples_per_prompt": 8},
        train={"iterations": iterations, "samples": 16},
        target={"samples": 512},
        eval={"every": 2, "samples": 8},
        checkpoint={"every": 2},
        run={"dir": str(folder), "name": "x", **sections},
        **{method: own.get(method, {})},
    )
    settings["trackers"] = []
    config = from_mapping(METHODS[method].run_model, settings)
    session = Session(
        config, lm=oracle.language_model(), tokenizer=oracle.tokenizer(), prompts=oracle.PROMPTS
    )
    trainer = Trainer(session, METHODS[method].objective(config))
    with session:
        return loop.train(trainer, quiet=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_as_an_unbroken_one(method, tmp_path):
    """Weights, fitted lambdas, log Z, proposal: all of it is in the checkpoint."""
    whole = run(method, tmp_path / "whole", 4)
    run(method, tmp_path / "parts", 2)
    parts = run(method, tmp_path / "parts", 4, resume="auto")
    ours, theirs = (r.trainer.session.policy.trainable() for r in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert parts.trainer.target.state_dict() == whole.trainer.target.state_dict()
    assert parts.trainer.objective.state_dict() == whole.trainer.objective.state_dict()
    rows = [json.loads(x) for x in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("target/lambda/hit" in row for row in rows) == 4
    saved = json.loads((whole.folder / "run.json").read_text())["target"]
    assert saved["formula"].startswith("P_T(y|x) ∝ a(y|x) · exp( λ_hit·hit(x, y) ) · 1[begins(")
    assert "        λ_hit = " in (whole.folder / "model/README.md").read_text()


def test_one_file_serves_every_method(tmp_path):
    file = tmp_path / "all.yaml"
    said = "{kind: lexical.contains, words: [rain]}"
    file.write_text(
        f"rewards: {{x: {said}}}\nppo: {{lr: 1.0e-5}}\ndpg: {{divergence: js}}\n"
        "reinforce: {minibatches: 2}\n"
    )
    for name, method in METHODS.items():
        config = load_config(method.run_model, ["--config", str(file)])
        assert {key for key in METHODS if hasattr(config, key)} == {name}
    every = load_config(AnyRun, ["--config", str(file)])
    assert (every.ppo.lr, every.dpg.divergence, every.reinforce.minibatches) == (1e-5, "js", 2)


def test_without_a_wish_nothing_is_drawn_to_fit_it():
    trainer = Trainer(session := builders.session(), METHODS["ppo"].objective(session.config))
    assert trainer.target.is_fitted
    trainer.fit_target()
    assert trainer.feasibility is None


def test_python_takes_a_method_by_name(tmp_path):
    trainer = open_trainer(
        oracle.config(sampling={"samples_per_prompt": 8}, train={"samples": 16}),
        rewards=[oracle.sparse],
        model=oracle.language_model(),
        tokenizer=oracle.tokenizer(),
        prompts=oracle.PROMPTS,
        method="dpg",
    )
    assert "dpg/divergence" in trainer.step(trainer.generate())
    with pytest.raises(ConfigError, match="is unknown; there are ppo, dpg, reinforce"):
        open_trainer({}, method="quite")


def test_a_checkpoint_of_another_method_or_wish_is_not_taken_for_ones_own(tmp_path):
    run("ppo", tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"was written by PPO and this run is the distrib"):
        run("dpg", tmp_path, 4, resume="auto")
