"""The image sizes that a network family can make: powers of two between two bounds."""

from __future__ import annotations

from torch import Tensor

from fastgan.contract import ImageShape
from fastgan.errors import FastganError


def levels(family: str, image: ImageShape, smallest: int, largest: int) -> list[int]:
    """Resolutions 4, 8, ..., image.size. FastganError when the size is no power of two within the bounds."""
    size = image.size
    if not smallest <= size <= largest or size & (size - 1):
        raise FastganError(
            f"{family} makes images of a power of two from {smallest} to {largest} pixels, got size {size}; "
            "set the data's size to one of these"
        )
    if image.channels < 1:
        raise FastganError(f"{family} makes images of 1 channel or more, got {image.channels}")
    return [4 << i for i in range(size.bit_length() - 2)]


def at_least_one(family: str, **options: int) -> None:
    """FastganError when one of the options is below 1."""
    for name, value in options.items():
        if value < 1:
            raise FastganError(f"{family}: {name} must be 1 or more, got {value}")


def check_attention(family: str, attention: int, sizes: list[int]) -> None:
    """FastganError unless `attention` is 0 or one of the resolutions `sizes`."""
    if attention and attention not in sizes:
        raise FastganError(
            f"{family}: attention must be 0 or one of the resolutions {', '.join(map(str, sizes))}, got {attention}"
        )


def per_image(values: Tensor) -> Tensor:
    """What a critic returns for the values [N, outputs, 1...] of its last layer: [N], or [N, outputs] if several."""
    return values.flatten() if values.shape[1] == 1 else values.flatten(1)
