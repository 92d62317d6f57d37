"""docs/scaling.md: what its SLURM script starts, and that two launchers make one run."""

import os
import re
import socket
import stat
import subprocess
import sys

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from pages import block_named, page_named, write_files
from shell_commands import run_script

PAGE = page_named("docs/scaling.md")
SCRIPT = block_named("slurm.sh", PAGE)
SBATCH = {  # the options of sbatch that the script uses, and the form of each one's value
    "job-name": r"\w+", "nodes": r"\d+", "ntasks-per-node": "1", "gpus-per-node": r"\d+",
    "time": r"\d+:\d\d:\d\d", "signal": r"[A-Z]+@\d+", "requeue": "",
    "open-mode": "append|truncate", "output": r"[\w%./-]+",
}  # fmt: skip
STANDINS = {  # for SLURM's programs and the launcher, which says what it was given
    "scontrol": '[ "$*" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"',
    "srun": 'shift; for id in 0 1; do SLURM_NODEID=$id "$@"; done',
    "accelerate": 'printf "%s\\n" "$@" > "launched$$"',
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The reader's folder, with stand-ins in its environment's bin."""
    write_files(tmp_path, PAGE)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    for name, body in STANDINS.items():
        file = programs / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_script_asks_slurm_for_what_there_is():
    asked = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SCRIPT, re.MULTILINE)
    assert len(asked) == SCRIPT.count("#SBATCH") == len(SBATCH)
    assert all(re.fullmatch(SBATCH[name], value) for name, value in asked)


@pytest.mark.parametrize(
    ("script", "world", "address"),
    [("slurm.sh", (2, 8), "node7"), ("two.sh", (2, 1), "127.0.0.1")],
)
def test_a_script_starts_launchers_of_one_world(script, world, address, cluster):
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    path = f"{cluster / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | slurm | {"PATH": path},
    )
    assert done.returncode == 0, done.stderr
    ranks = []
    for words in (file.read_text().splitlines() for file in cluster.glob("launched*")):
        assert words.pop(0) == "launch"
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        prepare_multi_gpu_env(args)  # what torchrun is then told
        assert (int(args.nnodes), int(args.nproc_per_node)) == world
        assert (args.main_process_ip, int(args.main_process_port)) == (address, 29500)
        ranks.append(int(args.node_rank))
        config = run_script(args.training_script, args.training_script_args)
        assert config.train.samples % (world[0] * world[1] * config.ppo.minibatches) == 0
    assert sorted(ranks) == [0, 1]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


TINY = (
    "--model.name=glass-tiny --model.lora=null --prompts.path=experiments/data/wonderland.jsonl "
    "--prompts.eval_fraction=0 --sampling.max_new_tokens=4 --rewards.space=null "
    "--rewards.cheerful=null --rewards.judge=null --train.samples=8 --train.iterations=1 "
    "--train.threads=1 --eval.every=0 --checkpoint.every=0 --trackers=[]"
)


@pytest.mark.prove  # six processes that import torch
def test_two_launchers_find_each_other_and_are_one_run(cluster):
    """The page's own lines, on the tiny model; 'machines' are launchers on this one."""
    shell = block_named("two.sh", PAGE)
    shell = shell.replace("29500", free_port()).replace("--run.name=two", f"--run.name=two {TINY}")
    assert TINY in shell
    (cluster / ".venv/bin/accelerate").unlink()
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": path}
    done = subprocess.run(
        ["bash", "-c", shell],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | environment,
    )
    assert (cluster / "runs/two/run.json").is_file(), done.stderr
    said = (cluster / "runs/two/run.json").read_text()
    assert '"world_size": 2' in said and '"exit_code": 0' in said, said
