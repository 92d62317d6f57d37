"""Memory that is freed on a CPU is there for the next block, and is not asked for again."""

import os
import platform
import subprocess
import sys

import pytest

# Fresh processes: the C library's switches hold for all that comes after.
FAULTS = """
import resource, sys
import torch
from rlalign.heap import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
def block():
    torch.empty(2**24).fill_(1.0)  # 64 MB, above what glibc keeps by itself
for _ in range(20):  # the first ones leave splinters between them, which glibc gathers up in time
    block()
before = resource.getrusage(resource.RUSAGE_SELF)
for _ in range(5):
    block()
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_minflt - before.ru_minflt)
print(after.ru_maxrss - before.ru_maxrss)
"""


def faults(kind, **environment):
    """What `keep_freed_memory` said, page faults of five blocks, KiB by which the peak rose."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, kind],
        env=own | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, count, grown = done.stdout.split()
    return said, int(count), int(grown)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's switches")
def test_a_block_is_fetched_once():
    said, count, grown = faults("kept")
    assert said == "True" and count < 1000 and grown < 1024  # a block has 16384 pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's switches")
def test_switches_of_ones_own_are_left_alone():
    said, _, _ = faults("kept", GLIBC_TUNABLES="")
    assert said == "False"
