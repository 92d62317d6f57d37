"""Tables and settings in the README are those of the code."""

import inspect
import re
from pathlib import Path

from pages import README, ROOT, page_named, stage

import rewards
from rlalign import exits
from rlalign.algorithms.ppo import PPORun
from rlalign.runs import RunFolder


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
    for page in (README, page_named("CONTRIBUTING.md")):
        text = stage.FENCE.sub("", page.read_text(encoding="utf-8"))
        for name in re.findall(r"`(\w+\.\w+)(?:=[^`]*)?`", text):
            section, _, field = name.partition(".")
            is_setting = section in sections - {"rewards"} and name not in rewards.kinds()
            if is_setting and field not in ("json", "yaml", "py", "png"):
                known = PPORun.model_fields[section].annotation.model_fields
                assert field in known, f"{page.name}: {name}"
