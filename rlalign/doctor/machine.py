"""What a machine offers a run, and what stands in its way, without torch where there is no GPU.

Nothing here uses the network.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from rlalign.cores import allowed_cores
from rlalign.doctor import packages, processor
from rlalign.doctor.checks import GIB, Check, Finding
from rlalign.doctor.places import hub_home
from rlalign.wandb_login import logged_in

MODES = ("online", "offline", "disabled", "shared")
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LEAST = int(2.5 * GIB)  # bytes; what the quickstart takes at its peak (docs/doctor.md)


@dataclass(frozen=True)
class Memory:
    """Bytes that this process and others may use together, and that are free now."""

    total: int
    available: int
    limit: str = ""  # what sets the total, where it is not the machine


def look(run_dir: str, trackers: Sequence[str], processes: int) -> list[Check]:
    """Everything that no configuration is needed for; packages alone where some are missing."""
    environment = dict(os.environ)
    build = packages.torch_build()
    checks = [packages.system(), packages.python(), packages.packages(), packages.extras(), build]
    if any(check.state == "problem" for check in checks):
        return checks  # what follows would import them
    from rlalign.doctor import places

    return [
        *checks,
        processor.processor(),
        processor.threads(environment, processes),
        processor.load(os.getloadavg()[0], allowed_cores()),
        memory(),
        gpus(),
        launch(environment, processes),
        places.disk(run_dir),
        places.models(),
        places.hub_cache(environment),
        wandb_check(trackers, environment),
        places.terminal(environment),
    ]


def gpus() -> Check:
    """The GPUs that torch sees; it is imported only where there is a driver."""
    if packages.driver_cuda() is None or packages.installed_torch()[1] is None:
        return Check("GPU", "none that torch can use: runs are on the processor")
    import torch

    if not torch.cuda.is_available():
        fix = "see `torch` above, and CUDA_VISIBLE_DEVICES"
        return Check("GPU", "none", [Finding("torch sees no GPU beside the driver", fix)])
    rows, findings = [], []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        rows.append(f"{i}: {name}, {free / GIB:.1f} GiB free of {total / GIB:.1f}")
        if free < total / 2:
            what = f"GPU {i} is in use: {free / GIB:.1f} GiB of {total / GIB:.1f} are free"
            findings.append(Finding(what, "see by whom: nvidia-smi"))
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        rows.append("no bfloat16: runs compute in float32")
    return Check("GPU", "; ".join(rows), findings)


def wandb_check(trackers: Sequence[str], environment: Mapping[str, str]) -> Check:
    findings = []
    mode = environment.get("WANDB_MODE")
    if "wandb" in trackers and mode is not None and mode not in MODES:
        what = f"WANDB_MODE={mode} is none of {', '.join(MODES)}, and is not heeded"
        findings.append(Finding(what, "export WANDB_MODE=offline, or unset WANDB_MODE"))
    elif "wandb" in trackers and mode == "online" and not logged_in():
        what = "WANDB_MODE=online without a login: a run tries, and goes on off line"
        findings.append(Finding(what, "wandb login, or export WANDB_MODE=offline"))
    return Check("W&B", wandb_line(trackers, environment), findings)


def wandb_line(trackers: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a run's W&B tracker would do, by the environment alone: the server is not asked."""
    if "wandb" not in trackers:
        return "off (trackers does not name it)"
    mode = environment.get("WANDB_MODE")
    if mode in ("offline", "disabled"):
        return f"{mode} (WANDB_MODE)"
    if logged_in():
        return "on line, by your login: it uploads samples, too (WANDB_MODE=offline keeps them)"
    return "off line into the run's folder: not logged in (`wandb login`)"


# -- memory ----------------------------------------------------------------------------------------


def memory() -> Check:
    found = available_memory()
    says = f"{found.available / GIB:.1f} GiB free of {found.total / GIB:.1f}"
    findings = []
    if found.available < LEAST:
        what = f"the quickstart takes {LEAST / GIB:.1f} GiB"
        findings.append(Finding(what, "end other programs, or try --model.name=glass-tiny"))
    return Check("memory", says + (f" ({found.limit})" if found.limit else ""), findings)


