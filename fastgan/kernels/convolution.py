"""Convolution of maps [N, C, H, W] on CPUs, each direction in its fastest way, of three.

A convolution is the transpose of a transposed convolution with the same weight: what that one calls its input is the
output y here. With its columns (fastgan.kernels.conv_transpose_bn_act.columns)

    y = unfold(x) weight^T          dx = fold(dy weight)          dweight = dy^T unfold(x)

oneDNN's convolutions are far from the rate of matrix products for weight gradients on small maps, for the gradient of
images (few channels), and where the kernel is as large as the map. With 4x4 and 3x3 kernels and many channels, minimal
filtering takes fewer multiplications (fastgan.kernels.winograd). The others are the library's.

x: [N, Cin, H, W], weight: [Cout, Cin, KH, KW], bias: [Cout] -> y [N, Cout, H', W'], channels-last. float32, float64.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.kernels import winograd
from fastgan.kernels._runtime import choose, register
from fastgan.kernels._runtime.second_order import double_backward
from fastgan.kernels.conv_transpose_bn_act import columns
from fastgan.kernels.conv_transpose_bn_act.columns import COLUMNS, LIBRARY, Plan
from fastgan.kernels.conv_transpose_bn_act.geometry import Geometry

# (x, weight, stride, padding, dilation): what test and benchmark share.
CASES = (
    ((4, 3, 16, 16), (64, 3, 4, 4), (2, 2), (1, 1), (1, 1)),
    ((4, 64, 8, 8), (512, 64, 4, 4), (2, 2), (1, 1), (1, 1)),
    ((4, 32, 4, 4), (1, 32, 4, 4), (1, 1), (0, 0), (1, 1)),
    ((3, 5, 9, 7), (512, 5, 3, 2), (2, 3), (2, 1), (1, 2)),
)


def plan(x_shape: Sequence[int], weight_shape: Sequence[int], stride: Sequence[int], padding: Sequence[int],
         dilation: Sequence[int], dtype: torch.dtype) -> Plan:  # fmt: skip
    """What is faster as a product, by a rule that knows no clock; `input` is the gradient of x.

    Measured against oneDNN with AVX2 (benchmarks/LOG.md); its forward passes were at the rate of products there.
    """
    native = choose("conv_transpose_bn_act", torch.device("cpu")).native
    if not native or dtype not in columns.TYPES or 0 in x_shape or 0 in weight_shape:
        return LIBRARY
    height, width = size_of(x_shape[2:], weight_shape[2:], stride, padding, dilation)
    cout, cin, *kernel = weight_shape
    dense = max(dilation) == 1
    if tuple(x_shape[2:]) == tuple(kernel) and max(padding) == 0 and dense:
        return COLUMNS
    few = cin <= 4 and cin * kernel[0] * kernel[1] >= 12
    weight = cout >= 512 and height * width <= 16
    if weight:
        weight = not _filtered(x_shape, weight_shape, stride, padding, dilation, dtype)[winograd.WEIGHT]
    return Plan(forward=False, input=few, weight=weight)


def is_faster(x_shape: Sequence[int], weight_shape: Sequence[int], stride: Sequence[int], padding: Sequence[int],
              dilation: Sequence[int], dtype: torch.dtype, with_gradients: bool) -> bool:  # fmt: skip
    """Whether any direction is not the library's."""
    better = _filtered(x_shape, weight_shape, stride, padding, dilation, dtype)
    if better[winograd.DOWN] or (with_gradients and any(better.values())):
        return True
    how = plan(x_shape, weight_shape, stride, padding, dilation, dtype)
    return how.forward or (with_gradients and (how.input or how.weight))


def _filtered(x_shape: Sequence[int], weight_shape: Sequence[int], stride: Sequence[int], padding: Sequence[int],
              dilation: Sequence[int], dtype: torch.dtype) -> dict[int, bool]:  # fmt: skip
    """What fastgan.kernels.winograd is faster at."""
    size = size_of(x_shape[2:], weight_shape[2:], stride, padding, dilation)
    y_shape = (x_shape[0], weight_shape[0], *size)
    how = winograd.filtering(y_shape, x_shape, weight_shape, stride, padding, dilation, 1, dtype)
    return winograd.NOWHERE if how is None else how.faster


def size_of(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
            dilation: Sequence[int]) -> tuple[int, ...]:  # fmt: skip
    """Of the output."""
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:  # fmt: skip
    """conv2d(x, weight, bias), on a CPU, differentiable to any order. Errors are those of PyTorch."""
    y: Tensor = _FORWARD(x, weight, bias, list(stride), list(padding), list(dilation))
    return y


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    return F.conv2d(x, weight, bias, stride, padding, dilation)


