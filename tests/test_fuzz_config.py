"""Any configuration loads, to one that can be written and read back, or is refused in words."""

import json
from pathlib import Path

import pytest
from fuzzing import fuzzed, limited, long_texts, plain_values, texts
from hypothesis import strategies as st

import rewards
from rlalign.algorithms.ppo import PPORun
from rlalign.config import ConfigError, from_mapping, load_config, resolved_yaml, to_flat
from rlalign.settings.overrides import read_yaml
from rlalign.settings.schema import settings
from rlalign.terminal import printable

SOUND = """\
model: {name: glass-tiny, lora: {r: 4}}
prompts: {path: openings.jsonl, eval_fraction: 0.2}
sampling: {max_new_tokens: 24, stop: ["\\n"]}
rewards:
  space:
    kind: lexical.contains
    words: [moon, "star's"]
    weight: {from: 0.0, to: 1.5, iterations: 20}
  short: {kind: structure.word_count, min: 4, max: 12, moment: [0.2, 0.4]}
kl: {coef: 0.05, target: null}
train: {iterations: 40, samples: 64, seed: 1}
run: {name: a-run}  # its folder
"""
PATHS = [setting.path for setting in settings(PPORun.model_json_schema())]
OPTIONS = ["weight", "moment", "hard", "scale", "clip", "threshold", "on_error", "error_value",
           "isolate", "deadline", "column"]  # fmt: skip
PARAMETERS = sorted({p.name for kind in rewards.kinds() for p in rewards.describe(kind).parameters})
SNIPPETS = ["&a ", "*a", "<<: *a", "!!int ", "!!timestamp x", "!!python/object:os.x {}", "!a ",
            "---\n", "...\n", "%YAML 9.9\n", "? ", "- ", "[", "{", "}", ": ", ", ", "|\n", ">\n",
            "'", '"', "#", "\t", "\n", "  ", "\x07", "\ufeff", "@", "`", "0o7", "1:30",
            "2001-01-01", "9" * 5000, "[" * 400, "- " * 400, "{a: " * 400]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        yield


def loads_or_says_why(load):
    try:
        config = load()
    except ConfigError as error:
        lines = str(error).splitlines()
        assert lines and all(line.strip() for line in lines), lines
        assert not any("Traceback" in line or "recursion" in line for line in lines)
        printable(str(error)).encode()
        return
    again = read_yaml(resolved_yaml(config))
    assert from_mapping(PPORun, again, rewards_given=True) == config
    json.dumps(to_flat(config), allow_nan=False).encode()


def of_file(content):
    Path("fuzz.yaml").write_bytes(content)
    return load_config(PPORun, ["--config=fuzz.yaml"], rewards_given=True)


@st.composite
def spoilt(draw):
    """A sound file with a few places replaced."""
    text = SOUND
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 20))
        piece = draw(st.sampled_from(SNIPPETS) | texts(10))
        text = text[:start] + piece + text[end:]
    return text.encode("utf-8", "surrogatepass")


def settings_with_values():
    path = st.sampled_from(PATHS) | st.lists(st.sampled_from(PATHS), min_size=2, max_size=3).map(
        ".".join
    )
    return st.dictionaries(path | texts(12), plain_values(), max_size=4)


def sections():
    """A file's mapping: the right sections, and in them the right names, with any values."""
    found = {}
    for path in PATHS:
        section, _, name = path.partition(".")
        if name and "." not in name:
            found.setdefault(section, []).append(name)
    return st.fixed_dictionaries(
        {},
        optional={
            section: st.dictionaries(st.sampled_from(names), plain_values(4), max_size=3)
            for section, names in found.items()
        },
    )


def reward_entries():
    kind = st.sampled_from(rewards.kinds()) | texts(10)
    names = st.sampled_from([*PARAMETERS, *OPTIONS])
    entry = st.dictionaries(names, plain_values(4), max_size=4)
    entry = st.builds(lambda k, e: {"kind": k, **e}, kind, entry)
    whole = st.dictionaries(st.sampled_from(["a", "b-c", "x1"]) | texts(6), entry, max_size=3)
    parts = st.dictionaries(st.sampled_from("pq") | texts(4), entry, max_size=2)
    joined = st.builds(
        lambda k, p: {"j": {"kind": k, "parts": p}},
        st.sampled_from([k for k in rewards.kinds() if k.startswith("combine.")]),
        parts | plain_values(4),
    )
    return whole | joined


def arguments():
    value = texts(20) | long_texts() | plain_values(4).map(repr_or_text)
    path = st.sampled_from([*PATHS, "rewards.a.kind", "rewards.a.words", "config", "rewards.a.b.c"])
    return st.one_of(
        texts(20) | long_texts(),
        st.builds("--{}={}".format, path | texts(10), value),
        st.builds("{}={}".format, path, value),
        path.map("--{}".format),
        plain_values().map(lambda v: json_or_text({"kl": v})),
        settings_with_values().map(json_or_text),
        st.sampled_from(["{" * 400, '{"a":' * 2000, "." * 500, "a." * 500 + "=1"]),
    ).filter(lambda token: token not in ("-h", "--help"))


def repr_or_text(value):
    try:
        return repr(value)
    except ValueError:  # too many digits
        return "9" * 5000


def json_or_text(value):
    try:
        return json.dumps(value)
    except ValueError:
        return '{"kl.coef": ' + "9" * 5000 + "}"


@fuzzed(600, st.binary(max_size=60) | texts(60).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_file(content):
    loads_or_says_why(lambda: of_file(content))


@fuzzed(500, spoilt())
def test_a_sound_file_with_places_replaced(content):
    loads_or_says_why(lambda: of_file(content))


@fuzzed(350, st.lists(arguments(), max_size=4))
def test_any_command_line(argv):
    loads_or_says_why(lambda: load_config(PPORun, argv, rewards_given=True))


@fuzzed(400, settings_with_values())
def test_any_overrides_from_python(overrides):
    loads_or_says_why(lambda: from_mapping(PPORun, {}, overrides, rewards_given=True))


@fuzzed(500, sections())
def test_any_values_of_settings(mapping):
    loads_or_says_why(lambda: from_mapping(PPORun, mapping, rewards_given=True))


@fuzzed(500, reward_entries())
def test_any_entries_of_rewards(entries):
    loads_or_says_why(lambda: from_mapping(PPORun, {"rewards": entries}, rewards_given=True))


ENORMOUS = {
    "lines": "a: [\n" + "1,\n" * 400_000 + "]",
    "brackets": "[" * 500_000,
    "dashes": "- " * 400_000,
    "aliases": "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
    "itself": "rewards: &r {a: *r}",
    "anchors": "&a " * 300_000,
    "keys": "".join(f"key{i}: 1\n" for i in range(50_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", ENORMOUS)
def test_a_file_that_would_take_for_ever_is_refused_at_once(name):
    with limited(30), pytest.raises(ConfigError, match=r"^(--config fuzz\.yaml: |key0 is unknown)"):
        of_file(ENORMOUS[name].encode())


@pytest.mark.parametrize("token", ['{"kl": ' * 100_000, "[" * 100_000, "--kl=" + "[" * 100_000])
def test_an_argument_that_would_exhaust_the_stack_is_refused(token):
    with limited(30), pytest.raises(ConfigError):
        load_config(PPORun, [token], rewards_given=True)
