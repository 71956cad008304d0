"""Inputs of masked_act and apply_mask, and how results are compared."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.kernels.masked_act import CASES
from fastgan.kernels.masked_act.reference import in_layout

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)
SLOPES = (0.0, 0.2, -0.5, 1.0)


def random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def of_case(case: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    shape, channels_last = CASES[case]
    return in_layout(random(shape, device, dtype), channels_last)


def added(z: Tensor, what: str) -> tuple[Tensor | None, Tensor | None]:
    """(bias, scale) for z: none, the bias alone, or both."""
    bias = random(z.shape[1:2], z.device, z.dtype, 1) if what != "nothing" else None
    return bias, (random(z.shape[:1], z.device, z.dtype, 2) if what == "bias and scale" else None)


def eager(y: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(y, slope) if slope else F.relu(y)


def plus(z: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> Tensor:
    if bias is None:
        return z
    bias = bias.view(-1, *[1] * (z.dim() - 2))
    return z + (bias if scale is None else scale.view(-1, *[1] * (z.dim() - 1)) * bias)


def relative(ours: Tensor, exact: Tensor) -> float:
    norm = exact.norm().item()
    return (ours.double() - exact).norm().item() / norm if norm else 0.0


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal, where NaN is equal to NaN."""
    return ours.dtype == theirs.dtype and torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(
        ours.nan_to_num(9), theirs.nan_to_num(9)
    )  # fmt: skip


def assert_accurate(ours: Tensor, eager: Tensor, exact: Tensor) -> None:
    assert ours.dtype == eager.dtype
    assert ours.shape == exact.shape
    bound = {torch.float32: 2e-7, torch.float64: 1e-15}.get(ours.dtype)
    assert relative(ours, exact) <= (2 * relative(eager, exact) if bound is None else bound)


def additions(case: str) -> list[str]:
    return ["nothing", "bias", "bias and scale"] if len(CASES[case][0]) > 1 else ["nothing"]
