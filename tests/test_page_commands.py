"""What the pages tell people to type is taken: each line by the program's own parser."""

import re
import subprocess

import pytest
from pages import NAMES, README, blocks, mentioned, page_named, stage, typed, write_files
from shell_commands import CHECKS, NOT_INSTALLED, check, check_mentioned

# What a test cannot judge, each with why. Few, or the pages say too little.
NOT_CHECKED = {
    'make ppo ARGS="--rewards.sky.weight=1 --rewards.space.weight=4 --rewards.cheerful.weight=2 '
    '--kl.coef=0.12 --ppo.lr=3e-4 --ppo.value_lr=1e-3"': "of then: it is now called light",
}


def lines_of(pages_lines):
    """(page, line) of every page, less what cannot be judged."""
    every = [(name, line) for name in NAMES for line in pages_lines(page_named(name))]
    return [(name, line) for name, line in every if line not in NOT_CHECKED]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A folder for each page with the files that its reader has saved."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("reader")
            write_files(made[name], README, page_named(name))
        return made[name]

    return folder


@pytest.mark.parametrize(("page", "line"), lines_of(typed))
def test_lines_to_type_are_taken_as_they_are(page, line, folder_of, monkeypatch):
    monkeypatch.chdir(folder_of(page))
    check(line)


@pytest.mark.parametrize(("page", "line"), lines_of(mentioned))
def test_commands_in_running_text_exist(page, line, folder_of, monkeypatch):
    monkeypatch.chdir(folder_of(page))
    check_mentioned(line)


def test_few_lines_are_left_out_and_each_is_still_there():
    every = {
        line for name in NAMES for line in [*typed(page_named(name)), *mentioned(page_named(name))]
    }
    assert len(NOT_CHECKED) < 4 and NOT_CHECKED.keys() <= every
    programs = {word for line in every for word in line.split()}
    assert len(NOT_INSTALLED) < 4 and NOT_INSTALLED.keys() <= programs


@pytest.mark.parametrize("page", NAMES)
def test_no_command_hides_in_another_kind_of_block(page):
    """Indented, or called text, a command would be read by nobody."""
    file = page_named(page)
    begins = "|".join([*CHECKS, *NOT_INSTALLED])
    command = re.compile(rf"^(?:\w+=\S+ )?(?:{begins}) [\w./-]+", re.MULTILINE)
    assert not [b for b in blocks(file, "text", "") if command.search(b.text)]
    assert not re.findall(rf"^ {{4,}}(?:{begins}) .*", stage.FENCE.sub("", file.read_text()), re.M)


@pytest.mark.parametrize("page", NAMES)
def test_shell_blocks_are_shell(page):
    for block in blocks(page_named(page), "bash"):
        done = subprocess.run(
            ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "rlalign ppo --config no.yaml",
        "rlalign ppo --kl.cof=1",
        "rlalign evl runs/x",
        "rlalign sweep experiments/sweeps/kl.yaml --remote",
        "rlalign rewards test no.py",
        "rlalign compare",
        "accelerate launch --num_machine 2 launch/ppo.py",
        "accelerate launch launch/pppo.py",
        "accelerate launch launch/ppo.py --ppo.lr=fast",
        "make ppoo",
        "pip install '.[trainers]'",
        "python experiments/grid.py --onyl word_all",
        "frobnicate",
    ],
)
def test_a_line_that_is_wrong_is_noticed(line, folder_of, monkeypatch, capsys):
    monkeypatch.chdir(folder_of("README.md"))
    with pytest.raises((Exception, SystemExit)):
        check(line)
