"""norm_act in C++ and CUDA C++: statistics, normalisation with activation, and both derivatives (csrc/norm_act.h).

x: [N, C, ...], 2 to 5 dimensions, float32, float64, bfloat16 or float16; contiguous or channels-last, else it is
copied. Results have the layout of x, and grad is brought into it. Arithmetic is in float32, or in float64 for that.
Where a launch on a GPU fails, PyTorch does it, here and from then on.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION
from fastgan.kernels.batch_norm_act import native_cuda
from fastgan.kernels.batch_norm_act.native_cuda import plain_input, plain_normalise, plain_sums
from fastgan.kernels.batch_norm_act.reference import Norm, arithmetic_type, reference_stats
from fastgan.kernels.masked_act.reference import CHANNELS_LAST

# As NormActType in csrc/norm_act.h
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, [C] in float64; NaN where x is empty."""
    x = dense(x)
    mean, var = _per_channel(x), _per_channel(x)
    call = _Call(x, Norm())
    if not call.run("norm_act_stats", mean.data_ptr(), var.data_ptr()):
        return reference_stats(x)
    return mean, var


def normalise(x: Tensor, norm: Norm, out: Tensor | None = None) -> Tensor:
    """act(z), in `out` where there is one, which may be x."""
    x = dense(x)
    out = _result("out", out, x)
    call = _Call(x, norm)
    if not call.run("norm_act", out.data_ptr()):
        out.copy_(plain_normalise(x, norm))
    return out


def backward_sums(grad: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """sum dz and sum dz x^ of every channel, [2, C] in float64, with dz = grad act'(z)."""
    x = dense(x)
    grad = _like(grad, x)
    sums = _per_channel(x, 2)
    call = _Call(x, norm)
    if not call.run("norm_act_sums", grad.data_ptr(), sums.data_ptr()):
        return plain_sums(grad, x, norm)
    return sums


def backward_input(
    grad: Tensor, x: Tensor, norm: Norm, sums: Tensor | None, count: float, out: Tensor | None = None
) -> Tensor:
    """dx, in `out` where there is one, which may be grad.

    sums: of backward_sums, over the `count` elements per channel that mean and var are of; None: mean and var are
    constants
    """
    x = dense(x)
    grad = _like(grad, x)
    out = _result("out", out, x)
    call = _Call(x, norm)
    address = 0
    if sums is not None:
        sums = _vector("sums", sums, (2, x.shape[1]), torch.float64)
        address = sums.data_ptr()
    if not call.run("norm_act_input", grad.data_ptr(), address, count, out.data_ptr()):
        out.copy_(plain_input(grad, x, norm, sums, count))
    return out


def train(x: Tensor, norm: Norm, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(normalise, mean, var) with the statistics of x instead of those of `norm`: the same bits, less traffic."""
    x = dense(x)
    out = _result("out", out, x)
    mean, var = _per_channel(x), _per_channel(x)
    call = _Call(x, norm)
    if not call.run("norm_act_train", mean.data_ptr(), var.data_ptr(), out.data_ptr()):
        mean, var = reference_stats(x)
        out.copy_(plain_normalise(x, dataclasses.replace(norm, mean=mean, var=var)))
    return out, mean, var


def backward(grad: Tensor, x: Tensor, norm: Norm, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(backward_input, backward_sums): the same bits, less traffic. With norm.training, mean and var are those of x,
    else constants."""
    training = norm.training and norm.mean is not None
    x = dense(x)
    grad = _like(grad, x)
    out = _result("out", out, x)
    sums = _per_channel(x, 2)
    call = _Call(x, norm)
    if not call.run("norm_act_backward", grad.data_ptr(), training, sums.data_ptr(), out.data_ptr()):
        sums = plain_sums(grad, x, norm)
        count = x.numel() // max(1, x.shape[1])
        out.copy_(plain_input(grad, x, norm, sums if training else None, count))
    return out, sums


# ---- layouts


def dense(x: Tensor) -> Tensor:
    """x where it is contiguous or channels-last, else a contiguous copy."""
    return x if x.is_contiguous() or _is_channels_last(x) else x.contiguous()


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() in CHANNELS_LAST and x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()])


def _like(grad: Tensor, x: Tensor) -> Tensor:
    """grad in the layout and type of x."""
    if grad.shape != x.shape:
        raise FastganError(
            f"norm_act: expected grad of the shape of x, {tuple(x.shape)}, got {tuple(grad.shape)}; "
            "it is the derivative with respect to what normalise returned"
        )
    grad = grad.to(x.dtype)
    if x.is_contiguous():
        return grad.contiguous()
    return grad.contiguous(memory_format=CHANNELS_LAST[x.dim()])


def _result(name: str, out: Tensor | None, x: Tensor) -> Tensor:
    """out, or a new tensor like x."""
    if out is None:
        return torch.empty_like(x)
    fits = out.is_contiguous() if x.is_contiguous() else _is_channels_last(out)
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device or not fits:
        raise FastganError(
            f"norm_act: expected {name} like x, {tuple(x.shape)} in {x.dtype} on {x.device} and as dense as x, "
            f"got {tuple(out.shape)} in {out.dtype} on {out.device} with strides {out.stride()}; "
            "torch.empty_like(x) is such a tensor"
        )
    return out


# ---- calls


def _per_channel(x: Tensor, rows: int = 1) -> Tensor:
    shape = (x.shape[1],) if rows == 1 else (rows, x.shape[1])
    return torch.empty(shape, dtype=torch.float64, device=x.device)


def _vector(name: str, values: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if tuple(values.shape) != shape:
        raise FastganError(f"norm_act: expected {name} of shape {shape}, one per channel, got {tuple(values.shape)}")
    return values if values.dtype == dtype and values.is_contiguous() else values.to(dtype).contiguous()


class _Call:
    """What every native function gets, and the tensors behind it for as long as it runs. x: dense."""

    def __init__(self, x: Tensor, norm: Norm) -> None:
        if x.dtype not in TYPES:
            raise FastganError(f"norm_act: expected x in float32, float64, bfloat16 or float16, got {x.dtype}")
        if (norm.mean is None) != (norm.var is None):
            raise FastganError("norm_act: expected both mean and var or neither, got one of them")
        channels = x.shape[1]
        arithmetic = arithmetic_type(x.dtype)
        vectors = (("mean", torch.float64), ("var", torch.float64), ("weight", arithmetic), ("bias", arithmetic))
        given = [(name, getattr(norm, name), dtype) for name, dtype in vectors]
        self.kept = [None if v is None else _vector(name, v, (channels,), dtype) for name, v, dtype in given]
        inner = math.prod(x.shape[2:]) if x.is_contiguous() else 1
        outer = x.numel() // max(1, channels * inner)
        addresses = [x.data_ptr(), *(0 if v is None else v.data_ptr() for v in self.kept)]
        self.norm = EXTENSION.module.NormAct(addresses, [outer, channels, inner], norm.eps, norm.act, norm.slope)
        self.type = TYPES[x.dtype]
        self.device = x.device

    def run(self, name: str, *arguments: float) -> bool:
        """Calls the function. False where it cannot run, and then nothing has been changed."""
        if self.device.type == "cuda":
            return native_cuda.run(name, self.norm, self.type, self.device, arguments)
        getattr(EXTENSION.module, f"{name}_cpu")(self.norm, self.type, *arguments, torch.get_num_threads())
        return True
