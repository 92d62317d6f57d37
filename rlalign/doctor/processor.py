"""The processor: what it can do, how many threads a run takes, and who else wants them."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from rlalign.cores import allowed_cores, cpu_quota
from rlalign.doctor.checks import Check, Finding

CROWDED = 0.5  # programs for each core that ran in the last minute
# In /proc/cpuinfo, and what each is good for; the order is that in which they are named.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "bfloat16 (AVX-512)",
    "amx_bf16": "bfloat16 (AMX)",
}


def processor(root: Path = Path("/")) -> Check:
    """Its name and vector units. With bfloat16 units `model.dtype=auto` takes bfloat16."""
    name, flags = read_cpuinfo(root)
    if flags is None:
        return Check("processor", f"{name}; its features cannot be read here")
    has = [words for flag, words in FEATURES.items() if flag in flags]
    findings = []
    if "avx2" not in flags and platform.machine() in ("x86_64", "AMD64"):
        says = "without AVX2 every product takes several times as long"
        findings.append(Finding(says, "in a virtual machine pass the host's processor through"))
    bfloat16 = any("bf16" in flag for flag in flags)
    then = "" if bfloat16 else "; no bfloat16 units, so runs compute in float32: twice the bytes"
    return Check("processor", f"{name}: {', '.join(has) or 'no vector units'}{then}", findings)


def read_cpuinfo(root: Path) -> tuple[str, frozenset[str] | None]:
    """The processor's name as the system gives it, and its flags."""
    name, flags = platform.processor() or platform.machine(), None
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return name, None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
            break
    return name, flags


def threads(environment: Mapping[str, str], processes: int) -> Check:
    """How many threads each process takes, and what makes them too many or too few."""
    allowed, quota = allowed_cores(), cpu_quota()
    return judge_threads(environment, processes, allowed, os.cpu_count() or allowed, quota)


def judge_threads(
    environment: Mapping[str, str], processes: int, allowed: int, there: int, quota: float | None
) -> Check:
    each = max(allowed // processes, 1)
    why = f" by the control group's quota of {quota:g}" if quota is not None else ""
    of_machine = f" of {there}{why}" if allowed != there or why else ""
    says = f"{allowed} core{'s' if allowed > 1 else ''} allowed{of_machine}; "
    says += f"train.threads=auto takes {each}" + (" in each process" if processes > 1 else "")
    findings = []
    if processes > allowed:
        what = f"{processes} processes share {allowed} cores: they wait for each other"
        findings.append(Finding(what, f"start at most {allowed}: --num_processes {allowed}"))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        text = environment.get(name, "")
        if not text:
            continue
        count = int(text) if text.isdecimal() else 0
        if count < 1:
            findings.append(Finding(f"{name}={text} is no number of threads", f"unset {name}"))
        elif count > allowed:
            what = f"{name}={count} on {allowed} cores: rewards and libraries slow each other down"
            findings.append(Finding(what, f"export {name}={allowed}"))
        elif count < each and name == "OMP_NUM_THREADS":
            says += f"; {name}={count} holds for rewards' libraries only"
    return Check("threads", says, findings)


def load(waiting: float, allowed: int) -> Check:
    """Programs that wanted the processor in the last minute, for each core."""
    share = waiting / allowed
    findings = []
    if share > CROWDED:
        findings = [
            Finding(
                "others use the processor: a run takes longer while they do", "see by whom: top"
            )
        ]
    return Check("load", f"{waiting:.1f} programs at once in the last minute", findings)
