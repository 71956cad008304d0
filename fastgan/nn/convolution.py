"""Convolutions which on a CPU have a fastest way for each direction (fastgan.kernels.convolution)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.kernels._runtime import plain
from fastgan.kernels.convolution import convolution, is_faster

Pair = tuple[int, int]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """torch.nn.functional.conv2d, differentiable to any order. x: [N, Cin, H, W], weight: [Cout, Cin, KH, KW]."""
    pairs = (stride, stride), (padding, padding), (1, 1)
    size: Pair = (weight.shape[2], weight.shape[3])
    if _runs_here(x, weight.shape[1], size) and x.dtype == weight.dtype and _pays(x, weight.shape, *pairs):
        return convolution(x, weight, bias, *pairs)
    return F.conv2d(x, weight, bias, stride, padding)


class Conv2d(nn.Conv2d):
    """nn.Conv2d with the same state, which on a CPU has a fastest way for each direction."""

    def forward(self, x: Tensor) -> Tensor:
        simple = self.groups == 1 and self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not simple or not _runs_here(x, self.in_channels, self.kernel_size):  # type: ignore[arg-type]
            return super().forward(x)
        geometry = self.stride, self.padding, self.dilation
        if not _pays(x, (self.out_channels, self.in_channels, *self.kernel_size), *geometry):  # type: ignore[arg-type]
            return super().forward(x)
        weight = self.weight  # read once: where it is computed, as by spectral normalisation, that changes state
        if weight.dtype != x.dtype:
            refused: Tensor = self._conv_forward(x, weight, self.bias)
            return refused
        return convolution(x, weight, self.bias, *geometry)  # type: ignore[arg-type]


def _runs_here(x: Tensor, channels: int, kernel: Pair) -> bool:
    """Whether PyTorch is computing with plain channels-last tensors."""
    if plain() or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    usual = type(x) is Tensor and x.device.type == "cpu" and x.dim() == 4 and x.shape[1] == channels
    if not usual or torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and min(x.shape[2:]) >= max(kernel)


def _pays(x: Tensor, weight: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair) -> bool:
    return is_faster(x.shape, weight, stride, padding, dilation, x.dtype, torch.is_grad_enabled())
