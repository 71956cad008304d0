"""A generator of two blocks, fused and not, and what has to be the same."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from nn.compare import assert_close, fused_calls, gradients, twins
from torch import Tensor, nn


def up(before: int, after: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)


class Two(nn.Module):
    """Two blocks; `extra` runs between them and may be anything."""

    def __init__(self, extra: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.first = nn.Sequential(up(3, 4), nn.BatchNorm2d(4), nn.SiLU())
        self.second = nn.Sequential(up(4, 2), nn.BatchNorm2d(2), nn.LeakyReLU(0.2))
        self.slope, self.skip, self.config = 0.1, False, SimpleNamespace(gain=2.0)
        self.seen: list[Any] = []
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.extra is not None:
            y = self.extra(self, y)
        return self.second(y)


def inputs() -> Tensor:
    return torch.randn(3, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def make(extra: Callable[..., Any] | None = None) -> tuple[nn.Module, nn.Module]:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return Two(extra).double()

    return twins(model)


def assert_same(plain: nn.Module, other: nn.Module, *, ours: bool = True) -> None:
    """Outputs, gradients and buffers; `ours`: at least one of our operations ran."""
    x = inputs()
    upstream = torch.randn_like(plain(x).detach())
    other(x)
    with fused_calls() as names:
        got = gradients(other, x.clone().requires_grad_(), upstream)
    assert bool(names) == ours
    assert_close(got, gradients(plain, x.clone().requires_grad_(), upstream))
    assert_close(other.buffers(), plain.buffers())
