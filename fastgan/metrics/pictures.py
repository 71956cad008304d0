"""Images as metrics take them: [N, C, H, W], uint8 or float, NumPy or torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels.arrays import tensor_of


def pictures(name: str, value: Any) -> Tensor:
    """As a tensor, checked: four dimensions, real, finite, not empty."""
    if not isinstance(value, (np.ndarray, Tensor)):
        raise FastganError(f"{name}: expected images [N, C, H, W], got {type(value).__name__}")
    images = tensor_of(name, value)
    if images.dim() != 4 or not images.numel() or images.is_complex():
        raise FastganError(f"{name}: expected images [N, C, H, W], got {images.dtype} {list(images.shape)}")
    if images.is_floating_point() and not bool(images.isfinite().all()):
        raise FastganError(f"{name}: expected finite pixels, got NaN or infinity; check the generator")
    return images


def matching(first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """fake and real images that correspond, of one shape and kind of pixels."""
    fake, real = pictures("fake", first), pictures("real", second)
    real = real.to(fake.device)
    if fake.shape != real.shape:
        raise FastganError(
            f"fake {list(fake.shape)} and real {list(real.shape)} must have the same shape: they are compared in pairs"
        )
    if fake.is_floating_point() != real.is_floating_point():
        raise FastganError(f"fake is {fake.dtype} and real is {real.dtype}; give both as uint8 or both as floats")
    return fake, real


def range_of(data_range: float | None, *images: Tensor) -> float:
    """Largest minus smallest possible pixel: 255 for uint8, 2 for floats in [-1, 1], or what was given."""
    if data_range is not None:
        if not data_range > 0:
            raise FastganError(f"data_range: expected a number above 0, got {data_range}")
        return float(data_range)
    if all(x.dtype == torch.uint8 for x in images):
        return 255.0
    if any(not x.is_floating_point() for x in images) or any(float(x.abs().amax()) > 1 + 1e-3 for x in images):
        raise FastganError("images: expected uint8, or floats in [-1, 1]; for other ranges pass data_range")
    return 2.0
