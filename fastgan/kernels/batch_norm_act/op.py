"""The ops fastgan::batch_norm_stats, batch_norm_act and batch_norm_act_backward, and the functions that call them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import choose, register
from fastgan.kernels._runtime.second_order import double_backward
from fastgan.kernels.activations import code_of
from fastgan.kernels.batch_norm_act import native
from fastgan.kernels.batch_norm_act.native import dense
from fastgan.kernels.batch_norm_act.reference import (
    Norm,
    arithmetic_type,
    reference,
    reference_backward,
    reference_stats,
)

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def batch_norm_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of x [N, C, ...]: two float64 tensors [C], without derivative."""
    mean, var = _STATS(x.detach())
    return mean, var


def batch_norm_act(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
    training: bool = True,
) -> Tensor:
    """act((x - mean) / sqrt(var + eps) * weight + bias), like x.

    x: [N, C, ...], float32, float64, bfloat16 or float16
    mean, var: [C] float64. In `training` they have to be batch_norm_stats(x), and the derivative takes into account
        that they depend on x; else they are constants
    weight, bias: [C] in the type of x, or in float32 where that is bfloat16 or float16
    act: a name in ACTS;  slope: of "leaky_relu"
    Differentiable to any order in x, weight and bias. Raises FastganError.
    """
    code = code_of(act, "batch_norm_act")
    out: Tensor = _NORM_ACT(x, mean, var, weight, bias, eps, code, slope, training)
    return out


def train_batch_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
) -> tuple[Tensor, Tensor, Tensor]:
    """(batch_norm_act(x, mean, var, ...), mean, var) with the statistics of x: the same bits, with x read fewer times.

    mean and var are as batch_norm_stats(x) gives them; the derivative is that of batch_norm_act in training.
    """
    code = code_of(act, "batch_norm_act")
    out, mean, var = _TRAIN(x, weight, bias, eps, code, slope)
    return out, mean.detach(), var.detach()


def bias_act(x: Tensor, bias: Tensor | None = None, act: str = "none", slope: float = 0.2) -> Tensor:
    """act(x + bias), like x; x and bias as in batch_norm_act. Differentiable to any order. Raises FastganError."""
    code = code_of(act, "bias_act")
    out: Tensor = _NORM_ACT(x, None, None, None, bias, 0.0, code, slope, False)
    return out


def scale_bias_act(x: Tensor, scale: Tensor, bias: Tensor, act: str = "none", slope: float = 0.2) -> Tensor:
    """act(x * scale + bias), like x; scale and bias as weight and bias in batch_norm_act. Differentiable to any order.

    Seen as [1, N C, ...], a batch has a scale and a bias per sample and channel. Raises FastganError.
    """
    code = code_of(act, "scale_bias_act")
    out: Tensor = _NORM_ACT(x, None, None, scale, bias, 0.0, code, slope, False)
    return out


# ---- the ops


def _stats(x: Tensor) -> tuple[Tensor, Tensor]:
    _check("batch_norm_stats", x)
    if choose("batch_norm_act", x.device).native:
        return native.stats(dense(x))
    return reference_stats(x)


def _fake_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=torch.float64)
    return mean, torch.empty_like(mean)


def _norm_act(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: int,
    slope: float,
    training: bool,
) -> Tensor:
    _check("batch_norm_act", x, mean=mean, var=var, weight=weight, bias=bias)
    x = dense(x)
    if choose("batch_norm_act", x.device).native:
        return native.normalise(x, Norm(mean, var, weight, bias, eps, act, slope))
    # The statistics are given: in training too they are not to be computed once more.
    out = reference(x, mean, var, weight, bias, eps, act, slope, False)
    return x.clone() if out is x else out


