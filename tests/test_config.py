import json
from pathlib import Path

import pytest
from small_run import SmallRun

from rlalign import config as config_module
from rlalign.config import (
    ConfigError,
    from_mapping,
    load_config,
)

ROOT = Path(__file__).parent.parent
QUICKSTART = "experiments/quickstart.yaml"


def load(*argv: str) -> SmallRun:
    return load_config(SmallRun, argv, rewards_given=True)


def words_of(*argv: str) -> dict[str, object]:
    reward = ["--rewards.a.kind=lexical.contains", "--rewards.a.words=[rain]"]
    return load_config(SmallRun, [*reward, *argv]).rewards["a"]


# -- how settings are written


@pytest.mark.parametrize(
    "argv", [["--ppo.lr=1e-5"], ["--ppo.lr", "1e-5"], ["ppo.lr=1e-5"], ['{"ppo.lr": 1e-5}']]
)
def test_the_ways_to_write_a_setting_mean_the_same(argv):
    assert load(*argv) == from_mapping(SmallRun, {"ppo": {"lr": 1e-5}}, rewards_given=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7.0), ("0.5", 0.5), ("1e-5", 1e-5), ("None", None), ("null", None), ("~", None)],
)
def test_numbers_and_nulls_parse(text, value):
    assert load(f"--kl.target={text}").kl.target == value


@pytest.mark.parametrize("text", ["True", "true", "yes", "on"])
def test_booleans_parse(text):
    assert load(f"--prompts.chat={text}").prompts.chat is True


def test_a_bare_flag_means_true_wherever_it_stands():
    assert load("--prompts.chat").prompts.chat
    assert load("--prompts.chat", "--train.samples=3").prompts.chat
    config = load("--prompts.chat", "train.samples=3")
    assert config.prompts.chat and config.train.samples == 3
    assert not load("--prompts.chat", "False").prompts.chat


def test_a_bare_flag_reaches_a_reward_of_the_file():
    argv = ["--rewards.a.kind=structure.ends_cleanly", "--rewards.a.ellipsis", "--kl.coef=1"]
    assert load_config(SmallRun, argv).rewards["a"]["ellipsis"] is True


@pytest.mark.parametrize(
    "text",
    [
        "012",
        "1:30",
        "2024",
        "1e-5",
        "True",
        "no",
        "[a-z]+",
        "# x",
        "it's",
        "...",
        "a: b",
        "",
        " x ",
    ],
)
def test_text_stays_as_typed_where_the_schema_says_text(text):
    assert load(f"--prompts.column={text}").prompts.column == text


def test_what_was_typed_is_forgotten_with_the_value_that_it_stood_for():
    for later in ('{"prompts.column": 2}', "--prompts={'column': 2}"):
        with pytest.raises(ConfigError, match=r"^prompts\.column=2 is not text"):
            load("--prompts.column=1", later)


def test_a_backslash_in_a_python_string_is_no_escape_unless_it_is_one():
    assert load(r"--prompts.column='\d'").prompts.column == r"\d"


def test_a_python_string_loses_its_quotes():
    assert load("--prompts.column='null'").prompts.column == "null"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("['it\\'s', \"no\", 'a, b']", ["it's", "no", "a, b"]),
        ('["say \\"hi\\"", \'${\']', None),
        ("[sun, moon]", ["sun", "moon"]),
        ("('sun', 'moon')", ["sun", "moon"]),
        ("outer space", ["outer space"]),
        ("2024", ["2024"]),
        ("no", ["no"]),
        ("b'x'", ["b'x'"]),
    ],
)
def test_lists_of_words_parse_and_one_string_is_a_list(text, words):
    if words is None:
        with pytest.raises(ConfigError, match="nothing is interpolated"):
            load(f"--sampling.stop={text}")
    else:
        assert load(f"--sampling.stop={text}").sampling.stop == words
        assert words_of(f"--rewards.a.words={text}")["words"] == words


