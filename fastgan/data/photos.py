"""Patches of the photographs that scikit-learn and scikit-image ship: real colour images without any download.

scikit-learn has two, scikit-image five that are large enough and show something: each is a class. A patch is what lies
under a square of `size` pixels, at the photograph's own resolution. The right end of each photograph, a fifth of its
width or one patch where that is more, is held out: "photos" are patches from the rest of it, and "photos:held-out"
those from the end, so that the two share no pixel.

Patches lie an eighth of their size apart; those held out, half of it. They are cut when they are asked for.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from fastgan.data.image_set import ImageSet, Indices, Pixels, describe
from fastgan.data.options import DataOptions
from fastgan.errors import FastganError

TRAIN, HELD_OUT = "photos", "photos:held-out"
PHOTOS = {  # name -> (package, file in it)
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
HELD_OUT_SHARE = 5  # one part of so many


def photographs(channels: int = 3) -> dict[str, Pixels]:
    """Name -> photograph [height, width, channels] uint8, of those that are installed. FastganError without any."""
    found = {name: path for name, of in PHOTOS.items() if (path := _installed(*of)) is not None}
    if not found:
        raise FastganError(
            "photos: neither scikit-learn nor scikit-image, which hold them, is installed; "
            "run: pip install 'fastgan[demo]'"
        )
    return {name: _read(path, channels) for name, path in found.items()}


def load_photos(options: DataOptions) -> ImageSet:
    """The patches, [count, size, size, channels], labels by photograph; which, says `options.path`.

    Raises FastganError where the photographs are not installed, and for a size that none of them has room for.
    """
    held_out = options.path == HELD_OUT
    stride = max(options.size // (2 if held_out else 8), 1)
    parts = {
        name: _part(photo, options.size, held_out=held_out)
        for name, photo in photographs(options.channels).items()
        if photo.shape[0] >= options.size and photo.shape[1] >= 2 * options.size
    }
    if not parts:
        raise FastganError(
            f"{options.path}: no photograph has room for patches of {options.size} pixels; set data.size to 256 or less"
        )
    patches = _Patches(tuple(parts.values()), options.size, stride)
    count = len(patches.corners)
    return ImageSet(
        name=options.path,
        size=options.size,
        channels=options.channels,
        count=count,
        fetch=patches.fetch,
        labels=patches.corners[:, 0].copy(),
        classes=tuple(parts),
        summary=describe(
            options.path,
            count=count,
            shape=options.shape,
            classes=len(parts),
            where=f"cut from {sum(part.nbytes for part in parts.values()) / 1e6:,.1f} MB in memory",
        ),
    )


@dataclass(frozen=True, eq=False)
class _Patches:
    """Squares of `size` pixels in `parts` of photographs, `stride` apart."""

    parts: tuple[Pixels, ...]
    size: int
    stride: int

    @cached_property
    def corners(self) -> Indices:
        """[count, 3]: number of the part, top, left."""
        return np.concatenate(
            [
                np.stack(np.meshgrid([number], *map(self._starts, part.shape[:2]), indexing="ij"), -1).reshape(-1, 3)
                for number, part in enumerate(self.parts)
            ]
        )

    def _starts(self, length: int) -> Indices:
        return np.arange(0, length - self.size + 1, self.stride, dtype=np.int64)

    def fetch(self, indices: Indices, out: Pixels) -> None:
        for patch, (number, top, left) in zip(out, self.corners[indices].tolist(), strict=True):
            patch[:] = self.parts[number][top : top + self.size, left : left + self.size]


def _part(photo: Pixels, size: int, *, held_out: bool) -> Pixels:
    """The right end of a photograph, or what is left of it."""
    cut = photo.shape[1] - max(photo.shape[1] // HELD_OUT_SHARE, size)
    return photo[:, cut:] if held_out else photo[:, :cut]


def _installed(package: str, file: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / file
    return path if path.is_file() else None


def _read(path: Path, channels: int) -> Pixels:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)
