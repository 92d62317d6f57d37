"""The system, Python and the packages, against what was tested. Imports none of them."""

import ctypes
import importlib.metadata
import importlib.util
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rlalign.doctor.checks import Check, Finding

NOT_FOR_RUNS = ("dev",)  # extras that only work on the project itself needs
INDEX = "choose the build on pytorch.org's installation page"


def system() -> Check:
    """Linux, or what else it is."""
    name, version = platform.system(), platform.release()
    findings = []
    if name == "Windows":
        findings = [Finding("it does not run on Windows", "use WSL 2: wsl --install", 4)]
    elif name != "Linux":
        says = f"it was tested on Linux only: on {name} memory, cores and launchers may be misread"
        findings = [Finding(says, "for real work take a Linux machine or a container")]
    return Check("system", f"{name} {version}, {platform.machine()}", findings)


def python() -> Check:
    """This Python against those that the project names."""
    about = importlib.metadata.metadata("rlalign")
    wanted = SpecifierSet(about["Requires-Python"] or "")
    here = platform.python_version()
    listed = re.findall(r":: (3\.\d+)$", "\n".join(about.get_all("Classifier") or []), re.M)
    tested = sorted(listed, key=lambda version: int(version[2:]))
    findings = []
    if not wanted.contains(here, prereleases=True):
        fix = f"make a new environment: python{tested[-1] if tested else '3.11'} -m venv .venv"
        findings = [Finding(f"it needs Python {wanted}", fix, 4)]
    elif tested and ".".join(here.split(".")[:2]) not in tested:
        says = f"tested on Python {tested[0]} to {tested[-1]} only"
        findings = [Finding(says, f"if something fails: python{tested[-1]} -m venv .venv")]
    inside = "" if sys.prefix != sys.base_prefix else ", not in a virtual environment"
    return Check("Python", here + inside, findings)


def packages() -> Check:
    """Installed versions of what the project declares, and those outside the declared range."""
    findings, count, shown = [], 0, []
    for requirement in declared(""):
        name = requirement.name
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(f"{name} is not installed", f"pip install '{requirement}'", 4))
            continue
        count += 1
        if name in ("transformers", "trl", "accelerate", "peft"):
            shown.append(f"{name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            says = f"{name} {version} is outside {requirement.specifier}, which was tested"
            fix = f"pip install '{name}{requirement.specifier}'"
            findings.append(Finding(says, fix))
    return Check("packages", f"{', '.join(shown)}; {count} in all", findings)


def extras() -> Check:
    missing = missing_extras()
    says = f"not installed: {', '.join(missing)}" if missing else "all installed"
    findings = []
    if needed := [name for name in missing if name in ("embedded", "classifiers")]:
        what = f"the quickstart needs the extra{'s' if len(needed) > 1 else ''} {', '.join(needed)}"
        findings = [Finding(what, f"pip install 'rlalign[{','.join(needed)}]'")]
    return Check("extras", says, findings)


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


# -- torch and the GPU's driver --------------------------------------------------------------------


def torch_build() -> Check:
    """Whether torch was built for what is in the machine, before it is imported."""
    version, cuda = installed_torch()
    if version is None:
        return Check("torch", "not installed")  # `packages` says how to get it
    return judge_torch(version, cuda, driver_cuda(), Path("/proc/driver/nvidia/version").exists())


def judge_torch(
    version: str, cuda: str | None, driver: tuple[int, int] | None, has_driver_file: bool
) -> Check:
    """`cuda` is the build's CUDA, None on a CPU build; `driver` the newest CUDA of the driver."""
    build = f"for CUDA {cuda}" if cuda else "for the CPU"
    shown = f"{version}, built {build}"
    is_there = driver is not None or has_driver_file
    if not is_there:
        return Check("torch", f"{shown}; no NVIDIA driver here" if cuda else shown)
    if cuda is None:
        says = "the machine has an NVIDIA GPU, and this build of torch does not use it"
        return Check("torch", shown, [Finding(says, f"{INDEX}: CUDA; then install torch again")])
    if driver is None:
        says = "the NVIDIA driver is loaded, but libcuda.so.1 cannot be used from here"
        fix = "try `nvidia-smi`; in a container start it with --gpus all"
        return Check("torch", shown, [Finding(says, fix)])
    newest = f"{driver[0]}.{driver[1]}"
    if driver[0] < int(cuda.partition(".")[0]):  # within a major version drivers serve any minor
        says = f"the NVIDIA driver serves CUDA {newest} at most: torch will not see the GPU"
        fix = f"update the driver, or install torch {version.partition('+')[0]} for CUDA {newest}"
        return Check("torch", shown, [Finding(says, f"{fix}: {INDEX}")])
    return Check("torch", f"{shown}; the driver serves CUDA {newest}")


def installed_torch() -> tuple[str | None, str | None]:
    """torch's version and its CUDA's, read from its file: importing it takes a second."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None, None
    try:
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return importlib.metadata.version("torch"), None
    values = dict(_assignments(text))
    return values.get("__version__"), values.get("cuda")


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    """Names that are given a string on a line of their own, as `cuda: Optional[str] = '13.0'`."""
    for match in re.finditer(r"^(\w+)(?::[^=\n]+)? = ['\"]([^'\"]+)['\"]", text, re.M):
        yield match[1], match[2]


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the installed driver serves; None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0 or not number.value:
        return None
    return number.value // 1000, number.value % 1000 // 10
