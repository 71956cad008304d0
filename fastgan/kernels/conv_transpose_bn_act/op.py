"""The ops fastgan::conv_transpose_bn_act and its backward, and the function that calls them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import register
from fastgan.kernels._runtime.second_order import double_backward
from fastgan.kernels.activations import code_of, invertible
from fastgan.kernels.batch_norm_act import Norm, bias_act
from fastgan.kernels.batch_norm_act.op import TYPES, check_vector, name_of
from fastgan.kernels.batch_norm_act.reference import arithmetic_type, reference_stats
from fastgan.kernels.conv_transpose_bn_act import run
from fastgan.kernels.conv_transpose_bn_act.geometry import Geometry
from fastgan.kernels.conv_transpose_bn_act.reference import reference

NOTHING = Norm(training=False)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    groups: int = 1,
    dilation: tuple[int, ...],
    norm: Norm = NOTHING,
    act_out: str = "none",
    slope_out: float = 0.2,
    want_stats: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, var): y = act_out(conv_transpose(a) + bias), with a = norm of x.

    x: [N, Cin, H, W] or [N, Cin, L]; float32, float64, bfloat16 or float16
    weight: [Cin, Cout / groups, kernel...] in the type of x;  bias: [Cout]
    stride, padding, output_padding, dilation: as many as there are dimensions besides N and C
    norm: what is applied to x first, on the fly; in training its mean and var have to be batch_norm_stats(x), and the
        derivative takes into account that they depend on x. norm.weight and norm.bias as in batch_norm_act
    want_stats: mean and var are those of y, float64 [Cout], without derivative; else empty, and act_out is applied
    Differentiable to any order in x, weight, bias, norm.weight and norm.bias. Raises FastganError.
    """
    if want_stats and act_out != "none":
        raise FastganError("conv_transpose: the statistics are of y before an activation: act_out has to be none")
    flat = x.dim() == 3
    if flat:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
    numbers = [stride, padding, output_padding, dilation]
    stride, padding, output_padding, dilation = (
        (none, *v) if flat else tuple(v) for v, none in zip(numbers, (1, 0, 0, 1), strict=True)
    )
    code = code_of(act_out, "conv_transpose")
    inside = invertible(code, slope_out)
    y, mean, var = _FORWARD(
        x, norm.mean, norm.var, norm.weight, norm.bias, norm.eps, norm.act, norm.slope, norm.training,
        weight, bias, stride, padding, output_padding, dilation, groups, code if inside else 0, slope_out, want_stats,
    )  # fmt: skip
    if not inside:  # its derivative needs what y was before
        y = bias_act(y, None, act_out, slope_out)
    return (y.squeeze(2) if flat else y), mean.detach(), var.detach()


class Arguments(NamedTuple):
    """Of the op, in the order of its schema."""

    x: Tensor
    mean: Tensor | None
    var: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    eps: float
    act: int
    slope: float
    training: bool
    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    padding: list[int]
    output_padding: list[int]
    dilation: list[int]
    groups: int
    act_out: int
    slope_out: float
    want_stats: bool

    @property
    def norm(self) -> Norm:
        return Norm(
            self.mean, self.var, self.norm_weight, self.norm_bias, self.eps, self.act, self.slope, self.training
        )

    @property
    def geometry(self) -> Geometry:
        g = self
        return Geometry(tuple(g.stride), tuple(g.padding), tuple(g.output_padding), tuple(g.dilation), g.groups)


TENSORS = ("x", "mean", "var", "norm_weight", "norm_bias", "weight", "bias")
LEAVES = ("x", "norm_weight", "norm_bias", "weight", "bias")


