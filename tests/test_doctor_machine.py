"""What `rlalign doctor` finds in a machine: each check on made-up machines, then on this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import default_yaml_config_file

from rlalign.cli import main
from rlalign.cores import cpu_quota
from rlalign.doctor import command, machine, packages, places
from rlalign.doctor.checks import Check, Finding, exit_code
from rlalign.doctor.machine import Memory, available_memory, launcher, wandb_line
from rlalign.doctor.packages import judge_torch
from rlalign.doctor.places import file_system, judge_terminal
from rlalign.doctor.processor import judge_threads, processor

ROOT = Path(__file__).parent.parent


def write(root, files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def one(check: Check) -> Finding:
    (found,) = check.findings
    return found


# -- system, Python, packages


def test_windows_is_refused_and_a_mac_is_warned(monkeypatch):
    assert packages.system().state == "ok"
    monkeypatch.setattr(packages.platform, "system", lambda: "Windows")
    assert packages.system().state == "problem" and "WSL" in one(packages.system()).fix
    monkeypatch.setattr(packages.platform, "system", lambda: "Darwin")
    assert packages.system().state == "note"


@pytest.mark.parametrize(
    ("version", "state"), [("3.10.1", "problem"), ("3.11.2", "ok"), ("3.99.0", "note")]
)
def test_python_is_held_against_what_the_project_names(version, state, monkeypatch):
    about = {"Requires-Python": ">=3.11"}
    lines = [f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)]
    fake = type("About", (dict,), {"get_all": lambda self, name: lines})(about)
    monkeypatch.setattr(packages.importlib.metadata, "metadata", lambda name: fake)
    monkeypatch.setattr(packages.platform, "python_version", lambda: version)
    check = packages.python()
    assert check.state == state
    assert state == "ok" or "python3.13 -m venv .venv" in one(check).fix


def test_a_library_outside_its_range_is_named_with_the_fix(monkeypatch):
    monkeypatch.setattr(packages.importlib.metadata, "version", lambda name: "0.0.1")
    found = next(f for f in packages.packages().findings if f.says.startswith("torch "))
    assert found.says.startswith("torch 0.0.1 is outside ==2.13.*")
    assert found.fix == "pip install 'torch==2.13.*'" and found.code == 0


def test_a_missing_package_is_a_problem_and_nothing_that_imports_it_is_tried(monkeypatch, capsys):
    def version(name):
        if name == "peft":
            raise packages.importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(packages.importlib.metadata, "version", version)
    monkeypatch.setattr(places, "disk", lambda folder: pytest.fail("it went on"))
    assert main(["doctor"]) == 4
    out = capsys.readouterr().out
    assert "peft is not installed" in out and "pip install 'peft>=0.21'" in out


def test_missing_extras_come_with_the_line_that_adds_them(monkeypatch):
    monkeypatch.setattr(packages, "missing_extras", lambda: ["embedded", "math"])
    check = packages.extras()
    assert check.says == "not installed: embedded, math"
    assert one(check).fix == "pip install 'rlalign[embedded]'"


@pytest.mark.parametrize(
    ("version", "cuda", "driver", "says"),
    [
        ("2.13.0+cpu", None, None, None),
        ("2.13.0", "13.0", None, None),
        ("2.13.0", "13.0", (13, 0), None),
        ("2.13.0", "12.8", (12, 4), None),  # minor versions serve each other
        ("2.13.0+cpu", None, (13, 0), "this build of torch does not use it"),
        ("2.13.0+cu130", "13.0", (12, 4), "serves CUDA 12.4 at most"),
    ],
)
def test_torchs_build_is_held_against_the_driver(version, cuda, driver, says):
    check = judge_torch(version, cuda, driver, has_driver_file=False)
    assert check.says.startswith(version)
    if says is None:
        assert check.state == "ok"
    else:
        assert says in one(check).says and "pytorch.org" in one(check).fix


def test_a_driver_that_a_container_hides_is_noted():
    assert "--gpus all" in one(judge_torch("2.13.0", "13.0", None, has_driver_file=True)).fix


def test_torchs_version_is_read_without_importing_it():
    import torch

    assert packages.installed_torch() == (torch.__version__, torch.version.cuda)


# -- processor, threads, memory


def test_the_processors_features_are_named_with_what_they_cost(tmp_path):
    info = "model name\t: A chip\nflags\t\t: fpu avx2 {}\n"
    write(tmp_path, {"new/proc/cpuinfo": info.format("avx512f avx512_bf16 amx_bf16")})
    write(tmp_path, {"old/proc/cpuinfo": info.format("")})
    new, old = processor(tmp_path / "new").says, processor(tmp_path / "old").says
    assert new == "A chip: AVX2, AVX-512, bfloat16 (AVX-512), bfloat16 (AMX)"
    assert old == "A chip: AVX2; no bfloat16 units, so runs compute in float32: twice the bytes"


def test_threads_too_many_are_found_and_one_that_accelerate_sets_is_explained():
    plain = judge_threads({}, 1, 8, 8, None)
    assert (plain.state, plain.says) == ("ok", "8 cores allowed; train.threads=auto takes 8")
    one_thread = judge_threads({"OMP_NUM_THREADS": "1"}, 1, 8, 8, None)
    assert one_thread.state == "ok" and "OMP_NUM_THREADS=1 holds for" in one_thread.says
    many = judge_threads({"OMP_NUM_THREADS": "16"}, 1, 8, 8, None)
    assert one(many).fix == "export OMP_NUM_THREADS=8"
    assert one(judge_threads({"OMP_NUM_THREADS": "x"}, 1, 8, 8, None)).fix.startswith("unset")
    shared = judge_threads({}, 4, 2, 8, 1.5)
    assert "2 cores allowed of 8 by the control group's quota of 1.5" in shared.says
    assert "--num_processes 2" in one(shared).fix


def test_a_quota_of_processor_time_is_read_in_both_versions(tmp_path):
    write(tmp_path, {"a/proc/self/cgroup": "0::/x/y\n", "a/sys/fs/cgroup/x/y/cpu.max": "max 1"})
    write(tmp_path, {"a/sys/fs/cgroup/x/cpu.max": "150000 100000\n"})
    write(tmp_path, {"a/sys/fs/cgroup/cpu.max": "400000 100000\n"})
    assert cpu_quota(tmp_path / "a") == 1.5
    old = "b/sys/fs/cgroup/cpu/job/cpu.cfs_"
    write(tmp_path, {"b/proc/self/cgroup": "4:cpuacct,cpu:/job\n"})
    write(tmp_path, {old + "quota_us": "200000\n", old + "period_us": "100000\n"})
    assert cpu_quota(tmp_path / "b") == 2.0
    write(tmp_path, {old + "quota_us": "-1\n"})
    assert cpu_quota(tmp_path / "b") is None and cpu_quota(tmp_path / "nowhere") is None


def test_others_at_work_and_little_memory_are_notes(monkeypatch):
    from rlalign.doctor.processor import load

    assert load(0.9, 2).state == "ok" and load(1.1, 2).state == "note"
    monkeypatch.setattr(machine, "available_memory", lambda: Memory(10**9, 10**9, "a limit"))
    assert "(a limit)" in machine.memory().says and "glass-tiny" in one(machine.memory()).fix


MEMINFO = {"proc/meminfo": "MemTotal: 16000 kB\nMemAvailable: 9000 kB\n"}


def test_without_a_control_group_memory_is_the_machines(tmp_path):
    write(tmp_path, MEMINFO)
    assert available_memory(tmp_path) == Memory(16_384_000, 9_216_000)


def test_the_limit_of_a_group_above_counts_and_cached_files_are_free(tmp_path):
    group = "sys/fs/cgroup/a/"
    write(tmp_path, {**MEMINFO, "proc/self/cgroup": "0::/a/b\n"})
    write(tmp_path, {group + "memory.max": "4000000\n", group + "memory.current": "3000000\n"})
    write(tmp_path, {group + "memory.stat": "anon 5\ninactive_file 500000\n"})
    write(tmp_path, {group + "b/memory.max": "max\n", group + "b/memory.current": "1\n"})
    write(tmp_path, {group + "b/memory.stat": "inactive_file 0\n"})
    found = available_memory(tmp_path)
    assert (found.total, found.available) == (4_000_000, 1_500_000) and found.limit


def test_the_first_version_of_control_groups_is_read_too(tmp_path):
    group = "sys/fs/cgroup/memory/job/memory."
    write(tmp_path, {**MEMINFO, "proc/self/cgroup": "5:cpu:/x\n4:memory:/job\n"})
    write(tmp_path, {group + "limit_in_bytes": "2000000\n", group + "usage_in_bytes": "1200000\n"})
    write(tmp_path, {group + "stat": "total_inactive_file 200000\n"})
    assert available_memory(tmp_path).available == 1_000_000


def test_launch_settings_that_shard_or_start_one_process_are_found():
    assert launcher({}, {})[1] == []
    sharded = launcher({}, {"distributed_type": "FSDP", "num_processes": 2})[1][0]
    assert sharded.code == 0 and "`rlalign ppo` does not read them" in sharded.says
    alone = launcher({}, {"distributed_type": "MULTI_CPU", "num_processes": 2})[1]
    assert "starts one" in alone[0].says and "cpu2.yaml" in alone[0].fix
    assert launcher({"ACCELERATE_USE_FSDP": "true"}, {})[1][0].fix == "unset ACCELERATE_USE_FSDP"
    assert launcher({}, {"distributed_type": "MULTI_GPU", "num_processes": 8})[1] == []


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.abort []", "\x00", "[" * 5000])
def test_damaged_settings_of_accelerate_are_told_and_not_obeyed(tmp_path, monkeypatch, text):
    file = tmp_path / "default_config.yaml"
    file.write_text(text)
    monkeypatch.setattr(machine, "accelerate_file", lambda environment: file)
    settings, [found] = machine.read_launcher()
    assert settings == {} and found.says.startswith(f"{file}, which accelerate would read, cannot")


def test_wandb_is_judged_by_the_environment_alone():
    assert wandb_line([], {"WANDB_MODE": "online"}).startswith("off")
    assert wandb_line(["wandb"], {"WANDB_MODE": "offline"}) == "offline (WANDB_MODE)"


def test_accelerates_settings_are_looked_for_where_it_saves_them():
    assert machine.accelerate_file(os.environ) == Path(default_yaml_config_file)


def test_processes_that_disagree_with_the_launcher_are_found():
    left = launcher({"WORLD_SIZE": "2", "RANK": "0"}, {})[1]
    assert left[0].code == 2 and left[0].fix == "unset RANK WORLD_SIZE"
    assert launcher({}, {"distributed_type": "MULTI_GPU", "num_processes": 2}, 2)[1] == []
    fewer = launcher({}, {}, 2)[1]
    assert "would start 1" in fewer[0].says and "launch/accelerate/cpu2.yaml" in fewer[0].fix


def test_a_mode_of_wandb_that_cannot_be_is_noted(monkeypatch):
    monkeypatch.setattr(machine, "logged_in", lambda: False)
    check = machine.wandb_check
    assert check(["wandb"], {}).state == check([], {"WANDB_MODE": "online"}).state == "ok"
    assert "wandb login" in one(check(["wandb"], {"WANDB_MODE": "online"})).fix
    assert "none of online" in one(check(["wandb"], {"WANDB_MODE": "off"})).says


# -- disk, caches, terminal


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    assert places.disk(str(tmp_path / "new/runs")).state == "ok"
    assert list(tmp_path.iterdir()) == []  # the trial leaves nothing

    flushed = []
    monkeypatch.setattr(places.os, "fsync", flushed.append)
    assert places.try_writing(tmp_path) == "" and len(flushed) == 2  # the file and its folder

    def refuse(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(places.os, "fsync", refuse)
    found = one(places.disk(str(tmp_path)))
    assert "Input/output error" in found.says and "--run.dir=" in found.fix and found.code == 4


MOUNTS = (
    "26 1 254:0 / / rw - ext4 /dev/vda rw\n"
    "30 26 0:4 / /data rw shared:1 - nfs4 host:/x rw\n"
    "31 26 0:5 / /data/my\\040runs rw - ext4 /dev/b rw\n"
    "32 31 0:6 / /data/my\\040runs rw - tmpfs none rw\n"
)


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path, monkeypatch):
    write(tmp_path, {"proc/self/mountinfo": MOUNTS})
    for place, kind in (("/database", "ext4"), ("/data/x", "nfs4"), ("/data/my runs/a", "tmpfs")):
        assert file_system(Path(place), tmp_path) == kind
    for kind, what in (("nfs4", "network"), ("tmpfs", "in memory")):
        monkeypatch.setattr(places, "file_system", lambda place, kind=kind: kind)
        assert what in one(places.disk(str(tmp_path))).says


def test_models_that_are_absent_or_damaged_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("RLALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(places.embedded, "is_prepared", lambda name: name == "smollm2-135m")
    monkeypatch.setattr(places.embedded, "is_there", lambda name: name == "glass-tiny")
    check = places.models()
    assert check.says.startswith("smollm2-135m: whole, in ")
    absent, damaged = check.findings
    assert absent.fix.endswith("python -m rewards.embedded all-minilm-l6-v2 sentiment-reviews")
    assert damaged.says == "glass-tiny: damaged in the cache" and damaged.code == 0
    monkeypatch.setattr(places, "try_writing", lambda folder: "a file cannot be written there")
    assert places.models().state == "problem"


def test_the_hubs_cache_is_where_the_environment_says(tmp_path):
    given = {"HF_HOME": str(tmp_path)}
    assert places.hub_cache(given).says == str(tmp_path / "hub")
    assert places.hub_cache({"HF_HUB_CACHE": str(tmp_path / "x")}).says == str(tmp_path / "x")
    assert "only what is there" in places.hub_cache(given | {"HF_HUB_OFFLINE": "1"}).says


def test_a_terminal_without_utf8_or_room_is_noted():
    assert judge_terminal({}, "utf-8", "UTF-8", 80).state == "ok"
    ascii_only = one(judge_terminal({}, "ascii", "ANSI_X3.4-1968", None))
    assert "PYTHONUTF8=1" in ascii_only.fix and "ascii" in ascii_only.says
    assert "40 columns are few" in one(judge_terminal({}, "utf8", "utf-8", 40)).says
    assert "no colours" in judge_terminal({"TERM": "dumb"}, "utf-8", "utf-8", 80).says


# -- the command


def test_a_configuration_outweighs_memory():
    assert exit_code([Finding("m", code=4), Finding("c", code=2), Finding("n")]) == 2
    assert exit_code([Finding("m", code=4), Finding("n")]) == 4
    assert exit_code([Finding("n")]) == exit_code([]) == 0


@pytest.mark.parametrize(
    ("code", "verdict"), [(0, "can start"), (4, "cannot start"), (2, "cannot")]
)
def test_the_exit_code_is_that_of_the_worst_finding(code, verdict, monkeypatch, capsys):
    found = Check("disk", "full", [Finding("no room", "make room", code)])
    monkeypatch.setattr(command, "look", lambda *_: [found, *[Check("a", "b")] * 9])
    assert main(["doctor"]) == code
    out = capsys.readouterr().out
    assert f"A run {verdict}" in out and "→ make room" in out
    assert out.splitlines()[2].split()[:2] == ["problem" if code else "note", "disk"]
    assert main(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == code and told["can_start"] == (code == 0) and told["run"] is None
    assert told["checks"][0]["findings"] == [{"says": "no room", "fix": "make room", "code": code}]


PROBE = """
import socket, sys
def refuse(*_, **__):
    raise AssertionError("it asked the network")
socket.getaddrinfo = socket.create_connection = refuse
from rlalign.cli import main
code = main(["doctor"])
heavy = [m for m in ("torch", "transformers", "wandb", "accelerate") if m in sys.modules]
print(code, heavy)
"""


def test_without_settings_it_needs_no_network_no_files_and_no_torch(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    environment |= {"RLALIGN_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    last = done.stdout.splitlines()[-1]
    if packages.driver_cuda() is None:
        assert last == "0 []", done.stdout + done.stderr
    assert "A run can start." in done.stdout and list(tmp_path.iterdir()) == []
