"""modulated_act in PyTorch, differentiable to any order. The mathematics: see __init__.py."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.kernels.masked_act.reference import arithmetic_type

# (shape, whether channels-last) that test, benchmark and ahead-of-time check share
CASES: dict[str, tuple[tuple[int, ...], bool]] = {
    "stylegan2-64 at 64x64, channels-last": ((8, 64, 64, 64), True),
    "stylegan2-64 at 16x16, channels-last": ((8, 256, 16, 16), True),
    "stylegan2-64 at 16x16": ((8, 256, 16, 16), False),
    "small maps, channels-last": ((4, 512, 4, 4), True),
    "small maps": ((4, 512, 4, 4), False),
    "odd sizes": ((3, 5, 7, 9), False),
    "odd sizes, channels-last": ((3, 5, 7, 9), True),
    "few channels, channels-last": ((5, 3, 20, 15), True),
    "many odd channels, channels-last": ((2, 1031, 3, 2), True),
    "large maps": ((2, 3, 70, 71), False),
    "one sample, channels-last": ((1, 33, 9, 8), True),
    "one pixel": ((3, 7, 1, 1), False),
    "no samples": ((0, 3, 4, 4), False),
    "no pixels": ((2, 3, 0, 4), True),
}


def reference(
    x: Tensor,
    scale: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    slope: float,
    gain: float,
) -> Tensor:
    """a, in the type and layout of x."""
    z = before_activation(x, scale, noise, strength, bias)
    a = F.leaky_relu(z, slope) if slope != 1 else z
    return (a * gain if gain != 1 else a).to(x.dtype)


def before_activation(
    x: Tensor, scale: Tensor, noise: Tensor | None, strength: Tensor | None, bias: Tensor | None
) -> Tensor:
    """z, in the type of the arithmetic."""
    dtype = arithmetic_type(x.dtype)
    z = x.to(dtype) * per_image(scale.to(dtype))
    if noise is not None and strength is not None:
        z = z + noise.to(dtype) * strength.to(dtype)
    return z if bias is None else z + bias.to(dtype)[:, None, None]


def slopes(z: Tensor, slope: float, gain: float) -> Tensor:
    """m = da/dz, locally constant."""
    high, low = (torch.full((), value, dtype=z.dtype, device=z.device) for value in (gain, gain * slope))
    return torch.where(z.detach() > 0, high, low)


def reference_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    slope: float,
    gain: float,
) -> tuple[Tensor, Tensor]:
    """dx like x, and sums [3, N, C] in the type of the arithmetic; by the formulas, in differentiable operations."""
    dtype = arithmetic_type(x.dtype)
    m = slopes(before_activation(x, scale, noise, strength, bias), slope, gain)
    dz = grad.to(dtype) * m
    alone = dz.sum((2, 3))
    with_noise = torch.zeros_like(alone) if noise is None else (dz * noise.to(dtype)).sum((2, 3))
    sums = torch.stack([(dz * x.to(dtype)).sum((2, 3)), alone, with_noise])
    return (dz * per_image(scale.to(dtype))).to(x.dtype), sums


def per_image(scale: Tensor) -> Tensor:
    """[N, C] such that it broadcasts along an image."""
    return scale[:, :, None, None]
