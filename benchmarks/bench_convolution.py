"""Convolutions of float32 on a CPU by minimal filtering, each direction against oneDNN's in the same layout.

A DCGAN-64's layers between its critic's widths of 64 and 512, which are its generator's, and 3x3 ones as in residual
networks. All tensors are channels-last on both sides, which is the faster layout for oneDNN. On random numbers.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgan.kernels import winograd
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.winograd import DOWN, UP, WAYS, WEIGHT, Filtering

aten = torch.ops.aten
NAMES = {DOWN: "convolution", UP: "its transpose", WEIGHT: "weight gradient"}
CASES = {
    "4x4, 64 to 128 channels, 32x32 pixels": Filtering(64, 16, 16, 128, 64, 4),
    "4x4, 128 to 256 channels, 16x16 pixels": Filtering(64, 8, 8, 256, 128, 4),
    "4x4, 256 to 512 channels, 8x8 pixels": Filtering(64, 4, 4, 512, 256, 4),
    "3x3, 64 channels, 32x32 pixels": Filtering(64, 32, 32, 64, 64, 3),
    "3x3, 128 channels, 16x16 pixels": Filtering(64, 16, 16, 128, 128, 3),
    "3x3, 256 channels, 8x8 pixels": Filtering(64, 8, 8, 256, 256, 3),
}


@pytest.mark.parametrize("way", WAYS, ids=NAMES.__getitem__)
@pytest.mark.parametrize("name", CASES)
def test_against_onednn(name: str, way: int, ratio, device):
    if device != "cpu" or not EXTENSION.module.winograd_here():
        pytest.skip("a CPU with AVX2")
    how = CASES[name]
    s, k = how.stride, how.kernel

    def made(*shape: int) -> Tensor:
        return torch.randn(shape).contiguous(memory_format=torch.channels_last)

    small = made(how.samples, how.small, how.height, how.width)
    large = made(how.samples, how.large, s * how.height, s * how.width)
    weight = made(how.small, how.large, k, k)
    geometry = [s, s], [1, 1], [1, 1], False, [0, 0], 1

    def ours(tile: int) -> Tensor:
        if way == DOWN:
            return winograd.down(large, weight, how, tile)
        return winograd.up(small, weight, how, tile) if way == UP else winograd.weight_gradient(small, large, how, tile)

    def theirs(*tensors: Tensor) -> Tensor:
        small, large, weight = tensors
        if way == DOWN:
            return aten.convolution(large, weight, None, *geometry)
        needs = [way == UP, way == WEIGHT, False]
        return aten.convolution_backward(small, large, weight, None, *geometry, needs)[0 if way == UP else 1]

    exact = theirs(*(each.double() for each in (small, large, weight)))
    chosen = how.tile(way)
    errors = {}
    for label, found in {"oneDNN": theirs(small, large, weight), **{f"tile {t}": ours(t) for t in (2, 4)}}.items():
        errors[label] = float((found - exact).norm() / exact.norm())
        assert errors[label] < 2e-5, label
    ratio(
        "convolution",
        f"{NAMES[way]}, {name}, 64 images",
        {
            "fastgan": lambda: ours(chosen),
            f"fastgan, tiles of {6 - chosen}": lambda: ours(6 - chosen),
            "oneDNN": lambda: theirs(small, large, weight),
        },
        ours="fastgan",
        flops=2 * small.numel() * how.large * k * k,
        notes={"error": ", ".join(f"{label} {error:.1e}" for label, error in errors.items())},
    )
