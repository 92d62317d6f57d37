"""Toward a target, two real processes learn what one process learns from the same samples."""

import pytest
import target_update
import torch
from test_two_processes import joined, launched
from torch.testing import assert_close


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> dict[str, list[dict]]:
    """What each of two processes saw and learnt, by method."""
    folder = tmp_path_factory.mktemp("two")
    launched("target_update.py", folder)
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)]
        for name in target_update.SECTIONS
    }


@pytest.fixture(scope="module", params=["dpg", "reinforce"])
def both(request, ranks) -> tuple[list[dict], dict]:
    """The two ranks' results and one process's on the same samples."""
    parts = ranks[request.param]
    trainer = target_update.new_trainer(request.param)
    trainer.fit_target()
    fitted = trainer.target.state_dict()
    target_update.begin(trainer)
    return parts, target_update.update(trainer, joined([part["scored"] for part in parts])) | {
        "fitted": fitted
    }


def test_the_moment_is_fitted_to_the_same_samples_by_any_number_of_processes(both):
    (first, second), alone = both
    assert [first["world"], second["world"], alone["world"]] == [2, 2, 1]
    assert first["fitted"] == second["fitted"]
    assert first["fitted"]["lambdas"]["d"] == pytest.approx(alone["fitted"]["lambdas"]["d"])
    assert 0.1 < first["fitted"]["lambdas"]["d"] < 5.0


def test_two_processes_learn_what_one_learns(both):
    (first, second), alone = both
    assert first["scored"].rollout.texts != second["scored"].rollout.texts
    assert_close(first["parameters"], second["parameters"], rtol=0, atol=0)
    assert_close(first["parameters"], alone["parameters"], rtol=0, atol=1e-5)
    start = target_update.builders.parameters(target_update.new_trainer("dpg").session.policy)
    moved = max(float((alone["parameters"][name] - start[name]).abs().max()) for name in start)
    assert moved > 1e-3  # a hundred times what the two may differ by


def test_lambda_moves_alike(both):
    (first, second), alone = both
    assert first["lambdas"] == second["lambdas"]
    assert first["lambdas"]["d"] == pytest.approx(alone["lambdas"]["d"], abs=1e-6)  # float32
    assert abs(first["lambdas"]["d"] - 1.2) > 1e-3


def test_two_processes_say_what_one_says(both):
    parts, alone = both
    for part in parts:
        for ours, theirs in zip(part["stats"], alone["stats"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_the_yardstick_draws_the_same_responses_on_any_number_of_processes(both):
    (first, second), alone = both
    assert first["measured"] == second["measured"]
    assert len(alone["measured"]["texts"]) == 1024
    assert first["measured"]["texts"] == alone["measured"]["texts"]
    for of in ("policy", "reference"):
        ours, theirs = (
            each["measured"]["numbers"]["to_target"]["js"][of] for each in (first, alone)
        )
        assert ours["value"] is not None
        assert ours == pytest.approx(theirs, rel=1e-3)
