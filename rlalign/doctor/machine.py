"""What a machine offers a run, and what stands in its way. Nothing here uses the network."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from accelerate.commands.config.config_args import default_yaml_config_file
from packaging.requirements import Requirement

from rewards import embedded
from rewards.classifiers import first_line
from rlalign.models import has_bfloat16
from rlalign.ranks import allowed_cores
from rlalign.wandb_tracker import logged_in

NOT_FOR_RUNS = ("dev",)  # extras that only work on the project itself needs
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """Something to know before a run; `code` is the exit code that it would end with, or 0."""

    says: str
    fix: str = ""
    code: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes that this process and others may use together, and that are free now."""

    total: int
    available: int
    limit: str = ""  # what sets the total, where it is not the machine


Facts = dict[str, str]


def look(run_dir: str, trackers: list[str]) -> tuple[Facts, list[Finding]]:
    """The machine's facts by name, and the findings that no configuration is needed for."""
    versions, mismatches = libraries()
    missing = missing_extras()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = available_memory()
    saved, damaged = read_launcher()
    launch, complaints = launcher(dict(os.environ), saved)
    facts = {
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "libraries": ", ".join(versions),
        "extras missing": extras_line(missing),
        "processor": processor(),
        "cores, threads": f"{allowed_cores()} allowed, which train.threads=auto takes"
        f" ({os.cpu_count()} in the machine)",
        "precision": precision(device),
        "memory": f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}"
        + (f" ({memory.limit})" if memory.limit else ""),
        "GPUs": gpus(),
        "disk": disk(run_dir),
        "models at hand": models(),
        "W&B": wandb_line(trackers, dict(os.environ)),
        "accelerate launch": launch,
    }
    return facts, mismatches + damaged + complaints


def libraries() -> tuple[list[str], list[Finding]]:
    """Installed versions of what the project declares, and those outside the declared range."""
    versions, findings = [], []
    for requirement in declared(""):
        name = requirement.name
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(f"{name} is not installed", f"pip install '{requirement}'", 4))
            continue
        versions.append(f"{name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            findings.append(
                Finding(
                    f"{name} {version} is outside {requirement.specifier}, which was tested",
                    f"pip install '{requirement.name}{requirement.specifier}'",
                )
            )
    return versions, findings


def declared(extra: str) -> list[Requirement]:
    """The installed project's own requirements; an extra's where one is named."""
    lines = importlib.metadata.requires("rlalign") or []
    every = [Requirement(line) for line in lines]
    if not extra:
        return [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [r for r in every if r.marker is not None and f'"{extra}"' in str(r.marker)]


def missing_extras() -> list[str]:
    """Extras of which a package is absent."""
    names = importlib.metadata.metadata("rlalign").get_all("Provides-Extra") or []
    return [
        name
        for name in names
        if name not in NOT_FOR_RUNS and not all(is_installed(r.name) for r in declared(name))
    ]


def is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def extras_line(missing: list[str]) -> str:
    return (
        f"{', '.join(missing)}: pip install 'rlalign[{','.join(missing)}]'" if missing else "none"
    )


def processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def precision(device: torch.device) -> str:
    where = "GPU" if device.type == "cuda" else "processor"
    if has_bfloat16(device):
        return f"bfloat16 in hardware on this {where}, which model.dtype=auto takes; float32"
    return f"bfloat16: emulated on this {where}, so float32 is used"


def gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch sees"
    rows = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        rows.append(f"{i}: {name}, {free / GIB:.1f} GiB free of {total / GIB:.1f}")
    return "; ".join(rows)


def disk_free(folder: str) -> int:
    """Bytes free where the folder is or would be."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def disk(folder: str) -> str:
    return f"{disk_free(folder) / GIB:.1f} GiB free for {folder}/"


def models() -> str:
    absent = [name for name in embedded.names() if not embedded.is_prepared(name)]
    present = [name for name in embedded.names() if name not in absent]
    fetch = f"; absent: `python -m rewards.embedded {' '.join(absent)}` fetches" if absent else ""
    return f"{', '.join(present) or 'none'}{fetch}"


def wandb_line(trackers: list[str], environment: Mapping[str, str]) -> str:
    """What a run's W&B tracker would do, by the environment alone: the server is not asked."""
    if "wandb" not in trackers:
        return "off (trackers does not name it)"
    mode = environment.get("WANDB_MODE")
    if mode in ("offline", "disabled"):
        return f"{mode} (WANDB_MODE)"
    if logged_in():
        return "on line: a key is there (the server was not asked); WANDB_MODE=offline stays here"
    return "off line into the run's folder: not logged in (`wandb login`)"


# -- memory ----------------------------------------------------------------------------------------


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


def read_launcher() -> tuple[Mapping[str, object], list[Finding]]:
    """The settings that `accelerate config` saved, empty where there are none, and their damage."""
    file = Path(default_yaml_config_file)
    if not file.is_file():
        return {}, []
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        says = f"{file}, which accelerate would read, cannot be read: {first_line(error)}"
        return {}, [Finding(says, "remove it, or run `accelerate config` again")]
    return settings if isinstance(settings, dict) else {}, []


def launcher(
    environment: Mapping[str, str], saved: Mapping[str, object]
) -> tuple[str, list[Finding]]:
    """What `accelerate launch` would start without a --config_file, and what is wrong with it."""
    findings = []
    kind, processes = str(saved.get("distributed_type", "NO")), saved.get("num_processes", 1)
    instead = "name a file: accelerate launch --config_file launch/accelerate/ddp.yaml …"
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        findings.append(
            Finding(f"accelerate's saved settings shard the weights ({kind}): refused", instead, 2)
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
    if not saved:
        return "no saved settings: one process, on a GPU where there is one", findings
    return f"saved settings: {processes} process(es), distributed_type {kind}", findings
