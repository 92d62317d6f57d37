"""Memory: how this process keeps it on a CPU, and whether it ran out."""

import ctypes
import os
import sys

import torch

# mallopt's names for them (malloc.h), and the largest size there is.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1
OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Keep what is freed for the next block of its size; whether glibc was told so.

    By default glibc hands blocks above 32 MB back to the system and gets them page by page, zeroed,
    each time: gradients of an embedding, logits and copies of weights are such blocks, several a
    micro-batch; docs/performance.md has what that costs. Splinters of what is kept raise the peak.
    Other C libraries are left alone, and so is a process whose environment sets glibc's own
    switches (`OWN_SETTINGS`): an empty GLIBC_TUNABLES turns this off and nothing else on.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in OWN_SETTINGS):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # Blocks of every size come from the heap. Older versions refuse a threshold above 32 MB, and
    # one without the other is worse than neither.
    return bool(libc.mallopt(M_MMAP_MAX, 0) == 1 and libc.mallopt(M_TRIM_THRESHOLD, NEVER) == 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's CPU allocator says so in a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
