"""The running spread of the score."""

import json

import pytest
import torch
from builders import on_two_ranks

from rlalign.running import RunningScale

SCORES = torch.randn(60, generator=torch.Generator().manual_seed(0)) * 3 + 100


def test_it_is_the_spread_of_all_scores_so_far():
    scale = RunningScale()
    for part in SCORES.split([10, 1, 49]):
        latest = scale.update(part)
    assert latest == scale.value == pytest.approx(float(SCORES.std(correction=0)), rel=1e-6)


def test_every_ranks_scores_count_and_all_ranks_agree():
    parts = [SCORES[:20].split([5, 15]), SCORES[20:].split([30, 10])]

    def run(rank, sum_over_ranks):
        scale = RunningScale()
        for part in parts[rank]:
            scale.update(part, sum_over_ranks)
        return scale.value

    first, second = on_two_ranks(run)
    assert first == second == pytest.approx(float(SCORES.std(correction=0)), rel=1e-6)


@pytest.mark.parametrize("scores", [[3.0], [2.0, 2.0, 2.0], [0.1] * 7, [1e6] * 3])
def test_without_a_spread_it_is_one(scores):
    assert RunningScale().update(torch.tensor(scores)) == 1.0


def test_it_goes_on_from_its_saved_state():
    ours, theirs = RunningScale(), RunningScale()
    ours.update(SCORES[:30])
    theirs.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    assert ours.update(SCORES[30:]) == theirs.update(SCORES[30:])
