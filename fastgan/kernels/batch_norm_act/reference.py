"""Batch normalisation + activation in PyTorch, differentiable to any order. The mathematics: see __init__.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.kernels.activations import activate, activate_backward

# (shape, whether channels-last) that test, benchmark and ahead-of-time check share
CASES: dict[str, tuple[tuple[int, ...], bool]] = {
    "dcgan-64 at 32x32, channels-last": ((64, 64, 32, 32), True),
    "dcgan-64 at 16x16, channels-last": ((64, 128, 16, 16), True),
    "dcgan-64 at 8x8, channels-last": ((64, 256, 8, 8), True),
    "dcgan-64 at 4x4, channels-last": ((64, 512, 4, 4), True),
    "dcgan-64 at 16x16": ((64, 128, 16, 16), False),
    "odd sizes": ((3, 5, 7, 9), False),
    "odd sizes, channels-last": ((3, 17, 7, 9), True),
    "one sample, channels-last": ((1, 96, 5, 3), True),
    "one channel": ((4, 1, 9, 11), False),
    "three channels, channels-last": ((4, 3, 9, 11), True),
    "many odd channels, channels-last": ((2, 1031, 3, 2), True),
    "vectors": ((33, 100), False),
    "sequences": ((3, 7, 65), False),
    "volumes, channels-last": ((2, 3, 4, 5, 6), True),
}


@dataclass(frozen=True)
class Norm:
    """What becomes of x: act((x - mean) / sqrt(var + eps) * weight + bias), per channel; training: see norm_act.

    mean, var: float64 [C], or both None: 0 and 1, and eps is not added;  weight, bias: [C], or None: 1 and 0
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    act: int = 0
    slope: float = 0.0
    training: bool = True

    @property
    def is_identity(self) -> bool:
        return self.mean is None and self.weight is None and self.bias is None and self.act == 0


def arithmetic_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, float64 [C]; differentiable."""
    flat = x.double().movedim(1, 0).reshape(x.shape[1], -1)
    mean = flat.mean(1)
    return mean, (flat - mean[:, None]).square().mean(1)


def reference(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: int,
    slope: float,
    training: bool,
) -> Tensor:
    """a [N, C, ...] in the type of x. In training, mean and var are functions of x: they are computed again."""
    if training and mean is not None:
        mean, var = reference_stats(x)
    z = before_activation(x, Norm(mean, var, weight, bias, eps))
    return activate(z, act, slope).to(x.dtype)


def before_activation(x: Tensor, norm: Norm) -> Tensor:
    """z, in the type of the arithmetic."""
    dtype = arithmetic_type(x.dtype)
    z, weight, bias = x.to(dtype), norm.weight, norm.bias
    if norm.mean is None or norm.var is None:
        z = z if weight is None else z * per_channel(weight.to(dtype), x)
        return z if bias is None else z + per_channel(bias.to(dtype), x)
    scale = torch.rsqrt(norm.var + norm.eps)
    scale = scale if weight is None else scale * weight.double()
    center = norm.mean.to(dtype)
    shift = (center.double() - norm.mean) * scale
    shift = shift if bias is None else shift + bias.double()
    return (z - per_channel(center, x)) * per_channel(scale.to(dtype), x) + per_channel(shift.to(dtype), x)


def reference_backward(grad: Tensor, x: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """dx like x, dweight and dbias [C] in the type of the arithmetic, by the formulas: inside an op there is no
    autograd. In training, norm.mean and norm.var have to be those of x."""
    dtype, dims = arithmetic_type(x.dtype), [d for d in range(x.dim()) if d != 1]
    dz = activate_backward(grad.to(dtype), before_activation(x, norm), norm.act, norm.slope)
    xhat = before_activation(x, Norm(norm.mean, norm.var, eps=norm.eps))
    dbias, dweight = dz.sum(dims, dtype=torch.float64), (dz * xhat).sum(dims, dtype=torch.float64)
    if norm.training and norm.mean is not None:
        count = x.numel() // x.shape[1]
        dz = dz - per_channel((dbias / count).to(dtype), x) - xhat * per_channel((dweight / count).to(dtype), x)
    factor = torch.ones_like(dbias) if norm.var is None else torch.rsqrt(norm.var + norm.eps)
    factor = factor if norm.weight is None else factor * norm.weight.double()
    dx = (dz * per_channel(factor.to(dtype), x)).to(x.dtype)
    return torch.empty_like(x).copy_(dx), dweight.to(dtype), dbias.to(dtype)


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """vector [C] such that it broadcasts along dimension 1 of x."""
    return vector.reshape(-1, *[1] * (x.dim() - 2))
