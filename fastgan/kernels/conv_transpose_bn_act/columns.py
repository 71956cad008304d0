"""Transposed convolutions on CPUs as products of matrices, with what is left of them in C++ (csrc/fold.h).

Channels-last, x [N, H, W, Cin] is a matrix of N H W rows, and the weight [Cin, KH, KW, Cout] one of Cin rows:

    columns = x weight                                                   [N, H, W, KH, KW, Cout]
    y[n, h s - p + i d, w s - p + j d] += columns[n, h, w, i, j]         fold;  a = act(y + bias), its mean and variance

    dcolumns[n, h, w, i, j] = dy[n, h s - p + i d, w s - p + j d]        unfold, 0 outside;  dy = act'(y) da
    dx = dcolumns weight^T          dweight = x^T dcolumns

The columns of some samples at a time are in memory. Types: float32 and float64.

Every direction has its own fastest way (`plan`): this one, that of fastgan.kernels.winograd, or the library's. The
results of this one do not depend on the number of threads but for what the products of matrices make of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels import winograd
from fastgan.kernels._runtime import EXTENSION, choose, scratch
from fastgan.kernels.activations import ACTS, invertible
from fastgan.kernels.conv_transpose_bn_act import library
from fastgan.kernels.conv_transpose_bn_act.geometry import Geometry
from fastgan.kernels.winograd import channels_last, new_map

TYPES = {torch.float32: 0, torch.float64: 1}  # as MaskedActType in csrc/masked_act.h
NONE, RELU, LEAKY_RELU, TANH = (ACTS[name] for name in ("none", "relu", "leaky_relu", "tanh"))
# Bytes of columns at a time. The least stays in second-level caches; larger weights want more rows per read of them.
LEAST_CHUNK, LARGEST_CHUNK, WEIGHTS_PER_CHUNK = 2 << 20, 16 << 20, 4


@dataclass(frozen=True)
class Plan:
    """Which of the products are of columns; the library's convolutions do the others."""

    forward: bool
    input: bool
    weight: bool


COLUMNS, LIBRARY = Plan(True, True, True), Plan(False, False, False)


def plan(x_shape: Sequence[int], weight_shape: Sequence[int], geometry: Geometry, dtype: torch.dtype) -> Plan:
    """What is faster, by a rule that knows no clock: the same shapes give the same bits in every run.

    Measured against oneDNN 3.12 with AVX-512. Its convolutions are far from the rate of matrix products with many input
    channels on small maps, and in the forward direction with few output channels. With few input channels the columns
    take longer to write and read than to compute.
    """
    if not choose("conv_transpose_bn_act", torch.device("cpu")).native:
        return LIBRARY
    if dtype not in TYPES or geometry.groups != 1 or 0 in x_shape or 0 in weight_shape:
        return LIBRARY
    cin, cout, *kernel = weight_shape
    pixels, few = math.prod(x_shape[2:]), cout <= 8 and cout * math.prod(kernel) >= 12
    if _Fold.between(x_shape, weight_shape, geometry).is_identity:
        return COLUMNS
    g, large = geometry, (x_shape[0], cout, *geometry.output_size(tuple(x_shape[2:]), tuple(kernel)))
    tiles = winograd.filtering(x_shape, large, weight_shape, g.stride, g.padding, g.dilation, g.groups, dtype)
    better = winograd.NOWHERE if tiles is None else tiles.faster
    return Plan(
        forward=not better[winograd.UP] and (cin >= 256 or few),
        input=not better[winograd.DOWN] and cin >= 256 and (few or (cin >= 512 and pixels <= 16)),
        weight=not better[winograd.WEIGHT] and cin >= 256 and (few or cin >= 512 or pixels <= 64),
    )


def worth_it(x_shape: Sequence[int], weight_shape: Sequence[int], geometry: Geometry, dtype: torch.dtype) -> bool:
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

    x: [N, Cin, H, W], weight: [Cin, Cout, KH, KW], bias: [Cout]; all of one type
    act: a code of fastgan.kernels.activations; slope: of leaky ReLU
    how: `plan` where it is None
    Returns a [N, Cout, H', W'], channels-last in memory.
    """
    how = how or plan(x.shape, weight.shape, geometry, x.dtype)
    after = _After(None if bias is None else bias.contiguous(), act, slope)
    if how.forward:
        return _forward(x, weight, geometry, after, want_stats)
    a = library.forward(x, weight, None, geometry)
    return a, *_finish(a, after, want_stats)


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

    grad, a: [N, Cout, H', W']; a is looked at where there is an activation, which has to be `invertible`
    All of them are channels-last in memory. Raises FastganError.
    """
    _check_slopes_are_known(a, act, slope)
    grad = channels_last(grad)
    how = how or plan(x.shape, weight.shape, geometry, x.dtype)
    rest = needs[0] and not how.input, needs[1] and not how.weight
    if act and (needs[2] or any(rest)):
        assert a is not None
        grad, act = _times_slopes(grad, a, act, slope), NONE
    dx = dweight = dbias = None
    if (needs[0] and how.input) or (needs[1] and how.weight):
        ours = needs[0] and how.input, needs[1] and how.weight
        dx, dweight = _backward(grad, a, x, weight, geometry, _After(None, act, slope), ours)
    if any(rest):
        theirs = library.backward(grad, x, weight, geometry, [*rest, False])
        dx, dweight = (mine if other is None else other for mine, other in zip((dx, dweight), theirs[:2], strict=True))
    if needs[2]:
        dbias = _rows(grad).sum(0)
    return dx if dx is None else channels_last(dx), dweight if dweight is None else channels_last(dweight), dbias


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
    fold, rows, matrix = _Fold.between(x.shape, weight.shape, geometry), _rows(x), _matrix(weight)
    a = new_map(x, len(x), fold.channels, *fold.sizes[1])
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
    fold, rows, matrix = _Fold.between(x.shape, weight.shape, geometry), _rows(x), _matrix(weight)
    a = None if a is None or not after.act else channels_last(a)
    dx = new_map(x, *x.shape) if needs[0] else None
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
    memory = scratch(size * pixels * matrix.shape[1], rows.dtype).view(size * pixels, -1)
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
    def between(x_shape: Sequence[int], weight_shape: Sequence[int], geometry: Geometry) -> _Fold:
        small, kernel = tuple(x_shape[2:]), tuple(weight_shape[2:])
        large = geometry.output_size(small, kernel)
        sizes = small, large, kernel, geometry.stride, geometry.padding, geometry.dilation
        return _Fold(x_shape[0], weight_shape[1], sizes)

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


def _rows(x: Tensor) -> Tensor:
    """x [N, C, H, W] as a matrix [N H W, C]: a view, if it is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _matrix(weight: Tensor) -> Tensor:
    """weight [Cin, Cout, KH, KW] as a matrix [Cin, KH KW Cout]: a view, if it is channels-last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


# ---- activations


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
    if not invertible(act, slope):
        raise FastganError(
            "conv_transpose_bn_act: expected an activation whose output tells its slope (none, relu, leaky_relu with "
            f"slope > 0, tanh or sigmoid), got code {act} with slope {slope}; apply it on its own"
        )
    if act and a is None:
        raise FastganError(
            "conv_transpose_bn_act: expected the output a for the derivative of its activation, got None"
        )
