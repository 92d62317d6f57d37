"""No engine, nor the update, has lost more than 15% against its recorded ratio to the products."""

import pytest

from benchmarks import guard


@pytest.mark.prove
def test_no_engine_has_become_slower():
    kept = guard.recorded().get(guard.kind())
    if kept is None:
        pytest.skip("no ratios of this processor: python -m benchmarks.guard --record")
    ratios = guard.measure()
    slower = {n: (ratios[n], kept[n]) for n in kept if ratios[n] > guard.ALLOWED * kept[n]}
    assert not slower, slower


def test_the_records_name_every_part():
    for kept in guard.recorded().values():
        assert set(kept) == {"decode", "static", "learning"}
        assert all(ratio > 0.5 for ratio in kept.values())
