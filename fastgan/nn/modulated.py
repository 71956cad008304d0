"""Layers of style-based generators (fastgan.models.stylegan2): equalised learning rates, modulation, blur."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.kernels import modulated_act as op
from fastgan.kernels._runtime import plain
from fastgan.kernels.masked_act.reference import is_channels_last
from fastgan.nn.convolution import conv2d


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Styles are few numbers that decide much: they stay in the type of the weights."""
    kind = x.device.type
    mixed = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if mixed else nullcontext()


class Linear(nn.Module):
    """x [N, before] -> [N, width], with weights N(0, 1) / lr times lr/sqrt(before), and bias times lr."""

    def __init__(self, before: int, width: int, *, lr: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.lr, self.scale = lr, lr / math.sqrt(before)
        self.weight = nn.Parameter(torch.randn(width, before) / lr)
        self.bias = nn.Parameter(torch.full((width,), bias / lr))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.lr if self.lr != 1 else self.bias)


class ModulatedConv(nn.Module):
    """3x3 convolution whose input is modulated by a style and whose output is demodulated (equations 1 to 3).

    up: transposed, to twice the size, then blurred. Weights are [width, before, 3, 3], or transposed for `up`.
    """

    def __init__(self, before: int, width: int, style: int, *, up: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*((before, width) if up else (width, before)), 3, 3))
        self.scale = 1 / math.sqrt(before * 9)
        self.style = Linear(style, before, bias=1.0)
        self.blur = Blur(width, padding=1, gain=4.0) if up else None

    def forward(self, x: Tensor, w: Tensor, noise: Tensor, strength: Tensor, bias: Tensor, slope: float,
                gain: float) -> Tensor:  # fmt: skip
        """x [N, before, H, W], w [N, style] -> gain * leaky_relu(demodulated + strength * noise + bias)."""
        with without_autocast(x):
            # The equalised learning rate's factor goes into the styles: a pass over the weights less.
            s = self.style(w) * self.scale
            squares = self.weight.square().sum((2, 3))
            d = op.demodulation(s, squares if self.blur else squares.mT)
        x = _act(x, s, slope=1.0, gain=1.0)
        if self.blur is None:
            y = conv2d(x, self.weight, padding=1)
        else:
            y = self.blur(F.conv_transpose2d(x, self.weight, stride=2))
        out: Tensor = _act(y, d, noise, strength, bias, slope=slope, gain=gain)
        return out


class ToImage(nn.Module):
    """x [N, before, H, W], w [N, style] -> [N, channels, H, W]: a modulated 1x1 convolution without demodulation.

    Its few weights per sample are made, [N, channels, before], and multiplied in one batched product.
    """

    def __init__(self, before: int, channels: int, style: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, before))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = 1 / math.sqrt(before)
        self.style = Linear(style, before, bias=1.0)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        with without_autocast(x):
            weights = self.weight * (self.style(w) * self.scale)[:, None, :]
        n, _, height, width = x.shape
        if is_channels_last(x):
            y = x.permute(0, 2, 3, 1).reshape(n, height * width, -1) @ weights.to(x.dtype).mT
            image = y.view(n, height, width, -1).permute(0, 3, 1, 2)
        else:
            image = (weights.to(x.dtype) @ x.flatten(2)).view(n, -1, height, width)
        out: Tensor = image.to(w.dtype) + self.bias[:, None, None]
        return out


class Blur(nn.Module):
    """x [N, channels, H, W] convolved with [1, 3, 3, 1] / 8 in both directions, times gain.

    A depthwise convolution of the library: on a CPU it was 2 to 8 times as fast as sums of shifted images.
    """

    kernel: Tensor

    def __init__(self, channels: int, *, padding: int, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.padding, self.stride = padding, stride
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", (gain * torch.outer(taps, taps)).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, stride=self.stride, padding=self.padding, groups=x.shape[1])


def _act(
    x: Tensor,
    scale: Tensor,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    slope: float,
    gain: float,
) -> Tensor:
    """The op, or in an exported program PyTorch's operations."""
    if plain():
        return op.reference(x, scale, noise, strength, bias, slope, gain)
    return op.modulated_act(x, scale, noise, strength, bias, slope=slope, gain=gain)
