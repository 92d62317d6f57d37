"""Who may import whom, how long a file may be, and who touches TRL: read from the source."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each layer may import itself and those before it; a new module must be given its place here.
LAYERS = [
    {"rewards", "trl_bridge"},
    {
        "types",
        "problems",
        "settings.overrides",
        "settings.schema",
        "settings.settle",
        "settings.reward_settings",
        "config",
        "explaining",
        "nearby",
        "completion",
        "trust",
        "columns",
    }
    | {
        "settings.fields",
        "settings.audit_section",
        "settings.run_section",
        "settings.sections",
        "settings.method_sections",
        "offsets",
    }
    | {
        "masking",
        "logprobs",
        "kl",
        "importance",
        "gae",
        "running",
        "products",
        "packing",
        "sizes",
        "files",
        "new_folder",
        "heap",
        "batches",
        "divergences",
        "moments",
        "baseline",
        "optimum",
    }
    | {
        "terminal",
        "cores",
        "wandb_login",
        "redact",
        "startup",
        "settings.run_section",
        "guard.whereabouts",
        "guard.stopping",
    },
    {"prompts", "pairs", "policy", "models", "ranks", "checkpoints.folder", "metrics"}
    | {"checkpoints.optimizer_state", "runs", "tracking"}
    | {"wandb_tracker", "trackio_tracker"}
    | {"guard.watching", "guard.telling"},
    {f"generation.{name}" for name in ("sampling", "engine", "caches", "decode", "vllm", "build")}
    | {"target", "partition", "pseudo_reward", "scoring", "symptoms", "behaviour"},
    {"signs"},
    {"audit"},
    {f"algorithms.{name}" for name in ("ppo", "dpg", "reinforce")},
    {"session", "fitting"},
    {"dual", "objective"},
    {"exits", "guard.endings", "trainer", "doctor.estimate"}
    | {f"doctor.{name}" for name in ("checks", "packages", "processor", "places", "machine")},
    {"evaluate", "checkpoints.saving", "trained"}
    | {
        f"yardstick.{name}"
        for name in (
            *("evidence", "estimators", "log_z", "diversity"),
            *("support", "drawing", "measured", "numbers"),
        )
    }
    | {
        f"report.{name}"
        for name in (
            "visible",
            *("live", "live_bar", "live_text", "follow"),
            "marked",
            "card",
            "exported_card",
            "plots",
            "yardstick_picture",
            "compare_page",
            "compare_pictures",
            "compare_readings",
            "yardstick_table",
            "configuration_page",
            "rewards_page",
            "rewards_notes",
            "markup",
            "changes",
            "eval_file",
            *(f"page.{name}" for name in ("record", "asked", "charts", "tables", "embedded")),
            *("page.sections", "page.document", "page.at_end"),
        )
    },
    {
        f"reward_training.{name}"
        for name in (
            *("settings", "examples", "linear", "encoder", "folder", "fit", "measure", "picture"),
            *("training", "command"),
        )
    },
    {"checkpoints.fingerprint", "recording", "checkpoints.resuming"},
    {"loop"},
    {"trl_trainers.rewards", "trl_trainers.settings", "trl_trainers.record"},
    {"doctor.demand", "doctor.probe_time", "doctor.showing"},
    {f"sweeps.{name}" for name in ("parameters", "early", "file", "ours", "metrics", "child")}
    | {f"sweeps.{name}" for name in ("queue", "importances", "outcome", "picture", "results")}
    | {"sweeps.online", "sweeps.worker"},
    {"project.making"},
    {"methods", "run_method", "dpg", "reinforce", "sweeps.settings_check", "sweeps.command"}
    | {
        "api",
        "ppo",
        "reward_model",
        "measure",
        "watch",
        "compare",
        "reporting",
        "trl_trainers.run",
        "doctor.for_run",
        "doctor.command",
        "cli",
    }
    | {
        f"trying.{name}"
        for name in ("asked", "drawing", "shown", "talking", "sample", "export", "push")
    }
    | {
        f"commands.{name}"
        for name in ("training", "reading", "trying", "sweeping", "starting", "rewards")
    }
    | {"__main__", "__init__"},
]
FILES = sorted([*(ROOT / "rlalign").rglob("*.py"), *(ROOT / "rewards").rglob("*.py")])
OURS = [path for path in FILES if path.stem != "__init__" or path.parent.name == "rlalign"]


def module(path: Path) -> str:
    """A file's name as the layers know it: `policy`, `report.live`; all of rewards is one."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "rewards" if parts[0] == "rewards" else ".".join(parts[1:])


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} has a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, as the layers know them."""
    found = set()
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "rewards":
            found.add("rewards")
        elif top == "rlalign" and any(rest in layer for layer in LAYERS):
            found.add(rest)
    return found - {module(path)}


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_every_module_has_its_place():
    assert {module(path) for path in OURS} == set().union(*LAYERS)
    assert sum(map(len, LAYERS)) == len(set().union(*LAYERS))


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_lies_below_it(path):
    above = {name for name in own_imports(path) if level(name) > level(module(path))}
    assert not above, f"{module(path)} imports {sorted(above)}"


def test_there_is_no_circle():
    graph: dict[str, set[str]] = {}
    for path in OURS:
        graph.setdefault(module(path), set()).update(own_imports(path))
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names it
    assert set(order) >= graph.keys()


def test_rewards_know_nothing_of_rlalign():
    for path in FILES:
        if "rewards" in path.relative_to(ROOT).parts[0]:
            assert not {name for name in imported(path) if name.split(".")[0] == "rlalign"}, path


def test_one_file_of_each_package_imports_trl():
    users = {
        f"rewards/{path.name}" if path.parent.name == "rewards" else path.name
        for path in FILES
        if "trl" in {name.split(".")[0] for name in imported(path)}
    }
    # rewards/trl.py only names its rewards; rewards cannot reach the bridge, which lies in rlalign.
    assert users == {"trl_bridge.py", "rewards/trl.py"}


def test_the_checks_see_imports():
    """Guards the tests above: what the loop and the launchers import is found."""
    assert {"trainer", "checkpoints.resuming", "report.card"} <= own_imports(
        ROOT / "rlalign" / "loop.py"
    )
    assert own_imports(ROOT / "rlalign" / "scoring.py") >= {"rewards", "policy"}
    assert own_imports(ROOT / "rlalign" / "models.py") >= {"trl_bridge", "rewards"}


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_files_are_short():
    assert {str(path): length(path) for path in FILES if length(path) > 350} == {}


def test_functions_are_short():
    long = {
        f"{path.name}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 60
    }
    assert long == {}


def test_launchers_hold_no_logic():
    for path in (ROOT / "launch").glob("*.py"):
        assert length(path) <= 40, path
        assert {name.split(".")[0] for name in imported(path)} <= {"sys", "rlalign"}, path
