import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

import rewards
from rewards import RewardConfigError, RewardSet, registry
from rewards.registry import check_params, describe, from_function, get, json_schema, kinds, reward

pytestmark = pytest.mark.usefixtures("own_registry")


def own(name: str = "own.length", **options):
    @reward(name, **options)
    def length(
        completions: list[str],
        *,
        words: list[str],
        n: Annotated[int, Field(ge=1, description="how many")] = 2,
        mode: Literal["any", "no"] = "any",
        flag: bool = False,
    ) -> list[float]:
        """Length.

        More.
        """
        return [float(len(c)) for c in completions]

    return length


def test_import_needs_neither_torch_nor_rlalign():
    code = (
        "import rewards, sys; rewards.kinds(); "
        "print({'torch', 'transformers', 'sklearn', 'rlalign'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_kinds_of_all_four_families_are_there():
    assert set(kinds()) >= {
        "lexical.contains", "lexical.excludes", "lexical.word_rate", "lexical.pattern",
        "lexical.diversity", "topic.similarity", "topic.classifier", "style.sentiment",
        "style.classifier", "style.readability", "structure.word_count", "structure.sentences",
        "structure.ends_cleanly", "structure.json_schema", "structure.format",
        "structure.repetition",
    }  # fmt: skip
    assert kinds() == sorted(kinds())


def test_a_registered_function_comes_back_unchanged():
    function = own()
    assert function(["abc"], words=["x"]) == [3.0]
    assert from_function(function) is get("own.length")


def test_the_bare_decorator_takes_the_functions_name():
    @reward
    def shouting(completions: list[str]) -> list[float]:
        return [float(c.isupper()) for c in completions]

    assert get("shouting").target is shouting


def test_parameters_are_completed_with_defaults():
    own()
    assert check_params("own.length", {"words": "rain"}) == {
        "words": ["rain"], "n": 2, "mode": "any", "flag": False,
    }  # fmt: skip
    assert check_params("own.length", {"words": ["a"], "n": "3"})["n"] == 3


def test_checked_parameters_pass_the_check_again():
    for kind in kinds():
        example = {k: v for k, v in (get(kind).example or {}).items() if k != "data"}
        once = check_params(kind, example)
        assert check_params(kind, once) == once


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"wrods": ["a"]},
            "rewards.x.wrods is not a parameter of own.length; did you mean 'words'?",
        ),
        (
            {"wieght": 2},
            "rewards.x.wieght is not a parameter of own.length; did you mean 'weight'?",
        ),
        ({"zzzz": 2}, "rewards.x.zzzz is not a parameter of own.length; it takes: words, n,"),
        ({}, "rewards.x.words is missing; own.length needs it (list[str])"),
        ({"words": ["a", True]}, "rewards.x.words[1]=True is not text; YAML makes yes, no, on"),
        ({"words": [2024]}, "rewards.x.words[0]=2024 is not text; quote it"),
        ({"words": 3}, "rewards.x.words=3: input should be a valid list"),
        ({"words": ["a"], "n": 0}, "rewards.x.n=0: input should be greater than or equal to 1"),
        ({"words": ["a"], "n": 1.5}, "rewards.x.n=1.5: input should be a valid integer"),
        ({"words": ["a"], "mode": False}, "rewards.x.mode=False is not text; YAML makes"),
        ({"words": ["a"], "mode": "all"}, "rewards.x.mode='all': input should be 'any' or 'no'"),
    ],
)
def test_a_wrong_parameter_is_named_as_typed(params, message):
    own()
    with pytest.raises(RewardConfigError) as caught:
        check_params("own.length", params, "rewards.x")
    assert str(caught.value).startswith(message)


def test_a_parameter_of_several_types_gets_one_line():
    with pytest.raises(RewardConfigError) as caught:
        check_params("style.classifier", {"model": "m", "label": [1]}, "rewards.x")
    assert str(caught.value).count("rewards.x.label") == 1


