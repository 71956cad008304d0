"""adam_ema: Adam and the moving average in one launch, against fused Adam, then one call for the average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastgan.contract import ImageShape
from fastgan.kernels.adam_ema import adam_ema_
from fastgan.models.dcgan import DCGAN

LR, BETA1, BETA2, EPS, DECAY = 2e-4, 0.5, 0.999, 1e-8, 0.998


@dataclass
class Weights:
    """What an optimiser with a moving average works on: lists of tensors of equal shapes."""

    params: list[Tensor]
    grads: list[Tensor]
    averages: list[Tensor]

    def to(self, device: str, dtype: torch.dtype) -> Weights:
        """An independent copy."""
        copies = ([t.to(device, dtype, copy=True) for t in ts] for ts in (self.params, self.grads, self.averages))
        return Weights(*copies)


def random_weights(shapes: list[torch.Size]) -> Weights:
    """Standard normal numbers: never zeros, which can run faster than real data."""
    return Weights(*([torch.randn(shape) for shape in shapes] for _ in range(3)))


def dcgan_shapes(device: str) -> list[torch.Size]:
    """The parameters of DCGAN-64's generator."""
    return [p.shape for p in DCGAN().generator(ImageShape(3, 64), 100).parameters()]


def large_shapes(device: str) -> list[torch.Size]:
    """A long list of large and small tensors: 75.5 million numbers on a GPU, 18.9 million on a CPU."""
    layer = [torch.Size((512, 512, 3, 3)), torch.Size((512,))]
    return layer * (32 if device == "cuda" else 8)


def ours(weights: Weights) -> Callable[[], None]:
    """One call of adam_ema_ per step, every number read on the device."""
    device = weights.params[0].device
    moments = [[torch.zeros_like(p) for p in weights.params] for _ in range(2)]
    numbers = {"lr": LR, "beta1": BETA1, "beta2": BETA2, "ema_decay": DECAY, "grad_scale": 1.0, "step": 0.0}
    scalars = {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in numbers.items()}
    skip = torch.tensor(False, device=device)

    def step() -> None:
        adam_ema_(weights.params, weights.grads, *moments, weights.averages, eps=EPS, skip=skip, **scalars)

    return step


def fused_adam_then_lerp(weights: Weights) -> Callable[[], None]:
    """What a careful user writes today."""
    for p, g in zip(weights.params, weights.grads, strict=True):
        p.grad = g
    adam = torch.optim.Adam(weights.params, LR, (BETA1, BETA2), EPS, fused=True)

    def step() -> None:
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(weights.averages, weights.params, 1 - DECAY)

    return step


def check(weights: Weights, device: str) -> None:
    """Three fp32 steps agree with three float64 steps of PyTorch's Adam and average."""
    tested, reference = weights.to(device, torch.float32), weights.to("cpu", torch.float64)
    step, reference_step = ours(tested), fused_adam_then_lerp(reference)
    for _ in range(3):
        step()
        reference_step()
    for name in ("params", "averages"):
        for got, expected in zip(getattr(tested, name), getattr(reference, name), strict=True):
            error = (got.cpu().double() - expected).norm() / expected.norm()
            assert error < 1e-6, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(("case", "shapes"), [("DCGAN-64 generator", dcgan_shapes), ("large layers", large_shapes)])
def test_adam_ema(case, shapes, ratio, device):
    weights = random_weights(shapes(device))
    check(weights, device)
    count = sum(p.numel() for p in weights.params)
    ratio(
        "adam_ema",
        f"{case}, {len(weights.params)} tensors, {count / 1e6:.1f} M numbers",
        {
            "fastgan adam_ema_": ours(weights.to(device, torch.float32)),
            "Adam(fused=True), then _foreach_lerp_": fused_adam_then_lerp(weights.to(device, torch.float32)),
        },
        ours="fastgan adam_ema_",
        bytes=9 * 4 * count,  # reads weight, gradient, two moments, average; writes all but the gradient
    )