# ---- the ops


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = Arguments(*arguments)
    _check(a)
    y, mean, var = run.forward(a.x, a.norm, a.weight, a.bias, a.geometry, a.act_out, a.slope_out, a.want_stats)
    if mean is None or var is None:
        mean, var = (a.x.new_empty(0, dtype=torch.float64) for _ in range(2))
    return y, mean, var


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = Arguments(*arguments)
    channels = a.weight.shape[1] * a.groups
    size = a.geometry.output_size(tuple(a.x.shape[2:]), tuple(a.weight.shape[2:]))
    y = a.x.new_empty((a.x.shape[0], channels, *size)).contiguous(memory_format=torch.channels_last)
    mean = a.x.new_empty(channels if a.want_stats else 0, dtype=torch.float64)
    return y, mean, torch.empty_like(mean)


def _backward(grad: Tensor, y: Tensor | None, needs: list[bool], *arguments: Any) -> tuple[Tensor, ...]:
    """dx, dnorm_weight, dnorm_bias, dweight, dbias. needs: which of (x or what is in norm, weight, bias) are wanted;
    of the others an empty tensor comes back."""
    a = Arguments(*arguments)
    return run.backward(grad, y, needs, a.x, a.norm, a.weight, a.bias, a.geometry, a.act_out, a.slope_out)


def _fake_backward(grad: Tensor, y: Tensor | None, needs: list[bool], *arguments: Any) -> tuple[Tensor, ...]:
    a = Arguments(*arguments)
    none = a.x.new_empty(0)
    vector = a.x.new_empty(a.x.shape[1], dtype=arithmetic_type(a.x.dtype))
    dx, dscale, dshift = none, none, torch.empty_like(none)
    if needs[0]:
        dx = torch.empty_like(a.x, memory_format=torch.channels_last)
        if not a.norm.is_identity:
            dscale, dshift = vector, torch.empty_like(vector)
        else:
            dscale = torch.empty_like(none)
    else:
        dx, dscale = torch.empty_like(none), torch.empty_like(none)
    dweight = torch.empty_like(a.weight) if needs[1] else torch.empty_like(none)
    dbias = a.x.new_empty(a.weight.shape[1] * a.groups) if needs[2] else torch.empty_like(none)
    return dx, dscale, dshift, dweight, dbias


