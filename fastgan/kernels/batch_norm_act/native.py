"""Placeholder until the C++ part is there: the same functions in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.kernels.activations import activate_backward
from fastgan.kernels.batch_norm_act.reference import Norm, per_channel, reference, reference_stats


def stats(x: Tensor) -> tuple[Tensor, Tensor]:
    return reference_stats(x)


def normalise(x: Tensor, norm: Norm, out: Tensor | None = None) -> Tensor:
    a = reference(x, norm.mean, norm.var, norm.weight, norm.bias, norm.eps, norm.act, norm.slope, False)
    return (a.clone() if a is x else a) if out is None else out.copy_(a)


def _hat(x: Tensor, norm: Norm) -> Tensor:
    if norm.mean is None or norm.var is None:
        return x.double()
    return (x.double() - per_channel(norm.mean, x)) * per_channel(torch.rsqrt(norm.var + norm.eps), x)


def _dz(grad: Tensor, x: Tensor, norm: Norm) -> Tensor:
    z = _hat(x, norm)
    z = z if norm.weight is None else z * per_channel(norm.weight.double(), x)
    z = z if norm.bias is None else z + per_channel(norm.bias.double(), x)
    return activate_backward(grad.double(), z, norm.act, norm.slope)


def backward_sums(grad: Tensor, x: Tensor, norm: Norm) -> Tensor:
    dz = _dz(grad, x, norm)
    dims = [d for d in range(x.dim()) if d != 1]
    return torch.stack([dz.sum(dims), (dz * _hat(x, norm)).sum(dims)])


def backward_input(
    grad: Tensor, x: Tensor, norm: Norm, sums: Tensor | None, count: float, out: Tensor | None = None
) -> Tensor:
    dz = _dz(grad, x, norm)
    if sums is not None:
        dz = dz - per_channel(sums[0] / count, x) - _hat(x, norm) * per_channel(sums[1] / count, x)
    scale = torch.ones(x.shape[1], dtype=torch.float64) if norm.weight is None else norm.weight.double()
    if norm.var is not None:
        scale = scale * torch.rsqrt(norm.var + norm.eps)
    dx = (dz * per_channel(scale, x)).to(x.dtype)
    return torch.empty_like(x).copy_(dx) if out is None else out.copy_(dx)
