# ruff: noqa: E501  a case a line

import pytest
from small_run import SmallRun

from rlalign.config import ConfigError, load_config

BASE = """
rewards:
  space: {kind: lexical.contains, words: [moon]}
"""
EMPTY = (
    "rewards is empty: a run needs at least one, such as --rewards.space.kind=topic.similarity "
    "--rewards.space.topic='outer space'"
)
QUOTE = "YAML reads yes, no, on, off, true and false as booleans; put the word in quotes"
NO_INTERPOLATION = "holds '${': nothing is interpolated here; write the value itself"

ARGUMENTS = [
    # unknown settings, by the nearest name
    (["--trian.samples=3"], "trian.samples is unknown; did you mean train.samples?"),
    (["--train.sampels", "3"], "train.sampels is unknown; did you mean train.samples?"),
    (["train.lr=3"], "train.lr is unknown; did you mean ppo.lr?"),
    (["--lr=3"], "lr is unknown; did you mean ppo.lr?"),
    (["--model.lora.rank=3"], "model.lora.rank is unknown; did you mean model.lora.r?"),
    (["--reward-files=a.py"], "reward-files is unknown; did you mean reward_files?"),
    (["--ppo={'epoch': 3}"], "ppo.epoch is unknown; did you mean ppo.epochs?"),
    (["--train..samples=3"], "train..samples is unknown; did you mean train.samples?"),
    (["--train.samples.x=3"], "train.samples.x is unknown; did you mean train.samples?"),
    # values of the wrong type
    (["--train.samples=many"], "train.samples='many' is not an integer of at least 1"),
    (["--train.samples=012"], "train.samples='012' is not an integer of at least 1"),
    (["--train.samples=1:30"], "train.samples='1:30' is not an integer of at least 1"),
    (["--train.samples=1.5"], "train.samples=1.5 is not an integer of at least 1"),
    (["--train.samples=True"], "train.samples=True is not an integer of at least 1"),
    (["--train.samples=0"], "train.samples=0 is not an integer of at least 1"),
    (["--train.samples=None"], "train.samples=None is not an integer of at least 1"),
    (["--train.threads=few"], "train.threads='few' is not auto or an integer of at least 1"),
    (["--kl.coef=-1"], "kl.coef=-1 is not a number of at least 0"),
    (["--kl.coef=.inf"], "kl.coef=inf is not finite"),
    (["--kl.target=soft"], "kl.target='soft' is not a number above 0 or null"),
    (["--prompts.chat=maybe"], "prompts.chat='maybe' is not true or false"),
    (["--prompts.eval_fraction=1"], "prompts.eval_fraction=1 is not a number of at least 0 and below 1"),
    (["--optim.betas=[0.9]"], "optim.betas=[0.9] is not a list of 2 (a number of at least 0 and below 1, a number of at least 0 and below 1)"),
    (["--score.clip=3"], "score.clip=3 is not a list of 2 (a number, a number) or null"),
    (["--model.dtype=bfloat"], "model.dtype='bfloat' is not one of auto, float32, bfloat16; did you mean bfloat16?"),
    (["--trackers=wanbd"], "trackers[0]='wanbd' is not one of wandb, tensorboard; did you mean wandb?"),
    (["--model.name="], "model.name='' is not text of at least 1 character"),
    (["--model.name=None"], "model.name=None is not text of at least 1 character"),
    (["--run.name=a b"], "run.name='a b' is not text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    (["--kl=3"], "kl=3 is not a group of coef, target, horizon, estimator, placement"),
    (["--sampling.stop=[yes, a]"], f"sampling.stop[0]=True is not text: {QUOTE}"),
    # the command line itself
    (["--train.samples"], "--train.samples needs a value, an integer of at least 1: --train.samples=VALUE"),
    (["quick"], "unexpected argument 'quick'; settings are written --section.key=value"),
    (["other.yaml"], "unexpected argument 'other.yaml'; did you mean --config other.yaml?"),
    (["-kl.coef=3"], "-kl.coef is unknown; did you mean kl.coef?"),
    (["foo=3"], "foo is unknown; the sections are model, prompts, sampling, vllm, rewards, score, kl, target, optim, train, eval, audit, checkpoint, run, trl, trackers, reward_files, ppo"),
    (["--config=again.yaml"], "--config is given twice: base.yaml and again.yaml"),
    (["{kl.coef: 1}"], "unexpected argument '{kl.coef: 1}': not a JSON mapping (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
    (["--model.name=${oc.env:HOME}"], f"model.name='${{oc.env:HOME}}' {NO_INTERPOLATION}"),
    (["--rewards.space.words=['${x']"], f"rewards.space.words[0]='${{x' {NO_INTERPOLATION}"),
    # rewards
    (["--rewards.sapce.weight=2"], "no reward named sapce; did you mean space?"),
    (["--rewards.sapce=null"], "no reward named sapce; did you mean space?"),
    (["--rewards.mars.weight=2"], "no reward named mars; the configuration has space (a new one needs --rewards.mars.kind=KIND)"),
    (["--rewards.space=null"], EMPTY),
    (["--rewards.space=3"], "rewards.space=3 is not a mapping such as {kind: KIND, weight: 1}"),
    (["--rewards.a b.kind=x"], "unexpected argument '--rewards.a b.kind=x'; settings are written --section.key=value"),
    (["--rewards.space.kind=lexical.contain"], "rewards.space.kind='lexical.contain' is unknown; did you mean 'lexical.contains'?"),
    (["--rewards.space.wrods=a"], "rewards.space.wrods is not a parameter of lexical.contains; did you mean 'words'?"),
    (["--rewards.space.words=[no]"], f"rewards.space.words[0]=False is not text: {QUOTE}"),
    (["--rewards.space.moment=0.5", "--rewards.space.weight=2"], "rewards.space.moment=0.5 beside rewards.space.weight=2: a moment fits its own weight, and what is hard needs none; remove the weight (weight: null), or the other"),
    (["--rewards.space.hard", "--rewards.space.scale=2"], "rewards.space.hard=true: a response holds it or not, so scale and clip mean nothing; remove them, or say by rewards.space.threshold from which value on it holds"),
    (["--rewards.space.words"], "--rewards.space.words needs a value, a list of text: --rewards.space.words=VALUE"),
]  # fmt: skip

FILES = [
    ("", "--config base.yaml: is empty; copy experiments/quickstart.yaml to start"),
    ("# nothing\n", "--config base.yaml: is empty; copy experiments/quickstart.yaml to start"),
    ("- a\n", "--config base.yaml: holds a list; the top level is a mapping of sections"),
    ("quick", "--config base.yaml: holds the single value 'quick'; the top level is a mapping of sections"),
    ("kl:\n  coef: 1\n  coef: 2\n", "--config base.yaml: line 3: the key 'coef' is already on line 2"),
    ("kl:\n  coef: 1\n target: 2\n", "--config base.yaml: line 3: expected <block end>, but found '<block mapping start>'"),
    ("kl:\n\tcoef: 1\n", "--config base.yaml: line 2: found character '\\t' that cannot start any token"),
    ("kl: {coef: 1\ntrain: 2", "--config base.yaml: line 2: expected ',' or '}', but got ':'"),
    ("a: 1\n---\nb: 2\n", "--config base.yaml: line 2: but found another document"),
    ("a: \x07", "--config base.yaml: line 1: the character '\\x07' is not allowed in YAML"),
    (BASE + "kl: {target: '${kl.coef}'}", f"kl.target='${{kl.coef}}' {NO_INTERPOLATION}"),
    (BASE + "run: {name: 2024}", "run.name=2024 is not text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$; put it in quotes"),
    (BASE + "train: {samples: '64'}", "train.samples='64' is not an integer of at least 1"),
    (BASE + "no: 1", "the key False at the top level is not text: quote it"),
    (BASE + "trian: {samples: 1}", "trian is unknown; did you mean train?"),
    (BASE + "kl.coef: 1", "kl.coef is unknown; nest it: kl: {coef: …}"),
    (BASE + "model: {name: no}", f"model.name=False is not text: {QUOTE}"),
    (BASE + "sampling: {stop: [on]}", f"sampling.stop[0]=True is not text: {QUOTE}"),
    (BASE + "reward_files: none.py", "reward_files: no file 'none.py' in DIRECTORY"),
    ("rewards: {}", EMPTY),
    ("kl: {coef: 1}", EMPTY),
    ("rewards: [space]", "rewards is a list; it is a mapping by name: {space: {kind: …}}"),
    ("rewards: {space: {weight: 2}}", "rewards.space.kind is missing; see `rlalign rewards list`"),
    ("rewards: {a.b: {kind: lexical.diversity}}", "rewards: the name 'a.b' is not made of letters, digits, _ and -"),
    ("rewards: {a: {kind: lexical.contains, words: [no, yes]}}", f"rewards.a.words[0]=False is not text: {QUOTE}\nrewards.a.words[1]=True is not text: {QUOTE}"),
]  # fmt: skip


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


@pytest.mark.parametrize(("argv", "message"), ARGUMENTS)
def test_a_bad_command_line_is_explained(directory, argv, message):
    with pytest.raises(ConfigError) as caught:
        load_config(SmallRun, ["--config", "base.yaml", *argv])
    assert str(caught.value) == message


@pytest.mark.parametrize(("text", "message"), FILES)
def test_a_bad_file_is_explained(directory, text, message):
    (directory / "base.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(SmallRun, ["--config=base.yaml"])
    assert str(caught.value) == message.replace("DIRECTORY", str(directory))


def test_a_file_that_is_not_there_is_named_with_the_directory(directory):
    with pytest.raises(ConfigError) as caught:
        load_config(SmallRun, ["--config=gone.yaml"])
    assert str(caught.value) == f"--config gone.yaml: no such file in {directory}"


def test_a_file_that_is_not_text_is_refused(directory):
    (directory / "base.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match=r"^--config base\.yaml: is not UTF-8 text$"):
        load_config(SmallRun, ["--config=base.yaml"])


def test_an_argument_that_is_not_utf8_is_refused(directory):
    with pytest.raises(ConfigError, match=r"^model\.name='a.udcff' is not UTF-8 text$"):
        load_config(SmallRun, ["--config=base.yaml", "--model.name=a\udcff"])


def test_every_fault_of_one_load_is_reported_on_its_own_line(directory):
    (directory / "base.yaml").write_text(BASE + "train: {samples: many}\nkl: {coef: -1}\n")
    argv = ["--config=base.yaml", "what", "--lr=2", "--ppo.epochs", "--rewards.space.x=1"]
    with pytest.raises(ConfigError) as caught:
        load_config(SmallRun, [*argv, "--rewards.space.y=1", "--rewards.space.weight=heavy"])
    assert sorted(str(caught.value).splitlines()) == [
        "--ppo.epochs needs a value, an integer of at least 1: --ppo.epochs=VALUE",
        "kl.coef=-1 is not a number of at least 0",
        "lr is unknown; did you mean ppo.lr?",
        "rewards.space.weight='heavy': input should be a valid number, unable to parse string as a number",
        "rewards.space.x is not a parameter of lexical.contains; it takes: words, mode, weight, threshold, scale, clip, on_error, error_value, isolate, deadline, moment, hard",
        "rewards.space.y is not a parameter of lexical.contains; it takes: words, mode, weight, threshold, scale, clip, on_error, error_value, isolate, deadline, moment, hard",
        "train.samples='many' is not an integer of at least 1",
        "unexpected argument 'what'; settings are written --section.key=value",
    ]  # fmt: skip


def test_a_reward_file_that_fails_is_explained_with_its_line(directory):
    (directory / "mine.py").write_text("import rewards\n1 / 0\n")
    with pytest.raises(ConfigError) as caught:
        load_config(SmallRun, ["--config=base.yaml", "--reward_files", "mine.py"])
    assert str(caught.value) == (
        "reward_files: reward file 'mine.py' failed at line 2: ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize("code", ["import sys\nsys.exit(3)\n", None])
def test_kinds_that_a_failed_reward_file_may_define_are_not_called_unknown(directory, code):
    if code is not None:
        (directory / "mine.py").write_text(code)
    argv = ["--config=base.yaml", "--reward_files=mine.py", "--rewards.x.kind=my.r", "--lr=1"]
    with pytest.raises(ConfigError) as caught:
        load_config(SmallRun, argv)
    fault = (
        f"no file 'mine.py' in {directory}"
        if code is None
        else "reward file 'mine.py' failed at line 2: SystemExit: 3"
    )
    assert sorted(str(caught.value).splitlines()) == [
        "lr is unknown; did you mean ppo.lr?",
        f"reward_files: {fault}",
    ]
