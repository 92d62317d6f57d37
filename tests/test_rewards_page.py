import re
from pathlib import Path

import pytest

from rewards import RewardEntry, RewardSet, registry
from rlalign.report.rewards_notes import NOTES
from rlalign.report.rewards_page import built_in, rewards_page

PAGE = Path(__file__).parent.parent / "docs" / "rewards.md"


def test_the_page_is_the_one_that_the_registry_gives():
    assert PAGE.read_text(encoding="utf-8") == rewards_page(), (
        "run: rlalign rewards list --markdown > docs/rewards.md"
    )


def test_every_built_in_kind_has_a_section_with_its_parameters_and_notes():
    assert len(built_in()) == 29 and set(NOTES) == set(built_in())
    sections = dict(
        re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", rewards_page(), re.MULTILINE | re.DOTALL)
    )
    assert set(sections) == set(built_in())
    for kind, section in sections.items():
        for name in registry.get(kind).signature.annotations:
            assert f"\n| `{name}` |" in section
        for word in (
            "- Bounds: ",
            "Cost: ",
            "- Credit: ",
            f"- Example: `{{kind: {kind}",
            "- Fooled by: ",
        ):
            assert word in section


@pytest.mark.parametrize("kind", [kind for kind in NOTES if NOTES[kind].value is not None])
def test_the_text_that_fools_a_reward_does(kind):
    params = dict(registry.get(kind).example)
    output = RewardSet([RewardEntry("it", kind, params)])([""], [NOTES[kind].trick])
    assert output.values[0, 0] == pytest.approx(NOTES[kind].value, abs=0.005)


@pytest.mark.parametrize("kind", [kind for kind in NOTES if NOTES[kind].cost == "words"])
def test_the_page_says_which_kinds_return_spans(kind):
    """The others are judged by models, whose opinion of a text is no sum over its words."""
    params = dict(registry.get(kind).example)
    data = {name: column[:1] * 2 for name, column in params.pop("data", {}).items()}
    reward_set = RewardSet([RewardEntry("it", kind, params)])
    texts = [
        "She saw rain in outer space, the moon. Very, very, very, very long ago it was.",
        "Rain.",
    ]
    ((spans, _),) = reward_set(["", ""], texts, data).own_spans
    assert bool(spans) == NOTES[kind].spans
    assert not any(NOTES[kind].spans for kind in NOTES if NOTES[kind].cost != "words")


def test_costs_are_classes_that_the_page_explains():
    for notes in NOTES.values():
        assert f"\n| {notes.cost} | " in rewards_page()


def test_rewards_of_others_are_not_on_the_page(monkeypatch):
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))

    @registry.reward("lexical.mine")
    def mine(completions: list[str]) -> list[float]: ...

    assert "lexical.mine" in registry.kinds() and "lexical.mine" not in rewards_page()
