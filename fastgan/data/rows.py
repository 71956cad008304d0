"""Images that lie one after another in memory or in a mapped file, of which batches are copied in any order.

The native part does that in one pass and without Python's lock: it looks up an image, compares it with its CRC-32 if
that was not done before (its bytes are on their way through the cache anyway), and writes it as the network takes it.
NumPy and zlib do the same without it.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastgan.errors import FastganError

Buffer: TypeAlias = Any  # bytes, a memoryview or an array in one piece
AS_STORED = 3  # as IngestType in csrc/ingest.h


def native() -> Any:
    """The native part, or None. Not loaded here: torch has to come first, and takes seconds that packing saves."""
    if "torch" not in sys.modules:
        return None
    import torch

    from fastgan.kernels._runtime import EXTENSION, choose

    return EXTENSION.module if choose("ingest", torch.device("cpu")).native else None


def crc32(data: Buffer) -> int:
    """As zlib.crc32, of bytes or of an array that is contiguous.

    -1, from the native part, where a mapped file has become shorter; without it that ends the process.
    """
    module = native()
    if module is None:
        return zlib.crc32(data)
    array = np.frombuffer(data, np.uint8)
    found: int = module.crc32(address(array), array.nbytes)
    return found


def _number(image: int) -> str:
    return f"image {image}"


@dataclass(eq=False)
class Rows:
    """Images one after another. pixels: [count, H, W, C] uint8, contiguous.

    sums: [count] uint32, the CRC-32 of each; None: nothing is compared
    once: compare an image when it is first read; else whenever it is
    name: what messages call an image
    """

    pixels: NDArray[np.uint8]
    sums: NDArray[np.uint32] | None = None
    once: bool = True
    name: Callable[[int], str] = _number
    seen: NDArray[np.uint8] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        assert self.pixels.ndim == 4
        assert self.pixels.flags.c_contiguous
        if self.sums is not None:
            assert self.sums.shape == self.pixels.shape[:1]
            self.sums = np.ascontiguousarray(self.sums, np.uint32)
            self.seen = np.zeros(len(self.pixels), np.uint8) if self.once else None  # untouched, it takes no memory
        self.addresses = address(self.pixels), address(self.sums), address(self.seen)

    def copy(self, numbers: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Writes images `numbers` [N] into `out` [N, H, W, C].

        Raises FastganError for an image that is not as its sum says; `out` is undefined then.
        """
        assert out.shape == (len(numbers), *self.pixels.shape[1:])
        module = native()
        if module is None:
            np.take(self.pixels, numbers, axis=0, out=out, mode="clip")  # "clip" lets it write into `out`
            self._compare(numbers, out)
        elif out.flags.c_contiguous:
            self.gather(module, numbers, address(out), AS_STORED)
        else:
            taken = np.empty_like(out, order="C")
            self.gather(module, numbers, address(taken), AS_STORED)
            out[:] = taken

    def gather(self, module: Any, numbers: NDArray[np.int64], out: int, kind: int, flip: int = 0) -> None:
        """The same by the native part: into the memory at `out`, in the type `kind`, flipped as the [N] bool at `flip`
        say. 0: no image is."""
        numbers = np.ascontiguousarray(numbers, np.int64)
        pixels, sums, seen = self.addresses
        shape = (len(numbers), *self.pixels.shape[1:])
        bad = module.gather_cpu((pixels, address(numbers), sums, seen, flip, out), len(self.pixels), shape, kind)
        if bad >= 0:
            raise self.bad(int(numbers[bad]))

    def _compare(self, numbers: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
        outside = (numbers < 0) | (numbers >= len(self.pixels))
        assert not outside.any(), numbers[outside]
        if self.sums is None:
            return
        for number, image in zip(numbers.tolist(), images, strict=True):
            if self.seen is not None and self.seen[number]:
                continue
            if zlib.crc32(image.tobytes()) != int(self.sums[number]):
                raise self.bad(number)
            if self.seen is not None:
                self.seen[number] = 1

    def bad(self, number: int) -> FastganError:
        """What is to be said of an image that is not as its sum says, or is no longer there."""
        assert 0 <= number < len(self.pixels), f"image {number} of {len(self.pixels)}"
        return FastganError(f"{self.name(number)}: does not match its checksum; copy it again, or pack again")


def address(array: NDArray[Any] | None) -> int:
    """Where the array lies; 0 for None."""
    return 0 if array is None else int(array.__array_interface__["data"][0])
