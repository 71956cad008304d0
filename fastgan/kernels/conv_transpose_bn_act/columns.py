"""Transposed convolutions on CPUs as products of matrices, with what is left of them in C++ (csrc/fold.h).

Channels-last, x [N, H, W, Cin] is a matrix of N H W rows, and the weight [Cin, KH, KW, Cout] one of Cin rows:

    columns = x weight                                                   [N, H, W, KH, KW, Cout]
    y[n, h s - p + i d, w s - p + j d] += columns[n, h, w, i, j]         fold;  a = act(y + bias), its mean and variance

    dcolumns[n, h, w, i, j] = dy[n, h s - p + i d, w s - p + j d]        unfold, 0 outside;  dy = act'(y) da
    dx = dcolumns weight^T          dweight = x^T dcolumns

The columns of some samples at a time are in memory. In 1-D the height is 1. Types: float32 and float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.conv_transpose_bn_act.geometry import Geometry

TYPES = {torch.float32: 0, torch.float64: 1}  # as MaskedActType in csrc/masked_act.h
NONE, RELU, LEAKY_RELU, TANH, SIGMOID, SILU, GELU = range(7)  # as NormActKind in csrc/norm_act.h
# Bytes of columns at a time. The least stays in second-level caches; larger weights want more rows per read of them.
LEAST_CHUNK, LARGEST_CHUNK, WEIGHTS_PER_CHUNK = 2 << 20, 16 << 20, 4


@dataclass(frozen=True)
class Plan:
    """Which of the products are of columns; the library's convolutions do the others."""

    forward: bool
    input: bool
    weight: bool


COLUMNS, LIBRARY = Plan(True, True, True), Plan(False, False, False)


def plan(x_shape: torch.Size, weight_shape: torch.Size, geometry: Geometry, dtype: torch.dtype) -> Plan:
    """What is faster, by a rule that knows no clock: the same shapes give the same bits in every run."""
    if dtype not in TYPES or geometry.groups != 1 or EXTENSION.module is None:
        return LIBRARY
    return COLUMNS


