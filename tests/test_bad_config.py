"""Several faults at once, and what a shell cannot type; tests/bad_inputs.yaml has the rest."""

# ruff: noqa: E501  a case a line

import pytest
from small_run import SmallRun

from rlalign.config import ConfigError, load_config

BASE = """
rewards:
  space: {kind: lexical.contains, words: [moon]}
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


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
        "train.samples='many' is not an integer of at least 1 and at most 10000000",
        "unexpected argument 'what'; settings are written --section.key=value",
    ]  # fmt: skip


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
