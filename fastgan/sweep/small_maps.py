"""Convolutions with small output maps as products of matrices, for CPUs, which take less time so.

At 4x4 and 8x8 oneDNN convolutions run well below the rate of matrix products (benchmarks/LOG.md). In channels-last the
patches that a convolution multiplies are long runs of memory, so that collecting them costs little:

    patches [N*OH*OW, KH*KW*C]        weight as a matrix [D, KH*KW*C]
    output = patches weight^T         weight gradient = delta^T patches         input gradient = sums of delta weight
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.functional import pad

from fastgan.sweep.replace import replace, replace_gradients

aten = torch.ops.aten

LARGEST_FORWARD, LARGEST_WEIGHT_GRADIENT = 16, 64  # pixels of the output map
LEAST_CHANNELS, LEAST_INNER = 64, 512  # output channels; KH * KW * C


def use_products(graph: fx.Graph) -> None:
    """Replace the convolutions of a graph, and their gradients, for which this pays."""
    for node in list(graph.nodes):
        if node.target is aten.convolution.default:
            _replace_convolution(graph, node)
        elif node.target is aten.convolution_backward.default:
            _replace_gradients(graph, node)


def _replace_gradients(graph: fx.Graph, node: Any) -> None:
    """The weight gradient alone, or all gradients at once."""
    delta, x, weight, _, stride, padding, dilation, transposed, _, groups, wanted = node.args
    largest = LARGEST_FORWARD if wanted[0] else LARGEST_WEIGHT_GRADIENT
    if transposed or not wanted[1] or not _pays(delta, weight, dilation, groups, largest):
        return
    size, kernel = (list(each.meta["val"].shape[2:]) for each in (x, weight))
    of_input = input_gradient, (delta, weight, size, stride, padding)
    replace_gradients(graph, node, of_input, (weight_gradient, (delta, x, kernel, stride, padding)))


def _replace_convolution(graph: fx.Graph, node: Any) -> None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
    small = x if transposed else node
    if not _pays(small, weight, dilation, groups, LARGEST_FORWARD) or (transposed and bias is not None):
        return
    size = list(node.meta["val"].shape[2:])
    if transposed:
        replace(graph, node, (input_gradient, (x, weight, size, stride, padding)))
    else:
        replace(graph, node, (convolution, (x, weight, bias, stride, padding)))


def _pays(small: Any, weight: Any, dilation: Sequence[int], groups: int, largest: int) -> bool:
    """small: the node of the smaller map, [N, D, OH, OW]; weight: that of [D, C, KH, KW]."""
    value, shape = small.meta["val"], weight.meta["val"].shape
    fits = value.dim() == 4 and value.device.type == "cpu" and value.dtype == torch.float32
    if not fits or groups != 1 or any(d != 1 for d in dilation):
        return False
    pixels, inner = value.shape[2] * value.shape[3], shape[1] * shape[2] * shape[3]
    return bool(1 < pixels <= largest and shape[0] >= LEAST_CHANNELS and inner >= LEAST_INNER and shape[2] > 1)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int]) -> Tensor:
    """x: [N, C, H, W], weight: [D, C, KH, KW], bias: [D] -> [N, D, OH, OW], channels-last."""
    columns, (count, height, width) = patches(x, list(weight.shape[2:]), stride, padding)
    matrix = _matrix(weight).t()
    out = columns @ matrix if bias is None else torch.addmm(bias, columns, matrix)
    return out.view(count, height, width, -1).permute(0, 3, 1, 2)


def weight_gradient(delta: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """delta: [N, D, OH, OW], x: [N, C, H, W] -> [D, C, KH, KW], channels-last."""
    columns, _ = patches(x, kernel, stride, padding)
    rows = delta.permute(0, 2, 3, 1).reshape(-1, delta.shape[1])
    return (rows.t() @ columns).view(-1, *kernel, x.shape[1]).permute(0, 3, 1, 2)


def input_gradient(delta: Tensor, weight: Tensor, size: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """delta: [N, D, OH, OW], weight: [D, C, KH, KW] -> [N, C, *size], channels-last."""
    count, channels, height, width = delta.shape
    kernel_height, kernel_width = weight.shape[2:]
    rows = delta.permute(0, 2, 3, 1).reshape(-1, channels)
    columns = (rows @ _matrix(weight)).view(count, height, width, kernel_height, kernel_width, -1)
    around = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    out = columns.new_zeros(count, *around, columns.shape[-1])
    for a in range(kernel_height):
        for b in range(kernel_width):
            ends = a + (height - 1) * stride[0] + 1, b + (width - 1) * stride[1] + 1
            out[:, a : ends[0] : stride[0], b : ends[1] : stride[1]] += columns[:, :, :, a, b]
    inside = out[:, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    return inside.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def patches(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> tuple[Tensor, tuple[int, int, int]]:
    """What a convolution multiplies, [N*OH*OW, KH*KW*C], and (N, OH, OW)."""
    around = pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()
    count, _, _, channels = around.shape
    height, width = ((around.shape[1 + i] - kernel[i]) // stride[i] + 1 for i in range(2))
    sample, row, pixel, one = around.stride()
    windows = around.as_strided(
        (count, height, width, *kernel, channels), (sample, row * stride[0], pixel * stride[1], row, pixel, one)
    )
    return windows.reshape(count * height * width, -1), (count, height, width)


def _matrix(weight: Tensor) -> Tensor:
    """[D, C, KH, KW] -> [D, KH*KW*C]: a view, if it is channels-last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
