# ruff: noqa: E501  a case a line

import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from rewards.embedded import EmbeddedError
from rlalign import run_method
from rlalign.cli import app, main
from rlalign.problems import ConfigError

WORDS = "rewards:\n  sun: {kind: lexical.contains, words: [sun], weight: 2}\n"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(WORDS)
    return tmp_path


def stderr_of(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


# -- help, version, wrong names


@pytest.mark.parametrize(
    "command",
    [[], ["ppo"], ["eval"], ["compare"], ["report"], ["watch"], ["config"], ["doctor"], ["sweep"], ["rewards"], ["rewards", "list"], ["rewards", "show"], ["rewards", "probe"],
     ["rewards", "test"], ["rewards", "bench"]],
)  # fmt: skip
def test_every_help_text_has_an_example(command, capsys):
    assert main([*command, "--help"]) == 0
    assert "Example: rlalign " in capsys.readouterr().out


def test_help_works_through_typers_own_runner():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0 and "rewards" in result.output


def test_python_m_rlalign_prints_the_version():
    run = subprocess.run(
        [sys.executable, "-m", "rlalign", "--version"], capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.startswith("rlalign 0.")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["pp"], "rlalign: No such command 'pp'. Did you mean 'ppo'? (`rlalign --help` lists the commands)"),
        (["rewards", "lst"], "rlalign: No such command 'lst'. Did you mean 'list'? (`rlalign --help` lists the commands)"),
        (["rewards", "show"], "rlalign: Missing argument 'name'. (`rlalign --help` lists the commands)"),
        (["rewards", "show", "topic.similarty"], "reward kind 'topic.similarty' is unknown; did you mean 'topic.similarity'?"),
        (["rewards", "list", "--reward_files", "no.py"], "--reward_files no.py: no such file in DIRECTORY"),
        (["config", "--config=no.yaml"], "--config no.yaml: no such file in DIRECTORY"),
        (["config", "--config=a.yaml", "--kl.cof=1"], "kl.cof is unknown; did you mean kl.coef?"),
        (["rewards", "probe", "--config", "no.yaml", "x"], "--config no.yaml: no such file in DIRECTORY"),
        (["rewards", "probe", "x"], "--config experiments/quickstart.yaml: no such file in DIRECTORY"),
    ],
)  # fmt: skip
def test_a_wrong_name_ends_with_2_and_what_to_do(directory, argv, line, capsys):
    assert main(argv) == 2
    assert stderr_of(capsys)[-1] == line.replace("DIRECTORY", str(directory))


# -- commands that pass on


@pytest.fixture
def passed_on(monkeypatch):
    """What `rlalign ppo` and `rlalign eval` hand to the modules that do the work."""
    seen = []
    for name in ("rlalign.ppo", "rlalign.measure"):
        fake = types.ModuleType(name)
        fake.main = lambda *given, name=name: seen.append((name, *given)) or 3
        monkeypatch.setitem(sys.modules, name, fake)
        monkeypatch.setattr(sys.modules["rlalign"], name.split(".")[1], fake, raising=False)
    return seen


def test_ppo_passes_every_argument_on_and_gives_the_exit_code_back(passed_on):
    argv = ["--config", "a.yaml", "--kl.coef=0.2", "ppo.lr=1e-5", "--sampling.stop", "-1", "--x"]
    assert main(["ppo", *argv]) == 3
    assert passed_on == [("rlalign.ppo", argv)]


def test_eval_passes_the_run_and_every_argument_on(passed_on):
    given = ["--config", "a.yaml", "--kl.coef=0.2"]
    assert main(["eval", "runs/a", *given]) == 3
    assert main(["eval", "a/hub-id", *given, "--out", "there", "--trust"]) == 3
    assert passed_on == [
        ("rlalign.measure", "runs/a", given, None, False),
        ("rlalign.measure", "a/hub-id", given, "there", True),
    ]


def test_a_configuration_error_from_below_ends_with_2(passed_on, monkeypatch, capsys):
    def fail(argv):
        raise ConfigError("train.samples=3\x1b[31m: choose 4")

    monkeypatch.setattr(sys.modules["rlalign.ppo"], "main", fail)
    assert main(["ppo"]) == 2
    assert stderr_of(capsys) == ["train.samples=3\\x1b[31m: choose 4"]


