"""The made-up cases of the tests are as many as docs/bad-input.md says."""

import re
from pathlib import Path

import fuzzing
import test_fuzz_config
import test_fuzz_prompts
import test_fuzz_returns
import test_fuzz_texts

AREAS = (test_fuzz_config, test_fuzz_prompts, test_fuzz_returns, test_fuzz_texts)
PAGE = Path(__file__).parent.parent / "docs" / "bad-input.md"


def test_there_are_ten_thousand_cases_in_four_areas():
    of_area = [
        sum(cases for name, cases in fuzzing.BUDGET.items() if name.startswith(area.__name__))
        for area in AREAS
    ]
    assert min(of_area) >= 2000 and sum(of_area) >= 10_000, of_area
    (said,) = re.findall(r"more than ([\d,]+) made-up cases", PAGE.read_text(encoding="utf-8"))
    assert int(said.replace(",", "")) <= sum(of_area)
