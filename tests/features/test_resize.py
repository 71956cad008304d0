"""Resizing: against the formula in plain loops, against Pillow and PyTorch, and against the packages' own output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fastgan.features.resize import antialiased_bicubic, pillow_bicubic, pytorch_bilinear, tensorflow_bilinear
from tools.parity_networks import SIDES, images, some

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "networks.json").read_text())["resize"]


def batch(side: int) -> torch.Tensor:
    return torch.from_numpy(images(side, side, side + 7, 3)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("side", SIDES)
def test_what_the_packages_give(side: int) -> None:
    golden = GOLDENS[str(side)]
    pixels = batch(side)
    assert some(tensorflow_bilinear(pixels, 299).numpy()) == golden["tensorflow"]  # to the last bit
    assert some(pillow_bicubic(pixels, 299).numpy()) == pytest.approx(golden["clean"], abs=1e-4)
    assert some(pytorch_bilinear(pixels, 299).numpy()) == pytest.approx(golden["pytorch"], abs=1e-4)


@pytest.mark.parametrize("side", [5, 64, 300])
def test_tensorflow_bilinear_by_its_formula(side: int) -> None:
    """Output i lies at i * in / out, in fp32; two neighbours are mixed, first along x, then along y."""
    pixels, out = images(side, 1, 1, side, side + 3), 37
    found = tensorflow_bilinear(torch.from_numpy(pixels), out)[0, 0].numpy()
    height, width = pixels.shape[2:]
    image = pixels[0, 0].astype(np.float32)
    for i in range(out):
        y = np.float32(i) * np.float32(height / out)
        top, below = int(y), min(int(y) + 1, height - 1)
        for j in range(out):
            x = np.float32(j) * np.float32(width / out)
            left, right = int(x), min(int(x) + 1, width - 1)
            dx, dy = x - np.float32(left), y - np.float32(top)
            upper = image[top, left] + (image[top, right] - image[top, left]) * dx
            lower = image[below, left] + (image[below, right] - image[below, left]) * dx
            assert found[i, j] == upper + (lower - upper) * dy


@pytest.mark.parametrize("side", SIDES)
def test_clean_is_pillow_channel_by_channel(side: int) -> None:
    pixels = batch(side)
    for plane, found in zip(pixels[0], pillow_bicubic(pixels, 299)[0], strict=True):
        whole = Image.fromarray(plane.numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
        assert np.array_equal(found.numpy(), np.asarray(whole).clip(0, 255))
    assert (antialiased_bicubic(pixels, 299) - pillow_bicubic(pixels, 299)).abs().max() < 1e-4  # the GPU's way


def test_clean_clips_the_overshoot_of_the_filter() -> None:
    edge = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    edge[..., 16:] = 255
    out = pillow_bicubic(edge, 299)
    assert (out.min(), out.max()) == (0, 255)
    assert F.interpolate(edge.double(), (299, 299), mode="bicubic", antialias=True).max() > 260


@pytest.mark.parametrize("resize", [tensorflow_bilinear, pytorch_bilinear, pillow_bicubic])
def test_the_size_that_is_wanted_stays_as_it_is(resize: object) -> None:
    pixels = torch.from_numpy(images(0, 2, 3, 29, 29))
    assert torch.equal(resize(pixels, 29), pixels.float())  # type: ignore[operator]


def test_the_three_are_not_the_same() -> None:
    """Else a mix-up of them would pass."""
    pixels = batch(64)
    found = [resize(pixels, 299) for resize in (tensorflow_bilinear, pytorch_bilinear, pillow_bicubic)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (found[a] - found[b]).abs().mean() > 1
