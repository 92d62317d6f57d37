import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from small_run import SmallRun

from rlalign.config import json_schema, load_config, resolved_yaml, to_flat
from rlalign.settings.fields import Section
from rlalign.settings.sections import RunConfig

ROOT = Path(__file__).parent.parent
QUICKSTART = "experiments/quickstart.yaml"


def load(*argv: str) -> SmallRun:
    return load_config(SmallRun, argv, rewards_given=True)


def test_the_resolved_configuration_loads_to_an_equal_one(tmp_path):
    stop = ["yes", "012", "1:30", "1e-5", "0x10", "null", "~", "a: b", "# c", "é\n", "1_000"]
    argv = [f"--sampling.stop={stop!r}", "--ppo.lr=1e-5", "--score.clip=(-1, 2)"]
    config = load_config(SmallRun, argv, ROOT / QUICKSTART)
    file = tmp_path / "resolved.yaml"
    file.write_text(resolved_yaml(config))
    assert load_config(SmallRun, [f"--config={file}"]) == config
    assert config.sampling.stop == stop
    assert yaml.safe_load(file.read_text())["sampling"]["stop"] == stop


def test_to_flat_gives_scalars_by_dotted_path():
    flat = to_flat(load("--trackers=[]", "--sampling.stop=['a', 'b']", "--kl.coef=0.2"))
    assert flat["kl.coef"] == 0.2
    assert flat["sampling.stop"] == '["a", "b"]'
    assert "kl.target" not in flat
    assert all(isinstance(value, str | int | float | bool) for value in flat.values())


def test_the_json_schema_accepts_the_quickstart_and_refuses_a_misspelling():
    validator = jsonschema.Draft202012Validator(json_schema(SmallRun))
    validator.check_schema(validator.schema)
    quickstart = yaml.safe_load(resolved_yaml(load_config(SmallRun, [], ROOT / QUICKSTART)))
    validator.validate(quickstart)
    quickstart["rewards"]["space"]["topics"] = "x"
    assert not validator.is_valid(quickstart)
    kinds = validator.schema["properties"]["rewards"]["additionalProperties"]["oneOf"]
    assert {"topic.similarity", "style.sentiment"} <= {
        option["properties"]["kind"]["const"] for option in kinds if "properties" in option
    }


def test_every_bool_defaults_to_false():
    def bools(section: type[Section]):
        for field in section.model_fields.values():
            if isinstance(field.default, Section):
                yield from bools(type(field.default))
            elif field.annotation is bool:
                yield field.default

    values = list(bools(RunConfig))
    assert len(values) >= 4 and not any(values)


def test_the_quickstart_has_a_reward_of_each_family():
    config = load_config(SmallRun, [], ROOT / QUICKSTART)
    kinds = [entry["kind"] for entry in config.rewards.values() if entry["weight"] > 0]
    assert {kind.split(".")[0] for kind in kinds} == {"lexical", "topic", "style", "structure"}
    assert {"structure.word_count", "structure.ends_cleanly"} <= set(kinds)


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    assert "--ppo.epochs=2   passes over the samples (an integer of at least 1)" in (
        capsys.readouterr().out
    )


def test_loading_a_configuration_imports_no_torch():
    code = (
        "import sys\n"
        "from rlalign.config import load_config\n"
        "from rlalign.settings.sections import RunConfig\n"
        "load_config(RunConfig, ['--rewards.a.kind=topic.similarity', '--rewards.a.topic=sun'])\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'wandb') if m in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout == "[]\n", run.stderr
