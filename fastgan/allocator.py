"""glibc's allocator, set for programs that make and free the same large tensors in every step.

By default glibc gives large blocks back to the system at once, and the next step's tensors of the same size come as
fresh pages, each of which costs a page fault and is zeroed by the kernel. Here freed blocks stay with the process.
"""

from __future__ import annotations

import ctypes
import os

# Numbers of mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGEST = 1 << 25  # bytes; glibc takes no larger threshold for blocks that are mapped, and given back, one by one
KEPT = (1 << 31) - 1  # free bytes at the end of the heap that are kept


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; whether that was possible.

    Does nothing without glibc, and where the user has set the allocator by GLIBC_TUNABLES or MALLOC_*.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    # No block is mapped on its own at all: the largest tensors are those whose pages cost most.
    return all(mallopt(*pair) for pair in ((M_MMAP_THRESHOLD, LARGEST), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT)))
