"""masked_act and apply_mask in PyTorch, and the layouts of tensors and masks. The mathematics: see __init__.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# (shape, whether channels-last) that test, benchmark and ahead-of-time check share
CASES: dict[str, tuple[tuple[int, ...], bool]] = {
    "dcgan-64 critic": ((32, 64, 32, 32), False),
    "dcgan-64 critic, channels-last": ((32, 64, 32, 32), True),
    "small maps": ((4, 512, 4, 4), False),
    "small maps, channels-last": ((4, 512, 4, 4), True),
    "odd sizes": ((3, 5, 7, 9), False),
    "odd sizes, channels-last": ((3, 5, 7, 9), True),
    "many odd channels, channels-last": ((2, 1031, 3, 1), True),
    "rows that end within a byte": ((2, 3, 5, 31), False),
    "rows across tiles": ((3, 40, 8, 12), False),  # tiles of csrc/cpu/masked_act.cpp, of 2048 elements
    "samples across tiles, channels-last": ((5, 8, 20, 15), True),
    "vectors": ((33, 100), False),
    "sequences": ((3, 7, 65), False),
    "volumes": ((2, 3, 4, 5, 6), False),
    "volumes, channels-last": ((2, 3, 4, 5, 6), True),
    "one dimension": ((1031,), False),
    "one element": ((1, 1), False),
    "no dimension": ((), False),
    "no samples": ((0, 3, 4, 4), False),
    "no pixels": ((2, 3, 0, 4), True),
}

HALF_TYPES = (torch.bfloat16, torch.float16)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of dimensions


def reference(z: Tensor, slope: float, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """a, like z, and its mask; differentiable to any order. z: dense, contiguous or channels-last."""
    channels_last = is_channels_last(z)
    y = _plus(z, bias, None)
    on = y > 0
    a = torch.where(on, y, y * slope) if slope else torch.where(on | y.isnan(), y, 0)
    return in_layout(a.to(z.dtype), channels_last), _pack(on, channels_last)


def decomposition(z: Tensor, slope: float, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same by torch's activations, which who reads a graph knows; where z is -0 or -inf the bits may differ."""
    y = _plus(z, bias, None)
    a = F.leaky_relu(y, slope) if slope else F.relu(y)
    return a.to(z.dtype), _pack(y > 0, is_channels_last(z))


def reference_apply(
    u: Tensor, mask: Tensor, slope: float, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """M (u + scale * bias), in the layout of the mask; differentiable to any order."""
    channels_last = mask.dim() == 2
    y = _plus(u, bias, scale)
    masked = torch.where(_unpack(mask, y.shape, channels_last), y, y * slope if slope else 0)
    return in_layout(masked.to(u.dtype), channels_last)


def arithmetic_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF_TYPES else dtype


def per_channel(bias: Tensor, dim: int) -> Tensor:
    """bias [C] such that it broadcasts along dimension 1 of a tensor of `dim` dimensions."""
    return bias.reshape(-1, *[1] * (dim - 2))


def per_sample(scale: Tensor, dim: int) -> Tensor:
    """scale [N] such that it broadcasts along dimension 0 of a tensor of `dim` dimensions."""
    return scale.reshape(-1, *[1] * (dim - 1))


def _plus(x: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    dtype = arithmetic_type(x.dtype)
    x = x.to(dtype)
    if bias is None:
        return x
    addend = per_channel(bias.to(dtype), x.dim())
    return x + (addend if scale is None else per_sample(scale.to(dtype), x.dim()) * addend)


# ---- layouts


def is_channels_last(x: Tensor) -> bool:
    """Whether x counts as channels-last: dense, and not contiguous as well."""
    if x.is_contiguous() or x.dim() not in CHANNELS_LAST:
        return False
    return x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()])


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    """x where it has the layout, else a copy."""
    return x.contiguous(memory_format=CHANNELS_LAST[x.dim()]) if channels_last else x.contiguous()


def empty_in_layout(x: Tensor, channels_last: bool) -> Tensor:
    memory_format = CHANNELS_LAST[x.dim()] if channels_last else torch.contiguous_format
    return torch.empty_like(x, memory_format=memory_format)


def mask_shape(numel: int, channels_last: bool) -> tuple[int, ...]:
    size = (numel + 7) // 8
    return (1, size) if channels_last else (size,)


def _pack(on: Tensor, channels_last: bool) -> Tensor:
    """The mask of bools: [ceil(numel / 8)], with a dimension of 1 in front for channels-last."""
    flat = (on.movedim(1, -1) if channels_last else on).reshape(-1)
    bits = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    packed = (bits << torch.arange(8, dtype=torch.uint8, device=on.device)).sum(1, dtype=torch.uint8)
    return packed.view(mask_shape(flat.numel(), channels_last))


def _unpack(mask: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """Bools of `shape`."""
    bits = mask.reshape(-1, 1) >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
    flat = bits.bool().view(-1)[: math.prod(shape)]
    if channels_last:
        return flat.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return flat.view(shape)
