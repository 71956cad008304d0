"""Several files mapped one behind the other, so that their images are one array and a batch is one gather.

Where each file but the last is a whole number of pages long, the kernel can be asked for that: a range of addresses is
reserved, and each file is mapped to its place in it. Python's mmap cannot, so the C library is called.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PROT_NONE, PROT_READ = 0, 1  # numbers of Linux, from its mman.h
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
MADV_RANDOM = 1
FAILED = ctypes.c_void_p(-1).value


def can_be_joined(sizes: Sequence[int]) -> bool:
    """Whether files of these lengths can lie one behind the other."""
    return sys.platform == "linux" and not any(size % mmap.PAGESIZE for size in sizes[:-1])


def map_joined(paths: Sequence[Path], sizes: Sequence[int], *, at_random: bool) -> NDArray[np.uint8] | None:
    """The bytes of all files as one array that cannot be written; None where the system will not do it.

    at_random: no read-ahead
    sizes: lengths of the files, which `can_be_joined`. Raises OSError for a file that is not there or shorter.
    """
    library = ctypes.CDLL(None, use_errno=True)
    c = ctypes
    library.mmap.restype = c.c_void_p
    library.mmap.argtypes = [c.c_void_p, c.c_size_t, c.c_int, c.c_int, c.c_int, c.c_long]
    library.munmap.argtypes, library.madvise.argtypes = [c.c_void_p, c.c_size_t], [c.c_void_p, c.c_size_t, c.c_int]
    total = sum(sizes)
    base = library.mmap(None, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if base in (None, FAILED):
        return None
    holder = (c.c_uint8 * total).from_address(base)
    weakref.finalize(holder, library.munmap, base, total)
    start = base
    for path, size in zip(paths, sizes, strict=True):
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < size:
                raise OSError(0, "has become shorter", str(path))
            if library.mmap(start, size, PROT_READ, MAP_SHARED | MAP_FIXED, file.fileno(), 0) != start:
                return None
        start += size
    if at_random:
        library.madvise(base, total, MADV_RANDOM)
    joined: NDArray[np.uint8] = np.frombuffer(memoryview(holder), np.uint8)
    joined.flags.writeable = False
    return joined
