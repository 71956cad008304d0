"""Perceptual path length against closed forms, with generators and distances that have some."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.metrics import path_length
from fastgan.metrics.path import prepared, slerp


def as_image(z: Tensor) -> Tensor:
    return z.double().view(len(z), 1, 2, -1)


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum((1, 2, 3))


def draws(samples: int, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2 * n, 8, generator=generator).double().chunk(2) for n in batches(samples, batch)]
    first, second = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second)


def batches(samples: int, batch: int) -> list[int]:
    return [min(batch, samples - start) for start in range(0, samples, batch)]


def test_linear_generator() -> None:
    """|g(a + e (b - a)) - g(a)|² / e² is |b - a|²."""
    a, b = draws(100, 16)
    lengths = (b - a).square().sum(1).numpy()
    got = path_length(as_image, squared, 8, samples=100, low=0, high=100, epsilon=1e-2)
    assert got.value == pytest.approx(lengths.mean(), rel=1e-4)
    assert got.values == pytest.approx({"std": lengths.std(), "kept": 1.0}, rel=1e-4)
    doubled = path_length(as_image, squared, 8, mapping=lambda z: 2 * z, samples=100, low=0, high=100, epsilon=1e-2)
    assert doubled.value == pytest.approx(4 * lengths.mean(), rel=1e-4)
    assert (got.protocol.space, doubled.protocol.space) == ("z", "w")


def test_percentiles_are_samples() -> None:
    a, b = draws(100, 16)
    lengths = np.sort((b - a).square().sum(1).numpy())
    got = path_length(as_image, squared, 8, samples=100, low=10, high=90.5, epsilon=1e-2)
    assert got.value == pytest.approx(lengths[9:91].mean(), rel=1e-4)  # 9.9 downwards to 9, 89.595 upwards to 90
    assert got.values["kept"] == 0.82


def test_path_on_the_sphere() -> None:
    a, b = draws(64, 16)
    angle = torch.nn.functional.cosine_similarity(a, b).arccos().square().numpy()
    got = path_length(as_image, squared, 8, samples=64, interpolation="slerp", low=0, high=100, epsilon=1e-2)
    assert got.value == pytest.approx(angle.mean(), rel=1e-3)


def test_sampling_along_the_path() -> None:
    """g = |z|²: its change depends on where on the path it is."""

    def norm(z: Tensor) -> Tensor:
        return z.double().square().sum(1).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 2

    options: dict[str, Any] = {"samples": 400, "low": 0, "high": 100, "epsilon": 1e-3}
    end = path_length(norm, squared, 8, **options).value
    full = path_length(norm, squared, 8, sampling="full", **options).value
    a, b = draws(400, 16)
    want = (2 * (a * (b - a)).sum(1)).square().mean() / 4 * 4
    assert end == pytest.approx(float(want), rel=0.02)
    assert full < 0.8 * end  # the middle of the path is nearer to the origin


def test_images_are_prepared() -> None:
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(prepared(images, 4, False), images.view(2, 3, 4, 2, 4, 2).mean((3, 5)))
    assert prepared(images, 256, False) is images
    quantised = (prepared(images, None, True) + 1) * 127.5
    torch.testing.assert_close(quantised, quantised.round(), atol=1e-4, rtol=0)
    assert float((quantised / 127.5 - 1 - images).abs().max()) <= 0.5 / 127.5 + 1e-6
    got = path_length(as_image, squared, 8, samples=10, quantise=True, size=None)
    assert got.protocol.quantise


def test_opposite_and_equal_latents() -> None:
    a = torch.tensor([[1.0, 0], [1, 0]])
    got = slerp(a, torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(got, torch.tensor([[1, 0], [0.5**0.5, 0.5**0.5]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "cubic"}, "interpolation 'cubic'"),
        ({"sampling": "middle"}, "sampling 'middle'"),
        ({"epsilon": 0}, "epsilon > 0"),
        ({"low": 99, "high": 1}, "low < high"),
        ({"samples": 0}, "samples"),
        ({"seed": -1}, "seed"),
        ({"generate": lambda z: z}, r"generate: expected images \[n, C, H, W\]"),
        ({"generate": lambda z: (as_image(z) * 0).to(torch.uint8)}, "uint8"),
        ({"generate": lambda z: torch.zeros(len(z), 1, 6, 6), "size": 4}, "divisor"),
        ({"distance": lambda a, b: torch.zeros(3)}, "16 finite numbers"),
        ({"distance": lambda a, b: torch.full((len(a),), torch.nan)}, "16 finite numbers"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    given = {"generate": as_image, "distance": squared, "latents": 8, "samples": 16, **options}
    with pytest.raises(FastganError, match=message) as error:
        path_length(given.pop("generate"), given.pop("distance"), given.pop("latents"), **given)
    assert "\n" not in str(error.value)
