"""How many processor cores this process may use: fewer, often, than the machine has."""

import math
import os
from pathlib import Path


def allowed_cores() -> int:
    """Cores by the affinity of this process and the quota of its control group, at least 1."""
    by_affinity = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = cpu_quota()
    return by_affinity if quota is None else max(min(by_affinity, math.ceil(quota)), 1)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that a control group allows, as `docker --cpus` sets it; None: all."""
    found = [quota for quota in _quotas(root) if quota is not None]
    return min(found, default=None)


def _quotas(root: Path) -> list[float | None]:
    groups = root / "proc/self/cgroup"
    try:
        lines = groups.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        inside = Path(path.lstrip("/"))
        for group in (inside, *inside.parents):
            if number == "0":
                found.append(_second_version(root / "sys/fs/cgroup" / group))
            elif "cpu" in controllers.split(","):
                found.append(_first_version(root / "sys/fs/cgroup/cpu" / group))
    return found


def _second_version(group: Path) -> float | None:
    try:
        most, period = (group / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if most == "max" else int(most) / int(period)


def _first_version(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