def test_every_wrong_parameter_gets_a_line():
    own()
    with pytest.raises(RewardConfigError) as caught:
        check_params("own.length", {"words": ["a"], "n": 0, "flag": "perhaps"}, "rewards.x")
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == [
        "rewards.x.n",
        "rewards.x.flag",
    ]


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("lexical.contains", {"words": []}, "rewards.x.words=[]: list should have at least 1 item"),
        ("lexical.contains", {"words": ["C++"]}, "rewards.x.words=['C++'] holds 'C++', whose '++'"),
        ("lexical.contains", {"words": ["🚀"]}, "rewards.x.words=['🚀'] holds '🚀', which"),
        ("lexical.pattern", {"pattern": "(a"}, "rewards.x.pattern='(a' is no RE2 pattern (missing"),
        ("structure.format", {"pattern": "(?=a)"}, "rewards.x.pattern='(?=a)' is no RE2 pattern"),
        ("structure.json_schema", {"schema": {"type": "objekt"}},
         "rewards.x.schema={'type': 'objekt'} is no JSON Schema: 'objekt' is not"),
    ],
)  # fmt: skip
def test_built_in_parameters_are_checked_before_anything_is_built(kind, params, message):
    with pytest.raises(RewardConfigError) as caught:
        check_params(kind, params, "rewards.x")
    assert str(caught.value).startswith(message)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(RewardConfigError) as caught:
        check_params("topic.similarty", {}, "rewards.space")
    assert str(caught.value) == (
        "rewards.space.kind='topic.similarty' is unknown; did you mean 'topic.similarity'?"
    )
    with pytest.raises(RewardConfigError, match=r"known kinds: .*lexical\.contains"):
        get("zzz")


def test_defining_a_kind_twice_names_both_places():
    own()
    with pytest.raises(
        RewardConfigError, match=r"test_registry\.py:\d+ and .*test_registry\.py:\d+"
    ):
        own()


def refused(message: str, **named):
    (target,) = named.values()
    with pytest.raises(RewardConfigError, match=message):
        reward("own.bad")(target)
    assert "own.bad" not in kinds()


def test_unclear_signatures_are_refused():
    def swallows(completions: list[str], **kwargs: object) -> list[float]: ...
    def bare(completions: list[str], *, n=1) -> list[float]: ...
    def reserved(completions: list[str], *, weight: float = 1.0) -> list[float]: ...
    def no_data(*, n: int = 1) -> list[float]: ...
    def dangling(completions: "Nowhere") -> list[float]: ...  # noqa: F821
    async def later(completions: list[str]) -> list[float]: ...

    class Later:
        async def __call__(self, completions: list[str]) -> list[float]: ...

    class Positional:
        def __init__(self, n) -> None: ...
        def __call__(self, completions: list[str]) -> list[float]: ...

    class Dataless:
        def __call__(self) -> list[float]: ...

    class Uncallable:
        def __init__(self, *, n: int) -> None: ...

    refused(r"takes '\*\*kwargs'", f=swallows)
    refused("parameter 'n' has no annotation", f=bare)
    refused("parameter name 'weight' is reserved", f=reserved)
    refused("reads no data", f=no_data)
    refused("annotation names something unknown", f=dangling)
    refused(r"^later \(tests/test_rewards/test_registry\.py:\d+\) is async; ", f=later)
    refused(r"^Later \(tests/test_rewards/test_registry\.py:\d+\) is async; ", f=Later)
    with pytest.raises(RewardConfigError, match=r"^Later \(.* is async; "):
        from_function(partial(Later()))
    refused("reads no data", f=Dataless)
    refused("positional parameter 'n'; configuration is keyword-only", f=Positional)
    refused("has no __call__", f=Uncallable)


def test_data_need_no_annotations():
    @reward("own.bare")
    def bare(prompts, completions, answer=None, *, n: int = 1): ...

    assert describe("own.bare").data == ("prompts", "completions", "answer")