# ---- the ops


def _transposed(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Geometry:
    """Of the transposed convolution from y to x."""
    size, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
    small = size_of(size, kernel, stride, padding, dilation)
    plain = Geometry(tuple(stride), tuple(padding), (0, 0), tuple(dilation))
    rest = tuple(n - m for n, m in zip(size, plain.output_size(small, kernel), strict=True))
    return Geometry(tuple(stride), tuple(padding), rest, tuple(dilation))


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    if not plan(x.shape, weight.shape, stride, padding, dilation, x.dtype).forward:
        y = winograd.convolution(_last(x), _last(weight), bias, stride, padding, dilation, False, [0] * len(stride), 1)
        return _last(y)
    size = size_of(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    like = x.new_empty(x.shape[0], *size, weight.shape[0]).permute(0, 3, 1, 2)
    geometry = _transposed(x, weight, stride, padding, dilation)
    made, _, _ = columns.backward(x, like, weight, None, geometry, needs=(True, False, False), how=COLUMNS)
    assert made is not None
    return made if bias is None else made.add_(bias.view(-1, 1, 1))


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    size = size_of(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return x.new_empty(x.shape[0], weight.shape[0], *size).contiguous(memory_format=torch.channels_last)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dweight, dbias; of those that are not needed an empty tensor."""
    how = plan(x.shape, weight.shape, stride, padding, dilation, x.dtype)
    grad, x = _last(grad), _last(x)
    geometry = _transposed(x, weight, stride, padding, dilation)
    dx = dweight = dbias = x.new_empty(0)
    if needs[0] and how.input:
        dx = _there(columns.forward(grad, weight, None, geometry, how=COLUMNS)[0])
    if needs[1] and how.weight:
        needed = (False, True, False)
        dweight = _there(columns.backward(x, grad, weight, None, geometry, needs=needed, how=COLUMNS)[1])
    rest = needs[0] and not how.input, needs[1] and not how.weight
    if any(rest):
        made = winograd.convolution_backward(
            grad, x, _last(weight), None, stride, padding, dilation, False, [0] * len(stride), 1, [*rest, False]
        )
        dx, dweight = (mine if other is None else other for mine, other in zip((dx, dweight), made[:2], strict=True))
    if needs[2]:
        dbias = grad.sum((0, 2, 3))
    return (_last(dx) if needs[0] else dx), (_like(dweight, weight) if needs[1] else dweight), dbias.clone()


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    last = torch.channels_last
    dx = torch.empty_like(x).contiguous(memory_format=last) if needs[0] else x.new_empty(0)
    dweight = torch.empty_like(weight) if needs[1] else x.new_empty(0)
    return dx, dweight, x.new_empty(weight.shape[0] if needs[2] else 0)


def _there(made: Tensor | None) -> Tensor:
    assert made is not None
    return made


def _last(x: Tensor) -> Tensor:
    """x [N, C, H, W] with its channels next to each other."""
    return x.contiguous(memory_format=torch.channels_last)


def _like(dweight: Tensor, weight: Tensor) -> Tensor:
    """dweight in the memory format of the weight, as autograd wants to have it."""
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return _last(dweight) if last else dweight.contiguous()


# ---- derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.constants = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.biased and ctx.needs_input_grad[2]]
    made = _BACKWARD(grad, x, weight, *ctx.constants, needs)
    return (*(m if needed else None for m, needed in zip(made, needs, strict=True)), None, None, None)


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, x, weight, *ctx.constants, ctx.needs = inputs
    ctx.save_for_backward(grad, x, weight)


def _differentiate_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
    grad, x, weight = ctx.saved_tensors
    stride, padding, dilation = ctx.constants
    bias = torch.zeros_like(weight[:, 0, 0, 0]) if ctx.needs[2] else None
    given = [c if needed else None for c, needed in zip(cotangents, ctx.needs, strict=True)]
    run = functools.partial(reference, stride=stride, padding=padding, dilation=dilation)
    by_grad, by_x, by_weight, _ = double_backward(run, [x, weight, bias], grad, given)
    return by_grad, by_x, by_weight, None, None, None, None


_GEOMETRY = "int[] stride, int[] padding, int[] dilation"
_FORWARD = register(
    f"convolution(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor",
    _forward,
    fake=_fake_forward,
    setup_context=_keep,
    backward=_differentiate,
    decomposition=reference,
)
_BACKWARD = register(
    f"convolution_backward(Tensor grad, Tensor x, Tensor weight, {_GEOMETRY}, bool[] needs) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias)",
    _backward,
    fake=_fake_backward,
    setup_context=_keep_backward,
    backward=_differentiate_backward,
)