def available_memory(root: Path = Path("/")) -> Memory:
    """Memory of the machine, or of the control group that this process is in."""
    info = {}
    file = root / "proc/meminfo"
    if not file.is_file():  # not Linux: what is free is not asked
        everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Memory(everything, everything)
    for line in file.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        info[name] = int(value.split()[0]) * 1024
    total, available, limit = info["MemTotal"], info["MemAvailable"], ""
    for most, used in cgroup_limits(root):
        if most < total:
            total, limit = most, "a control group's limit"
        available = min(available, max(most - used, 0))
    return Memory(total, available, limit)


def cgroup_limits(root: Path = Path("/")) -> list[tuple[int, int]]:
    """(limit, used) in bytes of this process's control group and those around it; v1 and v2."""
    groups = root / "proc/self/cgroup"
    if not groups.is_file():
        return []
    found = []
    for line in groups.read_text(encoding="ascii").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inside = Path(path.lstrip("/"))
        for group in (inside, *inside.parents):
            found += limit_of(base / group, *names)
    return found


def limit_of(group: Path, most: str, used: str, cached: str) -> list[tuple[int, int]]:
    """(limit, used) of one group; nothing where it sets none. Files' pages can be given back."""
    try:
        limit = (group / most).read_text(encoding="ascii").strip()
        usage = int((group / used).read_text(encoding="ascii"))
        rows = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    stat = dict(row.split(maxsplit=1) for row in rows)
    return [] if limit == "max" else [(int(limit), usage - int(stat.get(cached, 0)))]


# -- launching -------------------------------------------------------------------------------------


def launch(environment: Mapping[str, str], processes: int) -> Check:
    """How many processes `accelerate launch` would start, and what disagrees."""
    saved, damaged = read_launcher()
    says, complaints = launcher(environment, saved, processes)
    return Check("launcher", says, [*damaged, *complaints])


def accelerate_file(environment: Mapping[str, str]) -> Path:
    """Where `accelerate config` saves its settings; asking accelerate would import torch."""
    return hub_home(environment) / "accelerate" / "default_config.yaml"


def read_launcher() -> tuple[Mapping[str, object], list[Finding]]:
    """The settings that `accelerate config` saved, empty where there are none, and their damage."""
    file = accelerate_file(os.environ)
    if not file.is_file():
        return {}, []
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        says = f"{file}, which accelerate would read, cannot be read: {str(error).splitlines()[0]}"
        return {}, [Finding(says, "remove it, or run `accelerate config` again")]
    return settings if isinstance(settings, dict) else {}, []


def launcher(
    environment: Mapping[str, str], saved: Mapping[str, object], wanted: int = 1
) -> tuple[str, list[Finding]]:
    """What `accelerate launch` would start without a --config_file, and what is wrong with it."""
    findings = []
    kind, processes = str(saved.get("distributed_type", "NO")), saved.get("num_processes", 1)
    instead = "name a file: accelerate launch --config_file launch/accelerate/ddp.yaml …"
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        findings.append(
            Finding(
                f"accelerate's saved settings shard the weights ({kind}): a launch with them is "
                "refused, while `rlalign ppo` does not read them",
                instead,
            )
        )
    if kind in ("NO", "MULTI_CPU") and processes not in (1, None):
        findings.append(
            Finding(
                f"accelerate's saved settings ask for {processes} processes with "
                f"distributed_type {kind}, which starts one",
                "name a file: accelerate launch --config_file launch/accelerate/cpu2.yaml …",
            )
        )
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if environment.get(variable) == "true":
            findings.append(
                Finding(f"{variable}=true shards the weights: refused", f"unset {variable}", 2)
            )
    given = [name for name in LAUNCHED if name in environment]
    if environment.get("WORLD_SIZE", "1") != "1":
        size = environment["WORLD_SIZE"]
        what = f"WORLD_SIZE={size} is left in this shell: a run would wait for {size} processes"
        findings.append(Finding(what, f"unset {' '.join(given)}", 2))
    starts = processes if isinstance(processes, int) and kind != "MULTI_CPU" else 1
    if wanted > 1 and starts != wanted:
        file = "cpu2" if wanted == 2 else "ddp"
        findings.append(
            Finding(
                f"--processes={wanted}, and `accelerate launch` alone would start {starts}",
                f"accelerate launch --config_file launch/accelerate/{file}.yaml "
                f"--num_processes {wanted} launch/ppo.py",
            )
        )
    if not saved:
        return "no saved settings of accelerate: one process", findings
    return f"accelerate's saved settings: {processes} process(es), {kind}", findings
