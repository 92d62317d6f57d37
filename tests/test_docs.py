"""What README and the other pages tell people to type works: blocks, commands, paths, tables."""

import ast
import inspect
import os
import re
import shlex
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import yaml

import rewards
import rlalign
from rewards import registry
from rlalign import cli, exits
from rlalign.algorithms.ppo import PPORun, optimum_warnings
from rlalign.config import from_mapping, load_config
from rlalign.methods import METHODS
from rlalign.reward_model import DEFAULT as REWARD_MODEL
from rlalign.reward_model import RewardModelRun
from rlalign.runs import RunFolder
from rlalign.sweeps.file import read_sweep

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "experiments/LOG.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """Fenced blocks of a language, without the indentation that a list gives them."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [
        "\n".join(line.removeprefix(indent) for line in text.splitlines())
        for indent, lang, text in found
        if lang == language
    ]


def commands():
    """Every command line of the pages: in bash blocks, and in tables where it launches."""
    pages = [page for page in PAGES if page.name != "bad-input.md"]  # where they are wrong
    lines = [line for page in pages for block in blocks(page, "bash") for line in block.split("\n")]
    for page in pages:
        lines += re.findall(r"`((?:accelerate launch|rlalign) [^`]+)`", page.read_text("utf-8"))
    return sorted({line for line in lines if line.strip()})


def block_named(name):
    """The block of the README or docs/trl.md whose first line is a comment with the file's name."""
    pages = (README, ROOT / "docs" / "trl.md")
    all_blocks = [
        block for page in pages for kind in ("python", "yaml") for block in blocks(page, kind)
    ]
    return next(block for block in all_blocks if block.startswith(f"# {name}\n"))


