"""launch/accelerate/: what Accelerate reads from each file, and two real processes from cpu2."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[1] / "launch" / "accelerate"

EIGHT_GPUS = {"use_cpu": False, "num_processes": 8}
EXPECTED = {
    # `model.dtype` alone chooses the precision.
    "cpu2": {
        "distributed_type": "MULTI_GPU",
        "use_cpu": True,
        "num_processes": 2,
        "mixed_precision": "no",
    },
    "ddp": EIGHT_GPUS | {"distributed_type": "MULTI_GPU", "mixed_precision": "no"},
    "fsdp2": EIGHT_GPUS | {"distributed_type": "FSDP", "mixed_precision": "no"},
    "zero2": EIGHT_GPUS | {"distributed_type": "DEEPSPEED", "mixed_precision": "no"},
    "zero3": EIGHT_GPUS | {"distributed_type": "DEEPSPEED", "mixed_precision": "no"},
}


def load(name: str) -> Any:
    return load_config_from_file(str(FOLDER / f"{name}.yaml"))


def test_every_file_is_expected_and_every_expected_file_is_there() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_fields(name: str) -> None:
    config = load(name)
    assert config.distributed_type.value == EXPECTED[name]["distributed_type"]
    for field in ("use_cpu", "num_processes", "mixed_precision"):
        assert getattr(config, field) == EXPECTED[name][field], field
    assert config.num_machines == 1
    assert config.main_process_port == 0  # a free one, so two runs on a machine do not meet
    assert config.dynamo_config == {}


def test_fsdp2_asks_for_version_2_and_whole_checkpoints() -> None:
    settings = load("fsdp2").fsdp_config
    assert settings["fsdp_version"] == 2
    assert settings["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert settings["fsdp_state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_leaves_accumulation_to_the_loop(stage: int) -> None:
    settings = load(f"zero{stage}").deepspeed_config
    assert settings["zero_stage"] == stage
    # Accelerate's backward divides by this, and our losses already have global denominators.
    assert settings["gradient_accumulation_steps"] == 1


def test_cpu2_starts_two_processes_that_see_each_other(tmp_path: Path) -> None:
    script = tmp_path / "world.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator(cpu=True)\n"
        "rank = accelerator.process_index\n"
        "total = accelerator.reduce(torch.tensor([10.0 ** rank]), reduction='sum')\n"
        "seen = f'{accelerator.num_processes} {total.item()}'\n"
        "Path(sys.argv[1], f'rank{rank}').write_text(seen)\n"
        "accelerator.end_training()\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(FOLDER / "cpu2.yaml"), str(script), str(tmp_path)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    seen = {file.name: file.read_text() for file in tmp_path.glob("rank*")}
    assert seen == {"rank0": "2 11.0", "rank1": "2 11.0"}