def _decomposition(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = Arguments(*arguments)
    y = reference(a.x, a.norm, a.weight, a.bias, a.geometry, a.act_out, a.slope_out)
    mean, var = reference_stats(y) if a.want_stats else (y.new_empty(0, dtype=torch.float64) for _ in range(2))
    return y, mean, var


# ---- derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    a = Arguments(*inputs)
    ctx.constants = {name: value for name, value in a._asdict().items() if name not in TENSORS}
    y = output[0] if a.act_out else None
    ctx.save_for_backward(y, *(getattr(a, name) for name in TENSORS))


def _arguments(ctx: Any, tensors: tuple[Tensor | None, ...]) -> Arguments:
    fields: dict[str, Any] = dict(zip(TENSORS, tensors, strict=True))
    return Arguments(**fields, **ctx.constants)


def _differentiate(ctx: Any, grad: Tensor, _mean: None, _var: None) -> tuple[Any, ...]:
    y, *tensors = ctx.saved_tensors
    a = _arguments(ctx, tuple(tensors))
    wanted = dict(zip(Arguments._fields, ctx.needs_input_grad, strict=False))
    needs = [
        any(wanted[name] for name in ("x", "norm_weight", "norm_bias")),
        wanted["weight"],
        a.bias is not None and wanted["bias"],
    ]
    dx, dscale, dshift, dweight, dbias = _BACKWARD(grad, y, needs, *a)
    made: dict[str, Tensor | None] = {}
    if needs[0]:
        made["x"] = dx
        made["norm_weight"] = None if a.norm_weight is None else dscale.to(a.norm_weight.dtype)
        made["norm_bias"] = None if a.norm_bias is None else dshift.to(a.norm_bias.dtype)
    if needs[1]:
        made["weight"] = dweight
    if needs[2] and a.bias is not None:
        made["bias"] = dbias.to(a.bias.dtype)
    return tuple(made.get(name) for name in Arguments._fields)


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, _, ctx.needs, *arguments = inputs
    a = Arguments(*arguments)
    ctx.constants = {name: value for name, value in a._asdict().items() if name not in TENSORS}
    ctx.save_for_backward(grad, *(getattr(a, name) for name in TENSORS))


def _differentiate_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
    grad, *tensors = ctx.saved_tensors
    a = _arguments(ctx, tuple(tensors))
    given = {name: c for name, c in zip(LEAVES, cotangents, strict=True)}
    there = {"x": ctx.needs[0], "norm_weight": ctx.needs[0], "norm_bias": ctx.needs[0]}
    there |= {"weight": ctx.needs[1], "bias": ctx.needs[2]}
    by_grad, *by_leaves = double_backward(
        functools.partial(_of_leaves, a),
        [getattr(a, name) for name in LEAVES],
        grad,
        [given[name] if there[name] else None for name in LEAVES],
    )
    found = dict(zip(LEAVES, by_leaves, strict=True))
    return (by_grad, None, None, *(found.get(name) for name in Arguments._fields))


def _of_leaves(a: Arguments, *leaves: Tensor | None) -> Tensor:
    fields: dict[str, Any] = dict(zip(LEAVES, leaves, strict=True))
    a = a._replace(**fields)
    return reference(a.x, a.norm, a.weight, a.bias, a.geometry, a.act_out, a.slope_out)


# ---- what is refused


def _check(a: Arguments) -> None:
    op = "conv_transpose"
    if a.x.dtype not in TYPES:
        raise FastganError(f"{op}: expected x in float32, float64, bfloat16 or float16, got {name_of(a.x.dtype)}")
    if a.x.dim() != 4 or a.weight.dim() != 4:
        raise FastganError(
            f"{op}: expected x [N, Cin, H, W] and weight [Cin, Cout / groups, kh, kw], or both without H and kh, "
            f"got {tuple(a.x.shape)} and {tuple(a.weight.shape)}"
        )
    if a.x.shape[1] != a.weight.shape[0]:
        raise FastganError(
            f"{op}: expected x with {a.weight.shape[0]} channels, as the weight {tuple(a.weight.shape)} has inputs, "
            f"got {tuple(a.x.shape)}"
        )
    for name, other in (("weight", a.weight), ("bias", a.bias)):
        if other is not None and other.dtype != a.x.dtype:
            raise FastganError(
                f"{op}: expected {name} in the type of x, {name_of(a.x.dtype)}, got {name_of(other.dtype)}"
            )
        if other is not None and other.device != a.x.device:
            raise FastganError(
                f"{op}: expected all tensors on one device, got x on {a.x.device} and {name} on {other.device}"
            )
    for name in ("mean", "var", "norm_weight", "norm_bias"):
        vector = getattr(a, name)
        if vector is not None:
            check_vector(op, name, vector, a.x)


_ARGUMENTS = (
    "Tensor x, Tensor? mean, Tensor? var, Tensor? norm_weight, Tensor? norm_bias, float eps, int act, float slope, "
    "bool training, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] output_padding, int[] dilation, "
    "int groups, int act_out, float slope_out, bool want_stats"
)

_FORWARD = register(
    f"conv_transpose_bn_act({_ARGUMENTS}) -> (Tensor y, Tensor mean, Tensor var)",
    _forward,
    fake=_fake_forward,
    setup_context=_keep,
    backward=_differentiate,
    decomposition=_decomposition,
)
_BACKWARD = register(
    f"conv_transpose_bn_act_backward(Tensor grad, Tensor? y, bool[] needs, {_ARGUMENTS}) "
    "-> (Tensor dx, Tensor dnorm_weight, Tensor dnorm_bias, Tensor dweight, Tensor dbias)",
    _backward,
    fake=_fake_backward,
    setup_context=_keep_backward,
    backward=_differentiate_backward,
)