@pytest.fixture
def readers_folder(tmp_path, monkeypatch):
    """The files that the pages have their reader write, beside the checkout's experiments."""
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setattr(registry, "_files", dict(registry._files))
    for name in ("my_rewards.py", "my_run.yaml", "my_trl_rewards.py"):
        (tmp_path / name).write_text(block_named(name), encoding="utf-8")
    for name in ("experiments", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- the README's own reward, as a reader would try it -------------------------------------------


def test_the_readers_rewards_keep_the_contract(readers_folder):
    rewards.load_file("my_rewards.py")
    kinds = re.findall(r'@reward\("([\w.]+)"', block_named("my_rewards.py"))
    assert kinds == ["my.questions", "my.starts_like"]
    for kind in kinds:
        rewards.conformance.check(kind)


def test_the_one_line_conformance_test_passes(readers_folder, capsys):
    assert "rlalign rewards test my_rewards.py" in commands()
    assert cli.main(["rewards", "test", "my_rewards.py"]) == 0
    assert "rewards: 2, checks: 22, failed: 0" in capsys.readouterr().out


def test_the_readers_reward_on_a_column_is_probed_as_the_readme_says(readers_folder, capsys):
    columns = re.search(r"`--columns '([^']+)'` gives `probe`", README.read_text("utf-8"))[1]
    (readers_folder / "column.yaml").write_text(
        "reward_files: [my_rewards.py]\nrewards: {starts: {kind: my.starts_like}}\n"
    )
    argv = ["rewards", "probe", "--config=column.yaml", "--columns", columns, "Once.", "Twice."]
    assert cli.main(argv) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    value = {row[1]: row[3] for row in rows if len(row) > 3}
    assert (value["Once."], value["Twice."]) == ("1.000", "0.000")


def test_the_readers_configuration_loads_and_says_what_it_shows(readers_folder):
    config = load_config(PPORun, ["--config", "my_run.yaml"])
    assert config.rewards["asks"]["most"] == 2 and config.rewards["rain"]["weight"] == 0
    assert config.run.name == "questions" and optimum_warnings(config) == []


def test_the_readers_configuration_is_probed(readers_folder, capsys):
    lines = [line for line in commands() if line.startswith("rlalign rewards probe")]
    line = next(line for line in lines if "Who?" in line)
    assert cli.main(shlex.split(line)[1:]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    score = {
        row[1]: row[-2] for row in rows if len(row) > 2 and row[1] in ("Where", "Here.", "Who?")
    }
    assert score == {"Where": "1.000", "Here.": "0.000", "Who?": "2.000"}


def test_a_misspelt_setting_of_the_readers_reward_is_refused_by_name(readers_folder, capsys):
    assert cli.main(["config", "--config", "my_run.yaml", "--rewards.asks.mots=3"]) == 2
    assert "rewards.asks.mots" in capsys.readouterr().err


def test_the_snippet_that_loads_an_adapter_samples_as_in_training():
    source = next(block for block in blocks(README, "python") if "AutoPeftModel" in block)
    assert "model.generation_config = GenerationConfig.from_pretrained(folder)\n" in source


def test_the_python_example_calls_train_as_it_is(monkeypatch, capsys):
    source = next(block for block in blocks(README, "python") if "result = train(" in block)
    calls = []

    class Stub:
        folder, after = Path("runs/x"), type("After", (), {"stats": {"eval/score": 1.0}})

    def stand_in(*args, **kwargs):
        bound = inspect.signature(train).bind(*args, **kwargs)
        given = bound.arguments
        calls.append(given["rewards"][0](["Where?", "Here."]))
        from_mapping(PPORun, given["config"], given["overrides"], rewards_given=True)
        return Stub

    train = rlalign.train
    monkeypatch.setattr("rlalign.api.train", stand_in)
    exec(compile(source, "README", "exec"), {})
    assert calls == [[1.0, 0.0]] and "runs/x 1.0" in capsys.readouterr().out


# -- every block and command ----------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_are_python_and_import_what_is_there(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module, fromlist=["_"])
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_blocks_load(page, readers_folder):
    for number, block in enumerate(blocks(page, "yaml")):
        file = readers_folder / f"block{number}.yaml"
        file.write_text(block, encoding="utf-8")
        run_model = RewardModelRun if "pairs" in yaml.safe_load(block) else PPORun
        load_config(run_model, ["--config", str(file)])


@pytest.mark.parametrize("line", commands())
def test_commands_exist_and_take_what_is_shown(line, readers_folder):
    words = shlex.split(line)
    if "KIND" in words or "NAME" in words:
        words = ["structure.word_count" if w in ("KIND", "NAME") else w for w in words]
    while "=" in words[0]:  # VARIABLE=value in front
        words = words[1:]
    program, *arguments = words
    CHECKS[program.rpartition("/")[2]](arguments)


def check_rlalign(arguments):
    """The command's own parser takes the arguments; settings load as a configuration."""
    name, *rest = arguments
    rest = rest[: rest.index(">")] if ">" in rest else rest
    if name.startswith("--"):
        known = [o for p in typer.main.get_command(cli.app).params for o in p.opts]
        assert name in [*known, "--help"]
    elif name in ("config", "doctor"):
        settings = group(name).make_context(name, rest).args
        load_config(PPORun, settings, default="experiments/quickstart.yaml")
    elif name == "ppo":
        load_config(PPORun, rest, default="experiments/quickstart.yaml")
    elif name in METHODS:
        load_config(METHODS[name].run_model, rest, default="experiments/quickstart.yaml")
    elif name == "eval":
        settings = rest[1 : rest.index("--out")] if "--out" in rest else rest[1:]
        settings = [a for a in settings if a not in OWN_OPTIONS]
        load_config(PPORun, settings, default="my_run.yaml")
    elif name == "sweep":
        assert read_sweep(Path(rest[0])) and set(rest[1:]) <= {"--local"}
    elif name in ("sample", "export", "push", "init"):
        typed = rest[: rest.index(">")] if ">" in rest else rest
        if typed:  # in a heading there is the name alone
            settings = group(name).make_context(name, typed).args
            load_config(PPORun, settings, default="experiments/quickstart.yaml")
    elif name in ("compare", "report"):
        assert name in typer.main.get_command(cli.app).commands and rest
    elif name == "watch":
        assert cli.main([*arguments, "--help"]) == 0
    elif "|" in arguments:  # a list of commands, as in `rewards list | show | probe`
        assert {rest[0], *arguments[3::2]} <= set(group("rewards").commands)
    else:
        assert rest[0] in group("rewards").commands
        assert cli.main([*arguments, "--help"]) == 0


def group(name):
    return typer.main.get_command(cli.app).commands[name]


def check_accelerate(arguments):
    assert arguments.pop(0) == "launch"
    if arguments[0] == "--config_file":
        assert yaml.safe_load(Path(arguments[1]).read_text("utf-8"))["num_processes"] > 1
        arguments = arguments[2:]
    if arguments[0] == "-m":
        assert find_spec(arguments[1])
    elif arguments:
        assert Path(arguments[0]).is_file()
        if arguments[0] == "launch/reward_model.py":
            load_config(RewardModelRun, arguments[1:], default=REWARD_MODEL)
        else:
            load_config(PPORun, arguments[1:], default="experiments/quickstart.yaml")


def check_python(arguments):
    """A script of experiments/; what follows it are settings of its PPO run."""
    assert Path(arguments[0]).is_file() and arguments[0].startswith("experiments/")
    load_config(PPORun, arguments[1:], default="experiments/quickstart.yaml")


def check_make(arguments):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    goals = [argument for argument in arguments if "=" not in argument]
    assert goals and set(goals) <= set(targets)
    given = [argument.removeprefix("ARGS=") for argument in arguments if "ARGS=" in argument]
    if given and "ppo" in goals:
        load_config(PPORun, shlex.split(given[0]), default="experiments/quickstart.yaml")


def check_pip(arguments):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for argument in arguments:
        if match := re.fullmatch(r"\.\[([\w,]+)\]", argument):
            assert set(match[1].split(",")) <= set(extras["optional-dependencies"])
        if "==" in argument:
            assert argument in (ROOT / "constraints.txt").read_text("utf-8").splitlines()


def check_wandb(arguments):
    assert arguments[0] in ("sweep", "agent") and "wandb" in packages_distributions()
    if arguments[0] == "sweep":
        assert yaml.safe_load(Path(arguments[1]).read_text("utf-8"))["command"]


OWN_OPTIONS = ("--trust",)
CHECKS = {
    "rlalign": check_rlalign, "accelerate": check_accelerate, "make": check_make,
    "python": check_python, "pip": check_pip, "wandb": check_wandb,
}  # fmt: skip


# -- paths and tables -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    links = {os.path.relpath(page.parent / link, ROOT) for link in links}
    paths = re.findall(r"`((?:docs|experiments|launch|rlalign|rewards|tests)/[\w./-]+)`", text)
    absent = {path for path in links | set(paths) if not (ROOT / path).exists()}
    assert not absent


def rows_of(heading):
    """First cells of the README's first table behind a text."""
    behind = README.read_text(encoding="utf-8").split(heading, 1)[1]
    table = behind[behind.index("\n|") + 1 :].split("\n\n", 1)[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def test_the_table_of_rewards_names_every_kind():
    behind = README.read_text(encoding="utf-8").split("The built-in kinds", 1)[1].split("\n## ")[0]
    listed = set(re.findall(r"`((?:lexical|topic|style|structure)\.\w+)`", behind))
    families = {"lexical", "topic", "style", "structure"}
    assert listed == {kind for kind in rewards.kinds() if kind.partition(".")[0] in families}
    assert "`model.preference`" in behind


def test_the_table_of_launchers_names_every_file():
    named = {
        m[1] for row in rows_of("## Processes") if (m := re.search(r"accelerate/(\w+\.yaml)", row))
    }
    assert named == {path.name for path in (ROOT / "launch/accelerate").glob("*.yaml")}


def test_the_table_of_exit_codes_is_the_codes():
    source = inspect.getdoc(exits.exit_code)
    documented = {int(code) for code in re.findall(r"\b(\d+) [a-z]", source)}
    assert {int(row) for row in rows_of("**Exit codes**")} == documented | {1}


def test_the_table_of_a_runs_files_names_all_that_a_run_writes():
    folder = RunFolder(Path("x"))
    fields = [name for name, value in vars(RunFolder).items() if isinstance(value, property)]
    written = {getattr(folder, name).name for name in fields if name not in ("name", "path")}
    assert written <= {row.strip("`/") for row in rows_of("## Runs")}


def test_settings_in_running_text_exist():
    sections = set(PPORun.model_fields)
    for page in PAGES[:2]:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for name in re.findall(r"`(\w+\.\w+)(?:=[^`]*)?`", text):
            section, _, field = name.partition(".")
            is_setting = section in sections - {"rewards"} and name not in rewards.kinds()
            if is_setting and field not in ("json", "yaml", "py", "png"):
                known = PPORun.model_fields[section].annotation.model_fields
                assert field in known, f"{page.name}: {name}"