def test_yaml_keeps_012_and_1_30_as_text_and_1e_5_as_a_number(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("sampling: {stop: [012, 1:30, 2024-01-01]}\nppo: {lr: 1e-5}\n")
    config = load(f"--config={file}")
    assert config.sampling.stop == ["012", "1:30", "2024-01-01"]
    assert config.ppo.lr == 1e-5


def test_a_string_in_a_file_becomes_a_list_too(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("trackers: wandb\nrewards: {a: {kind: lexical.contains, words: rain}}")
    config = load(f"--config={file}")
    assert config.trackers == ["wandb"]
    assert config.rewards["a"]["words"] == ["rain"]


def test_whole_floats_are_integers():
    assert load("--train.samples=1e3").train.samples == 1000


def test_the_last_override_of_a_setting_wins():
    assert load("--kl.coef=1", "--kl.coef=2").kl.coef == 2


def test_a_mapping_overrides_key_by_key():
    config = load("--kl={'coef': 0.5}", "--kl={'target': 6}")
    assert (config.kl.coef, config.kl.target) == (0.5, 6)


def test_an_optional_group_can_be_made_and_removed(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("model: {lora: {r: 8}}")
    assert load("--model.lora={}").model.lora.r == 16
    assert load("--model.lora.r=4").model.lora.r == 4
    assert load(f"--config={file}", "--model.lora.alpha=3").model.lora.r == 8
    assert load(f"--config={file}", "--model.lora=null").model.lora is None


# -- rewards


@pytest.fixture
def two_rewards(tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(
        "rewards:\n  sun: {kind: lexical.contains, words: [sun]}\n"
        "  brief: {kind: structure.word_count, max: 5}\n"
    )
    return f"--config={file}"


def test_a_reward_is_overridden_by_name(two_rewards):
    config = load_config(SmallRun, [two_rewards, "--rewards.sun.weight=2", "rewards.brief.max=9"])
    assert config.rewards["sun"]["weight"] == 2
    assert config.rewards["brief"]["max"] == 9


def test_null_removes_a_reward(two_rewards):
    assert list(load_config(SmallRun, [two_rewards, "--rewards.sun=null"]).rewards) == ["brief"]


def test_an_override_with_a_kind_adds_or_replaces_a_reward(two_rewards):
    argv = [two_rewards, "--rewards.end.kind=structure.ends_cleanly"]
    argv += ["--rewards.sun={'kind': 'lexical.diversity', 'n': 3}"]
    rewards = load_config(SmallRun, argv).rewards
    assert list(rewards) == ["sun", "brief", "end"]
    assert rewards["sun"]["n"] == 3 and "words" not in rewards["sun"]


def test_a_reward_is_saved_with_its_defaults(two_rewards):
    assert load_config(SmallRun, [two_rewards]).rewards["brief"] == {
        "kind": "structure.word_count", "min": 0, "max": 5, "slack": 0,
        "weight": 1.0, "threshold": None, "scale": 1.0, "clip": None, "on_error": "raise",
        "error_value": None, "isolate": False, "deadline": None, "moment": None, "hard": False,
    }  # fmt: skip


def test_rewards_may_be_missing_only_where_functions_are_given():
    assert from_mapping(SmallRun, rewards_given=True).rewards == {}
    with pytest.raises(ConfigError, match=r"^rewards is empty"):
        from_mapping(SmallRun)


MINE = '''
from rewards import reward

@reward("mine.{name}")
def {name}(completions: list[str], *, letter: str) -> list[float]:
    """Share of a letter."""
    return [text.count(letter) / max(len(text), 1) for text in completions]
'''


def test_reward_files_load_before_rewards_are_checked(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.yaml").write_text(
        "rewards: {b: {kind: mine.from_file, letter: b}}\nreward_files: mine.py"
    )
    (tmp_path / "mine.py").write_text(MINE.format(name="from_file"))
    (tmp_path / "more.py").write_text(MINE.format(name="from_argument"))
    monkeypatch.chdir(tmp_path)  # paths are relative to it, not to the configuration
    assert load("--config=elsewhere/a.yaml").rewards["b"]["letter"] == "b"
    argv = ["--reward_files", "more.py", "--rewards.c.kind=mine.from_argument"]
    config = load(*argv, "--rewards.c.letter=7")
    assert config.reward_files == ["more.py"]
    assert config.rewards["c"]["letter"] == "7"


# -- where configurations come from


def test_without_config_the_default_is_loaded(tmp_path):
    file = tmp_path / "default.yaml"
    file.write_text("kl: {coef: 3}")
    assert load_config(SmallRun, [], file, rewards_given=True).kl.coef == 3


def test_the_default_falls_back_to_the_packaged_quickstart(tmp_path, monkeypatch):
    packaged = tmp_path / "installed"
    packaged.mkdir()
    (packaged / "quickstart.yaml").write_text((ROOT / QUICKSTART).read_text())
    (packaged / "openings.jsonl").write_text('{"prompt": "The"}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^--config experiments/quickstart\.yaml: no such file"):
        load_config(SmallRun, [], QUICKSTART)
    monkeypatch.setattr(config_module, "PACKAGED", packaged)
    config = load_config(SmallRun, [], QUICKSTART)
    assert config.prompts.path == str(packaged / "openings.jsonl")
    monkeypatch.chdir(ROOT)  # a checkout uses its own
    config = load_config(SmallRun, [], QUICKSTART)
    assert config.prompts.path == "experiments/data/openings.jsonl"


def test_from_mapping_takes_values_a_path_or_a_configuration(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("kl: {coef: 3}")
    by_path = from_mapping(SmallRun, file, {"ppo.lr": 1e-3}, rewards_given=True)
    by_value = from_mapping(SmallRun, {"kl": {"coef": 3}}, ["--ppo.lr=1e-3"], rewards_given=True)
    again = from_mapping(SmallRun, by_value, {}, rewards_given=True)
    assert by_path == by_value == again
    assert (by_path.kl.coef, by_path.ppo.lr) == (3, 1e-3)


def test_from_mapping_leaves_what_it_was_given_alone():
    given = {"rewards": {"a": {"kind": "lexical.contains", "words": "sun"}}, "kl": {"coef": 1}}
    before = json.dumps(given)
    from_mapping(SmallRun, given, {"kl.coef": 2, "rewards.a.weight": 3})
    assert json.dumps(given) == before


def test_from_mapping_takes_text_for_text_only():
    with pytest.raises(ConfigError, match=r"^train\.samples='3' is not an integer of at least"):
        from_mapping(SmallRun, {}, {"train.samples": "3"}, rewards_given=True)
    with pytest.raises(ConfigError, match=r"^kl\.coef is a function; use text"):
        from_mapping(SmallRun, {"kl": {"coef": load}}, rewards_given=True)