def test_the_json_schema_has_types_defaults_and_descriptions():
    own()
    schema = json_schema("own.length")
    assert schema["required"] == ["words"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["n"] == {
        "default": 2, "description": "how many", "minimum": 1, "title": "N", "type": "integer",
    }  # fmt: skip


def test_the_description_shows_what_a_user_needs():
    own(bounds=(0, 9), example={"words": ["a"]})
    page = str(describe("own.length"))
    assert describe("own.length").summary == "Length."
    for part in (
        "own.length   tests/test_rewards/test_registry.py:", "bounds: 0 to 9", "reads: completions",
        "words: list[str]   (required)", "n: int   (default 2)   how many",
        "mode: Literal['any', 'no']   (default 'any')",
        'example: {"kind": "own.length", "words": ["a"]}',
    ):  # fmt: skip
        assert part in page


def write(path: Path, code: str) -> Path:
    path.write_text(code, encoding="utf-8")
    return path


GOOD = """
from __future__ import annotations
from rewards import reward

@reward("mine.short")
def short(completions: list[str], *, limit: int = 3) -> list[float]:
    return [float(len(c) < limit) for c in completions]
"""


def test_a_users_file_registers_its_rewards(tmp_path):
    file = write(tmp_path / "my.py", GOOD)
    sha256 = registry.load_file(file)
    assert len(sha256) == 64
    entries = rewards.parse_entries({"brief": {"kind": "mine.short", "limit": 4}})
    assert RewardSet(entries)([""] * 2, ["abc", "abcd"]).score.tolist() == [1.0, 0.0]
    assert get("mine.short").source.endswith("my.py:5")


def test_loading_a_file_again_is_fine_and_takes_changes(tmp_path):
    file = write(tmp_path / "my.py", GOOD)
    assert registry.load_file(file) == registry.load_file(str(file))
    before = get("mine.short")
    write(file, GOOD.replace("mine.short", "mine.brief"))
    registry.load_file(file)
    assert "mine.brief" in kinds() and "mine.short" not in kinds()
    write(file, "broken =")
    with pytest.raises(RewardConfigError):
        registry.load_file(file)
    assert "mine.brief" in kinds() and before.kind == "mine.short"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "cannot be read: No such file"),
        ("x = 1\ndef f(:\n", r"is no valid Python: .*my\.py:2: "),
        ("x = 1\n", r"defines no reward; put @reward\("),
        ("x = 1\ny = x / 0\n", r"failed at line 2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", r"failed at line 2: SystemExit: 3"),
        (GOOD.replace("mine.short", "lexical.contains"),
         "'lexical.contains' is defined twice: rewards/lexical.py"),
        (GOOD.replace("limit: int", "limit: type(reward)"),
         r"mine\.short' \(.*my\.py:5\) has a parameter whose type cannot be checked"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_and_leaves_nothing(tmp_path, code, message):
    before, modules = kinds(), set(sys.modules)
    file = tmp_path / "my.py"
    if code is not None:
        write(file, code)
    with pytest.raises(RewardConfigError, match=message):
        registry.load_file(file)
    assert kinds() == before
    assert not [name for name in set(sys.modules) - modules if name.startswith("reward_file_")]


def test_two_files_may_not_define_one_kind(tmp_path):
    registry.load_file(write(tmp_path / "one.py", GOOD))
    with pytest.raises(RewardConfigError, match=r"one\.py:5 and .*two\.py:5"):
        registry.load_file(write(tmp_path / "two.py", GOOD))


def test_plain_functions_follow_trls_convention():
    def plain(completions, prompts, **kwargs): ...

    spec = from_function(plain)
    assert (spec.kind, spec.signature.takes_all, spec.cache) == ("plain", True, False)
    assert from_function(partial(plain, prompts=["a"])).kind == "plain"


def test_plain_functions_that_cannot_be_called_are_refused():
    def configured(completions, *, words): ...

    with pytest.raises(RewardConfigError, match="needs 'words', which is no column"):
        from_function(configured)
    with pytest.raises(RewardConfigError, match="has no name to log it under"):
        from_function(lambda completions: [0.0])
    with pytest.raises(RewardConfigError, match="is no reward function"):
        from_function("lexical.contains")


def test_a_broken_plug_in_is_left_out_with_a_warning(monkeypatch):
    class Point:
        name, value = "broken", "nowhere:x"

        def load(self):
            raise ImportError("no module named nowhere")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()])
    registry._load_plugins.cache_clear()
    with pytest.warns(UserWarning, match=r"plug-in broken \(nowhere:x\) was left out"):
        assert "lexical.contains" in kinds()


def test_a_plug_ins_rewards_are_found(monkeypatch):
    class Point:
        name, value = "mine", "mine"

        def load(self):
            own("plugged.in")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()])
    registry._load_plugins.cache_clear()
    assert get("plugged.in").kind == "plugged.in"
