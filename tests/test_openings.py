"""The quickstart's prompts keep the rules that experiments/data/README.md states."""

import json
import re
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "experiments" / "data" / "openings.jsonl"
# The quickstart rewards outer space and cheerfulness: neither may come from the prompt.
SPACE = "space star stars planet planets moon sun sky rocket galaxy astronaut orbit comet alien"
MOOD = (
    "happy glad joy wonderful great best lovely beautiful delicious love loved success "
    "sad terrible awful worst hate hated ugly horrible death died failure angry"
)
FORBIDDEN = set(f"{SPACE} {MOOD}".split())


@pytest.fixture(scope="module")
def openings() -> list[str]:
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == list(range(len(rows)))
    assert all(set(row) == {"prompt", "id"} for row in rows)
    return [row["prompt"] for row in rows]


def test_there_are_at_least_240_different_openings(openings: list[str]) -> None:
    assert len({opening.casefold() for opening in openings}) == len(openings) >= 240


def test_openings_break_off_in_mid_sentence(openings: list[str]) -> None:
    for opening in openings:
        assert opening == opening.strip() == " ".join(opening.split())
        assert opening[-1].isalnum(), opening
        assert 3 <= len(opening.split()) <= 9, opening


def test_no_opening_brings_what_a_reward_asks_for(openings: list[str]) -> None:
    for opening in openings:
        assert not FORBIDDEN & set(re.findall(r"\w+", opening.casefold())), opening


def test_openings_are_not_one_template_filled_in(openings: list[str]) -> None:
    starts = [" ".join(opening.split()[:3]) for opening in openings]
    assert len(set(starts)) == len(starts)
    for first, second in combinations(openings, 2):
        matcher = SequenceMatcher(None, first, second)
        if matcher.quick_ratio() > 0.8:
            assert matcher.ratio() < 0.8, (first, second)