def _fake_norm_act(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(dense(x))


def _train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: int, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    _check("batch_norm_act", x, weight=weight, bias=bias)
    x = dense(x)
    if choose("batch_norm_act", x.device).native:
        return native.train(x, Norm(None, None, weight, bias, eps, act, slope))
    mean, var = reference_stats(x)
    return reference(x, mean, var, weight, bias, eps, act, slope, False), mean, var


def _fake_train(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(dense(x)), *_fake_stats(x)


def _decomposed_train(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: int, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = reference_stats(x)
    return reference(x, mean, var, weight, bias, eps, act, slope, True), mean, var


def _backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: int,
    slope: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx like x; dweight and dbias [C] in the type of the arithmetic, whether or not there is a weight or bias."""
    x = dense(x)
    norm = Norm(mean, var, weight, bias, eps, act, slope, training)
    if choose("batch_norm_act", x.device).native:
        return native_backward(grad, x, norm)
    return reference_backward(grad, x, norm)


def native_backward(grad: Tensor, x: Tensor, norm: Norm, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight, dbias. x: dense;  out: where dx goes, grad itself perhaps."""
    dx, sums = native.backward(grad, x, norm, out)
    dbias, dweight = (row.to(arithmetic_type(x.dtype), copy=True) for row in sums)  # outputs must not share memory
    return dx, dweight, dbias


def _fake_backward(grad: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    vector = x.new_empty(x.shape[1], dtype=arithmetic_type(x.dtype))
    return torch.empty_like(dense(x)), vector, torch.empty_like(vector)


# ---- derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mean, var, weight, bias, *ctx.constants = inputs
    ctx.save_for_backward(x, mean, var, weight, bias)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, mean, var, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = _BACKWARD(grad, x, mean, var, weight, bias, *ctx.constants)
    return (
        dx,
        None,
        None,
        None if weight is None else dweight.to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
        *[None] * len(ctx.constants),
    )


def _keep_train(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, *constants = inputs
    ctx.constants = [*constants, True]
    ctx.save_for_backward(x, *output[1:], weight, bias)


def _differentiate_train(ctx: Any, grad: Tensor, _mean: None, _var: None) -> tuple[Any, ...]:
    dx, _, _, dweight, dbias, *constants = _differentiate(ctx, grad)
    return (dx, dweight, dbias, *constants[:3])


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, x, mean, var, weight, bias, *ctx.constants = inputs
    ctx.save_for_backward(grad, x, mean, var, weight, bias)


def _differentiate_backward(
    ctx: Any, of_dx: Tensor | None, of_dweight: Tensor | None, of_dbias: Tensor | None
) -> tuple[Any, ...]:
    grad, x, mean, var, weight, bias = ctx.saved_tensors
    by_grad, by_x, by_weight, by_bias = double_backward(
        functools.partial(_of_leaves, mean, var, ctx.constants),
        [x, weight, bias],
        grad,
        [of_dx, of_dweight, of_dbias],
    )
    return (by_grad, by_x, None, None, by_weight, by_bias, *[None] * len(ctx.constants))


def _of_leaves(
    mean: Tensor | None, var: Tensor | None, constants: list[Any], x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    return reference(x, mean, var, weight, bias, *constants)


# ---- what is refused


def _check(op: str, x: Tensor, **vectors: Tensor | None) -> None:
    if x.dtype not in TYPES:
        raise FastganError(f"{op}: expected x in float32, float64, bfloat16 or float16, got {name_of(x.dtype)}")
    if x.dim() < 2:
        raise FastganError(f"{op}: expected x [N, C, ...], got {tuple(x.shape)}")
    for name, vector in vectors.items():
        if vector is not None:
            check_vector(op, name, vector, x)


def check_vector(op: str, name: str, vector: Tensor, x: Tensor) -> None:
    """FastganError unless `vector` is [C], of a type and on the device that fit x [N, C, ...]."""
    if vector.dim() != 1 or vector.shape[0] != x.shape[1]:
        raise FastganError(
            f"{op}: expected {name} of shape ({x.shape[1]},), one value per channel of x {tuple(x.shape)}, "
            f"got {tuple(vector.shape)}"
        )
    kinds = [torch.float64] if name in ("mean", "var") else [x.dtype, arithmetic_type(x.dtype)]
    expected = list(dict.fromkeys(kinds))
    if vector.dtype not in expected:
        names = " or ".join(name_of(t) for t in expected)
        raise FastganError(f"{op}: expected {name} in {names} for x in {name_of(x.dtype)}, got {name_of(vector.dtype)}")
    if vector.device != x.device:
        raise FastganError(
            f"{op}: expected all tensors on one device, got x on {x.device} and {name} on {vector.device}"
        )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_ARGUMENTS = "Tensor x, Tensor? mean, Tensor? var, Tensor? weight, Tensor? bias, float eps, int act, float slope"

_STATS = register(
    "batch_norm_stats(Tensor x) -> (Tensor mean, Tensor var)", _stats, fake=_fake_stats, decomposition=reference_stats
)
_NORM_ACT = register(
    f"batch_norm_act({_ARGUMENTS}, bool training) -> Tensor",
    _norm_act,
    fake=_fake_norm_act,
    setup_context=_keep,
    backward=_differentiate,
    decomposition=reference,
)
_TRAIN = register(
    "batch_norm_act_train(Tensor x, Tensor? weight, Tensor? bias, float eps, int act, float slope) "
    "-> (Tensor a, Tensor mean, Tensor var)",
    _train,
    fake=_fake_train,
    setup_context=_keep_train,
    backward=_differentiate_train,
    decomposition=_decomposed_train,
)
_BACKWARD = register(
    f"batch_norm_act_backward(Tensor grad, {_ARGUMENTS}, bool training) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _backward,
    fake=_fake_backward,
    setup_context=_keep_backward,
    backward=_differentiate_backward,
)
