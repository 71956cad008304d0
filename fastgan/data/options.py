"""What is read and how images become squares."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastgan.errors import FastganError, suggest

CROPS = ("center", "none")
PAIRS = ("", "side_by_side", "folders", "unpaired")
DIRECTIONS = ("AtoB", "BtoA")
FEEDERS = ("auto", "resident", "host")
PILLOW_LIMIT = 178.0  # megapixels; above it Pillow itself refuses, as a decompression bomb


@dataclass(frozen=True)
class DataOptions:
    """Where the training images are and how each becomes [size, size, channels].

    Every image is turned upright (EXIF), composited on white where it is transparent, converted to RGB or
    greyscale, cropped as `crop` says, and resized with Pillow's Lanczos filter. Of an animation, the first
    picture counts; colour profiles are not applied. Raises FastganError for values that make no sense.
    """

    path: str = "digits"
    """A folder of PNG, JPEG and WebP images, a .zip or .tar of one, WebDataset tars (a folder of them, or
    name-{000..099}.tar), a pack (fastgan pack), a litdata dataset (a folder, or a URL such as s3://...), "digits":
    those that scikit-learn ships, or "photos": patches of photographs that scikit-learn and scikit-image ship, without
    those of "photos:held-out"."""

    size: int = 64
    """Side of the square images, in pixels."""

    channels: int = 3
    """3 for RGB, 1 for greyscale."""

    crop: str = "center"
    """"center": the largest centred square, resized. "none": all of the image, squeezed into a square."""

    pairs: str = ""
    """Images to translate from: "" (none), "side_by_side" (each file holds a pair, A left and B right), "folders"
    (A/ and B/, partners by name) or "unpaired" (A/ and B/, independent); or of trainA/ and trainB/."""

    direction: str = "AtoB"
    """Of pairs: "AtoB" translates A into B, "BtoA" the other way."""

    classes: int = 0
    """Number of classes; 0: as many as the set has, of a litdata stream none. A run fills it in."""

    source_channels: int = 0
    """Channels of the second set of images that a translation starts from; 0: there is none. A run fills it in."""

    mirror: bool = False
    """Show a random half of the images mirrored left to right."""

    feeder: str = "auto"
    """How images reach the device. "resident": all of them lie on it; "host": they come batch by batch, from memory,
    from a mapped pack or from threads that decode; "auto": resident on a GPU where they take up to a quarter of its
    free memory. The batches are the same."""

    memory_gb: float = 4.0
    """A set that takes up to this much, decoded, is decoded once and kept in memory (of each process). Of a larger
    one only the headers are checked at the start, and images are decoded on demand."""

    max_bad: float = 0.0
    """Fraction of the images that may be unusable; they are left out and named in the log."""

    min_side: int = 8
    """Images with a shorter side than this many pixels are unusable."""

    max_megapixels: float = 64.0
    """Images that declare more than this are unusable; their pixels are never decoded."""

    workers: int = 0
    """Threads that decode; 0 for one per core."""

    def __post_init__(self) -> None:
        if self.feeder not in FEEDERS:
            raise FastganError(f"data.feeder: unknown way {self.feeder!r}{suggest(self.feeder, FEEDERS)}")
        if self.crop not in CROPS:
            raise FastganError(f"data.crop: unknown crop {self.crop!r}{suggest(self.crop, CROPS)}")
        for name, known in (("pairs", PAIRS), ("direction", DIRECTIONS)):
            value = getattr(self, name)
            if value not in known:
                kinds = " or ".join(repr(kind) for kind in known)
                raise FastganError(f"data.{name}: expected {kinds}, got {value!r}{suggest(value, known)}")
        for name, valid, expected in (
            ("size", 4 <= self.size <= 4096, "pixels from 4 to 4096"),
            ("channels", self.channels in (1, 3), "1 or 3"),
            ("classes", self.classes >= 0, "0 or more"),
            ("source_channels", self.source_channels in (0, 1, 3), "0, 1 or 3"),
            ("memory_gb", self.memory_gb >= 0, "0 or more"),
            ("max_bad", 0 <= self.max_bad < 1, "a fraction from 0 to below 1"),
            ("min_side", self.min_side >= 1, "1 or more"),
            ("max_megapixels", 0 < self.max_megapixels <= PILLOW_LIMIT, f"above 0, at most {PILLOW_LIMIT:g}"),
            ("workers", self.workers >= 0, "0 or more"),
        ):
            if not valid:
                raise FastganError(f"data.{name}: expected {expected}, got {getattr(self, name)!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (size, size, channels)."""
        return self.size, self.size, self.channels

    @property
    def threads(self) -> int:
        """How many threads decode."""
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.workers or available or 1
