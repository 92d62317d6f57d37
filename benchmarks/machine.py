"""What ran the measurements: processor, memory, load, versions, commit."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.settings import ROOT, TRL_PPO

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "rlalign")


def describe() -> dict[str, Any]:
    """The machine as JSON can hold it; the load average is that of this moment."""
    return {
        "cpu": processor(),
        "flags": [flag for flag in FLAGS if flag in cpu_flags()],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gb": memory_gb(),
        "load_average": load(),
        "accelerator": accelerator(),
        "has_bfloat16": has_bfloat16(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(),
        "commit": commit(),
    }


def processor() -> str:
    return cpuinfo().get("model name", platform.processor() or platform.machine())


def cpu_flags() -> set[str]:
    info = cpuinfo()
    return set(info.get("flags", info.get("Features", "")).split())


def cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; none elsewhere than on Linux."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in first)
    return {name.strip(): value.strip() for name, _, value in pairs}


def memory_gb() -> float | None:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def load() -> float:
    """Processes that ran or waited, over the last minute."""
    return round(os.getloadavg()[0], 2)


def accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def has_bfloat16() -> bool:
    """Whether products in bfloat16 run in hardware."""
    import torch

    from rewards.classifiers import pays_bfloat16

    return pays_bfloat16("cuda" if torch.cuda.is_available() else "cpu")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    old = sorted(TRL_PPO.glob("trl-*.dist-info"))
    if old:
        found["trl (PPO)"] = old[0].name.removeprefix("trl-").removesuffix(".dist-info")
    return found


def commit() -> str:
    """The commit, with a + where the tree differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        name = git("rev-parse", "--short", "HEAD")
        return name + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:
        return ""


def peak_memory_mb() -> float:
    """The most memory that this process and its children have held, each at its own worst (VmHWM).

    The kernel never lowers the mark, so a process is good for one measurement.
    """
    total = 0.0
    for pid in family(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return round(total, 1)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found