def worth_it(x_shape: torch.Size, weight_shape: torch.Size, geometry: Geometry, dtype: torch.dtype) -> bool:
    """Whether columns are faster in any direction."""
    return plan(x_shape, weight_shape, geometry, dtype) != LIBRARY


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    act: int = NONE,
    slope: float = 0.0,
    want_stats: bool = False,
    how: Plan | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """a = act(y + bias) and, where wanted, its mean and biased variance per channel, [Cout] in float64.

    x: [N, Cin, H, W] or [N, Cin, L], weight: [Cin, Cout, KH, KW] or [Cin, Cout, K], bias: [Cout]; all of one type
    act: a code of csrc/norm_act.h; slope: of leaky ReLU
    how: `plan` where it is None
    Returns a [N, Cout, ...], channels-last in memory.
    """
    how = how or plan(x.shape, weight.shape, geometry, x.dtype)
    if x.dim() == 3:
        planes = x.unsqueeze(2), weight.unsqueeze(2)
        a, mean, var = forward(*planes, bias, geometry.planar(), act, slope, want_stats, how)
        return a.squeeze(2), mean, var
    after = _After(None if bias is None else bias.contiguous(), act, slope)
    if how.forward:
        return _forward(x, weight, geometry, after, want_stats)
    a = _channels_last(torch.ops.aten.convolution(*_for_library(x, weight), None, *_arguments(geometry)))
    statistics = _finish(a, after, want_stats)
    return a, *statistics


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor | None,
    geometry: Geometry,
    act: int = NONE,
    slope: float = 0.0,
    needs: tuple[bool, bool, bool] = (True, True, True),
    how: Plan | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias for `grad`, that of a = act(y + bias); None for those that are not needed.

    grad, a: [N, Cout, ...]; a is looked at where there is an activation: none, ReLU, leaky ReLU, tanh or sigmoid
    The gradient of x is channels-last in memory, that of the weight is as the weight is. Raises FastganError.
    """
    _check_slopes_are_known(a, act, slope)
    how = how or plan(x.shape, weight.shape, geometry, x.dtype)
    if x.dim() == 3:
        planes = grad.unsqueeze(2), x.unsqueeze(2), weight.unsqueeze(2), a if a is None else a.unsqueeze(2)
        dx, dweight, dbias = backward(*planes, geometry.planar(), act, slope, needs, how)
        return dx if dx is None else dx.squeeze(2), dweight if dweight is None else dweight.squeeze(2), dbias
    library = needs[0] and not how.input, needs[1] and not how.weight
    if act and (needs[2] or any(library)):
        assert a is not None
        grad, act = _times_slopes(grad, a, act, slope), NONE
    dx = dweight = dbias = None
    if (needs[0] and how.input) or (needs[1] and how.weight):
        ours = needs[0] and how.input, needs[1] and how.weight
        dx, dweight = _backward(grad, a, x, weight, geometry, _After(None, act, slope), ours)
    if any(library):
        theirs = torch.ops.aten.convolution_backward(
            _channels_last(grad), *_for_library(x, weight), None, *_arguments(geometry), [*library, False]
        )
        dx, dweight = (mine if other is None else other for mine, other in zip((dx, dweight), theirs[:2], strict=True))
    if needs[2]:
        dbias = _rows(grad).sum(0)
    return dx if dx is None else _channels_last(dx), dweight if dweight is None else _like(dweight, weight), dbias


# ---- with columns


@dataclass(frozen=True)
class _After:
    """What becomes of the sum y: act(y + bias)."""

    bias: Tensor | None
    act: int
    slope: float


def _forward(
    x: Tensor, weight: Tensor, geometry: Geometry, after: _After, want_stats: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    fold, rows, matrix = _Fold.of(x, weight, geometry), _rows(x), _matrix(weight)
    a = _new_image(x, fold.channels, fold.sizes[1])
    if fold.is_identity:
        torch.mm(rows, matrix, out=_rows(a).view(len(rows), -1))
        return a, *_finish(a, after, want_stats)
    parts = fold.new_parts(a) if want_stats else None
    for samples, at, columns in _chunks(fold, rows, matrix):
        torch.mm(rows[at], matrix, out=columns)
        fold.run(columns, a[samples], after, parts if parts is None else parts[samples])
    return a, *fold.statistics(parts)


def _finish(y: Tensor, after: _After, want_stats: bool) -> tuple[Tensor | None, Tensor | None]:
    """What the library leaves to do, in place: the same as after a fold that sums nothing."""
    if after.bias is None and not after.act and not want_stats:
        return None, None
    size = tuple(y.shape[2:])
    fold = _Fold(len(y), y.shape[1], (size, size, (1, 1), (1, 1), (0, 0), (1, 1)))
    parts = fold.new_parts(y) if want_stats else None
    fold.run(y, y, after, parts)
    return fold.statistics(parts)


def _backward(
    grad: Tensor,
    a: Tensor | None,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    after: _After,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    fold, rows, matrix = _Fold.of(x, weight, geometry), _rows(x), _matrix(weight)
    grad, a = _channels_last(grad), None if a is None or not after.act else _channels_last(a)
    dx = _new_image(x, x.shape[1], x.shape[2:]) if needs[0] else None
    dmatrix = torch.empty_like(matrix) if needs[1] else None
    for samples, at, columns in _chunks(fold, rows, matrix):
        fold.unfold(grad[samples], None if a is None else a[samples], after, columns)
        if dx is not None:
            torch.mm(columns, matrix.t(), out=_rows(dx)[at])
        if dmatrix is not None and at.start == 0:
            torch.mm(rows[at].t(), columns, out=dmatrix)
        elif dmatrix is not None:
            torch.addmm(dmatrix, rows[at].t(), columns, out=dmatrix)
    if dmatrix is None:
        return dx, None
    cin, cout, height, width = weight.shape
    return dx, dmatrix.view(cin, height, width, cout).permute(0, 3, 1, 2)


def _chunks(fold: _Fold, rows: Tensor, matrix: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Samples, their rows of the matrix, and memory for their columns, which is the same for all of them."""
    pixels = len(rows) // fold.samples
    chunk = min(max(WEIGHTS_PER_CHUNK * matrix.nbytes, LEAST_CHUNK), LARGEST_CHUNK)
    size = min(max(chunk // (pixels * matrix.shape[1] * rows.itemsize), 1), fold.samples)
    memory = rows.new_empty(size * pixels, matrix.shape[1])
    for begin in range(0, fold.samples, size):
        end = min(begin + size, fold.samples)
        yield slice(begin, end), slice(begin * pixels, end * pixels), memory[: (end - begin) * pixels]


Sizes = tuple[tuple[int, ...], ...]  # as in csrc/bind.cpp: small, large, kernel, stride, padding, dilation


@dataclass(frozen=True)
class _Fold:
    """A Fold of csrc/fold.h. Tensors in its methods are dense, images channels-last."""

    samples: int
    channels: int
    sizes: Sizes

    @staticmethod
    def of(x: Tensor, weight: Tensor, geometry: Geometry) -> _Fold:
        small, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
        large = geometry.output_size(small, kernel)
        return _Fold(
            len(x), weight.shape[1], (small, large, kernel, geometry.stride, geometry.padding, geometry.dilation)
        )

    @property
    def is_identity(self) -> bool:
        """Whether columns are y: of one pixel, with nothing cut off or added."""
        small, large, kernel, _, padding, dilation = self.sizes
        return small == (1, 1) and large == kernel and padding == (0, 0) and dilation == (1, 1)

    def native(self, samples: int) -> Any:
        return EXTENSION.module.Fold(samples, self.channels, self.sizes)

    def new_parts(self, y: Tensor) -> Tensor:
        """Memory for the statistics, [samples, parts per sample, 2, channels]."""
        parts = self.native(self.samples).parts
        return y.new_empty((self.samples, parts // max(self.samples, 1), 2, self.channels), dtype=torch.float64)

    def run(self, columns: Tensor, y: Tensor, after: _After, parts: Tensor | None) -> None:
        bias = 0 if after.bias is None else after.bias.data_ptr()
        EXTENSION.module.fold_cpu(
            self.native(len(y)),
            TYPES[y.dtype],
            columns.data_ptr(),
            bias,
            after.act,
            after.slope,
            y.data_ptr(),
            0 if parts is None else parts.data_ptr(),
            torch.get_num_threads(),
        )

    def statistics(self, parts: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Mean and biased variance, [channels]."""
        if parts is None:
            return None, None
        mean, var = parts.new_empty(self.channels), parts.new_empty(self.channels)
        EXTENSION.module.fold_stats_cpu(self.native(self.samples), parts.data_ptr(), mean.data_ptr(), var.data_ptr())
        return mean, var

    def unfold(self, grad: Tensor, a: Tensor | None, after: _After, columns: Tensor) -> None:
        EXTENSION.module.unfold_cpu(
            self.native(len(grad)),
            TYPES[grad.dtype],
            grad.data_ptr(),
            0 if a is None else a.data_ptr(),
            after.act,
            after.slope,
            columns.data_ptr(),
            torch.get_num_threads(),
        )


# ---- layouts


def _channels_last(x: Tensor) -> Tensor:
    """x [N, C, H, W] with its channels next to each other. Where C or H W is 1, strides alone do not tell."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """x [N, C, H, W] as a matrix [N H W, C]: a view, if it is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _matrix(weight: Tensor) -> Tensor:
    """weight [Cin, Cout, KH, KW] as a matrix [Cin, KH KW Cout]: a view, if it is channels-last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _new_image(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Memory for [N, channels, *size], channels-last."""
    return x.new_empty(len(x), *size, channels).permute(0, 3, 1, 2)


def _like(dweight: Tensor, weight: Tensor) -> Tensor:
    """The gradient in the memory format of the weight."""
    if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        return _channels_last(dweight)
    return dweight.contiguous()


# ---- the library


def _arguments(geometry: Geometry) -> tuple[Any, ...]:
    """Of aten.convolution, after the bias."""
    return geometry.stride, geometry.padding, geometry.dilation, True, geometry.output_padding, geometry.groups


def _for_library(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return _channels_last(x), _channels_last(weight)


def _times_slopes(grad: Tensor, a: Tensor, act: int, slope: float) -> Tensor:
    """act'(z) grad."""
    ops = torch.ops.aten
    made: Tensor
    if act == RELU:
        made = ops.threshold_backward(grad, a, 0)
    elif act == LEAKY_RELU:
        made = ops.leaky_relu_backward(grad, a, slope, True)
    else:
        made = ops.tanh_backward(grad, a) if act == TANH else ops.sigmoid_backward(grad, a)
    return made


def _check_slopes_are_known(a: Tensor | None, act: int, slope: float) -> None:
    if act in (SILU, GELU) or (act == LEAKY_RELU and slope < 0):
        raise FastganError(
            f"conv_transpose_bn_act: expected an activation whose output tells its slope (none, ReLU, leaky ReLU with "
            f"slope >= 0, tanh, sigmoid), got code {act} with slope {slope}; apply it on its own"
        )
    if act and a is None:
        raise FastganError(
            "conv_transpose_bn_act: expected the output a for the derivative of its activation, got None"
        )