def test_a_model_that_cannot_be_fetched_ends_with_4(passed_on, monkeypatch, capsys):
    def fail(argv):
        raise EmbeddedError("no network; fill the cache first")

    monkeypatch.setattr(sys.modules["rlalign.ppo"], "main", fail)
    assert main(["ppo"]) == 4
    assert stderr_of(capsys) == ["no network; fill the cache first"]


# -- config


def test_config_prints_what_loads_again(directory, capsys):
    assert main(["config", "--config", "a.yaml", "--kl.coef=0.25"]) == 0
    (directory / "b.yaml").write_text(capsys.readouterr().out)
    assert main(["config", "--config", "b.yaml"]) == 0
    printed = capsys.readouterr().out
    assert printed == (directory / "b.yaml").read_text() and "coef: 0.25" in printed


def test_config_schema_holds_the_kinds_of_the_configurations_own_files(directory, capsys):
    assert main(["config", "--schema"]) == 0
    assert '"lexical.contains"' in capsys.readouterr().out
    (directory / "mine.py").write_text(
        "from rewards import reward\n@reward('cli.schema')\n"
        "def f(completions: list[str]) -> list[float]:\n    return [0.0 for _ in completions]\n"
    )
    assert main(["config", "--schema", "--config=a.yaml", "--reward_files=mine.py"]) == 0
    assert '"cli.schema"' in capsys.readouterr().out


# -- rewards

FAULTY = """
from rewards import reward

@reward("cli.{name}")
def {name}(completions: list[str]) -> list[float]:
    "A summary [bold]with[/red] markup \\x1b[31m."
    {body}
"""


def test_rewards_list_names_every_kind_and_those_of_a_file(directory, capsys):
    (directory / "mine.py").write_text(FAULTY.format(name="listed", body="return []"))
    assert main(["rewards", "list", "--reward_files", "mine.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[0] == "topic.similarity" for line in lines)
    own = next(line for line in lines if "cli.listed" in line)
    assert "A summary [bold]with[/red] markup \\x1b[31m." in own


def test_rewards_show_explains_a_reward_of_a_file(directory, capsys):
    (directory / "mine.py").write_text(FAULTY.format(name="shown", body="return []"))
    assert main(["rewards", "show", "cli.shown", "--reward_files", "mine.py"]) == 0
    out = capsys.readouterr().out
    assert "cli.shown   mine.py:4" in out and "[bold]with[/red] markup \\x1b[31m." in out


def test_probe_shows_each_reward_and_the_weighted_score(directory, capsys):
    assert main(["rewards", "probe", "--config", "a.yaml", "The sun rose.", "Rain."]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-4:-1] for row in rows if "rose." in row] == [["1.000", "│", "2.000"]]
    assert [row[-4:-1] for row in rows if "Rain." in row] == [["0.000", "│", "0.000"]]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[/red]", "[/red]"),
        ("[bold]sun[/bold] :smile:", "[bold]sun[/bold] :smile:"),
        ("a\x1b[31mb\x07", "a\\x1b[31mb\\x07"),
        ("a\r\tb\u202ec", "a\\r\\tb\\u202ec"),
        ("\ud83d alone", "\\ud83d alone"),
    ],
)
def test_probe_shows_hostile_text_as_it_is(directory, capsys, text, shown):
    assert main(["rewards", "probe", "--config=a.yaml", "--prompt", "[/x]", text]) == 0
    assert shown in capsys.readouterr().out


def test_probe_takes_reward_files_and_reports_a_faulty_reward_with_5(directory, capsys):
    (directory / "mine.py").write_text(FAULTY.format(name="short", body="return [1.0, 2.0, 3.0]"))
    (directory / "b.yaml").write_text("rewards: {bad: {kind: cli.short}}")
    assert main(["rewards", "probe", "--config=b.yaml", "--reward_files=mine.py", "x"]) == 5
    last = stderr_of(capsys)[-1]
    assert "bad" in last and "cli.short" in last and "mine.py:4" in last and "3 values" in last


@pytest.mark.parametrize("method", ["dpg", "reinforce"])
def test_the_other_methods_pass_their_arguments_on_too(method, monkeypatch):
    passed_on = []
    monkeypatch.setattr(run_method, "main", lambda name, argv: passed_on.append((name, argv)) or 3)
    assert main([method, "--kl.coef=0.2"]) == 3
    assert passed_on == [(method, ["--kl.coef=0.2"])]
