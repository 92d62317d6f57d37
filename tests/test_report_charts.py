"""Histograms of the report: bars that can be seen."""

import pytest

from rlalign.report.page.charts import binned


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([0.3, 0.30000001192, 1.0], 2),  # what float32 tells apart is the same value here
        ([0.0, 1.0, 1.0], 2),
        ([0.501, 0.502, 1.2, 3.0], None),  # one of each would be too thin
    ],
)
def test_a_bar_is_never_too_thin_to_be_seen(values, bars):
    edges = binned([(0, values)])["edges"]
    whole = edges[-1][1] - edges[0][0]
    assert all(b - a > whole / 100 for a, b in edges)
    assert bars is None or len(edges) == bars
