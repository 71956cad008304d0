"""What runs inside the ops: which product, and the passes of batch_norm_act around it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastgan.kernels._runtime import choose
from fastgan.kernels.activations import activate, slope_from_output
from fastgan.kernels.batch_norm_act import Norm, native, reference_stats
from fastgan.kernels.batch_norm_act.op import native_backward
from fastgan.kernels.batch_norm_act.reference import arithmetic_type, reference, reference_backward
from fastgan.kernels.conv_transpose_bn_act import columns, gpu, library
from fastgan.kernels.conv_transpose_bn_act.geometry import Geometry


def forward(
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    act_out: int,
    slope_out: float,
    want_stats: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y channels-last; mean and var of y, or None."""
    x = channels_last(x)
    if _by_columns(x, weight, geometry):
        return columns.forward(prologue(x, norm), weight, bias, geometry, act_out, slope_out, want_stats)
    plain = functools.partial(_library, x, norm, weight, bias, geometry, act_out, slope_out, want_stats)
    if not gpu.can(x, weight, geometry):
        return plain()
    candidates = gpu.forward(plain, x, norm, weight, bias, geometry, act_out, slope_out, want_stats)
    options = f"norm {norm.mean is not None}, act {norm.act}, act_out {act_out}, statistics {want_stats}"
    made: tuple[Tensor, Tensor | None, Tensor | None] = gpu.best("forward", x, weight, geometry, options, candidates)
    return made


def _library(
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    act_out: int,
    slope_out: float,
    want_stats: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    y = library.forward(prologue(x, norm), weight, bias, geometry)
    if want_stats:
        return y, *(native.stats(y) if _ours(x) else reference_stats(y))
    if act_out:
        y = native.normalise(y, Norm(act=act_out, slope=slope_out), y) if _ours(x) else activate(y, act_out, slope_out)
    return y, None, None


def backward(
    grad: Tensor,
    y: Tensor | None,
    needs: list[bool],
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    act_out: int,
    slope_out: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dnorm_weight, dnorm_bias, dweight, dbias; empty where not needed. y: given where there is an act_out."""
    x, grad = channels_last(x), channels_last(grad)
    da, dweight, dbias = _products(grad, y, needs, x, norm, weight, geometry, act_out, slope_out)
    dscale = dshift = None
    if da is not None and not norm.is_identity:
        if _ours(x):
            da = channels_last(da)
            da, dscale, dshift = native_backward(da, x, norm, da)
        else:
            da, dscale, dshift = reference_backward(da, x, norm)
    made = (
        None if da is None else channels_last(da),
        dscale,
        dshift,
        None if dweight is None else _like(dweight, weight),
        dbias,
    )
    dx, dscale, dshift, dweight, dbias = (x.new_empty(0) if t is None else t for t in made)
    return dx, dscale, dshift, dweight, dbias


def _products(
    grad: Tensor,
    y: Tensor | None,
    needs: list[bool],
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    geometry: Geometry,
    act_out: int,
    slope_out: float,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """da, dweight, dbias: of the transposed convolution and the activation behind it."""
    if _by_columns(x, weight, geometry):
        wanted, a = (needs[0], needs[1], needs[2]), prologue(x, norm) if needs[1] else x
        return columns.backward(grad, a, weight, y, geometry, act_out, slope_out, wanted)
    if y is not None and act_out:
        grad = through_activation(grad, y, act_out, slope_out)
    if not gpu.can(x, weight, geometry):
        return library.backward(grad, prologue(x, norm) if needs[1] else x, weight, geometry, needs)

    def input_gradient() -> Tensor:
        da = library.backward(grad, x, weight, geometry, [True, False, False])[0]
        assert da is not None
        return da

    def weight_gradient() -> Tensor:
        dweight = library.backward(grad, prologue(x, norm), weight, geometry, [False, True, False])[1]
        assert dweight is not None
        return dweight

    da = dweight = None
    if needs[0]:
        candidates = gpu.input_gradient(input_gradient, grad, weight, geometry)
        da = gpu.best("input gradient", x, weight, geometry, "", candidates)
    if needs[1]:
        candidates = gpu.weight_gradient(weight_gradient, grad, x, norm, weight, geometry)
        options = f"norm {norm.mean is not None}, act {norm.act}"
        dweight = gpu.best("weight gradient", x, weight, geometry, options, candidates)
    return da, dweight, grad.sum((0, 2, 3)) if needs[2] else None


def through_activation(grad: Tensor, y: Tensor, act: int, slope: float) -> Tensor:
    """grad act'(z), from y = act(z); rounded once."""
    dtype = arithmetic_type(y.dtype)
    factor = slope_from_output(y.to(dtype), act, slope)
    return grad if factor is None else (factor * grad).to(grad.dtype)


def prologue(x: Tensor, norm: Norm) -> Tensor:
    """norm of x, which is x itself where there is nothing to do."""
    if norm.is_identity:
        return x
    if _ours(x):
        return native.normalise(x, norm)
    return reference(x, norm.mean, norm.var, norm.weight, norm.bias, norm.eps, norm.act, norm.slope, False)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _like(dweight: Tensor, weight: Tensor) -> Tensor:
    """dweight in the memory format of the weight, as autograd wants to have it."""
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return channels_last(dweight) if last else dweight.contiguous()


def _by_columns(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    return (
        x.device.type == "cpu"
        and choose("conv_transpose_bn_act", x.device).native
        and columns.worth_it(x.shape, weight.shape, geometry, x.dtype)
    )


def _ours(x: Tensor) -> bool:
    return choose("batch_norm_act", x.device).native
