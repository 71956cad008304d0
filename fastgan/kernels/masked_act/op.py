"""The ops fastgan::masked_act and fastgan::apply_mask, and the functions that call them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION, choose, disable, register
from fastgan.kernels.masked_act.reference import (
    CHANNELS_LAST,
    HALF_TYPES,
    arithmetic_type,
    decomposition,
    empty_in_layout,
    in_layout,
    is_channels_last,
    mask_shape,
    reference,
    reference_apply,
)

# As MaskedActType in csrc/masked_act.h
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def masked_act(z: Tensor, slope: float, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """a = y where y > 0, else slope * y, with y = z + bias; and the mask of y > 0.

    z: [N, C, ...] or, without a bias, of any shape; float32, float64, bfloat16 or float16
    slope: of (leaky) ReLU, any number
    bias: [C] in the type of z, or in float32 where that is bfloat16 or float16
    Returns a, contiguous or channels-last as z, and the mask, uint8, whose shape fastgan.kernels.masked_act defines.
    Differentiable to any order in z and bias. Raises FastganError.
    """
    a, mask = torch.ops.fastgan.masked_act(z, slope, bias)
    return a, mask


def masked_act_(z: Tensor, slope: float, bias: Tensor | None = None) -> Tensor:
    """masked_act where z becomes a; returns the mask. Without derivative, hence an error where autograd needs one."""
    _refuse_autograd("masked_act_", z, bias)
    mask: Tensor = torch.ops.fastgan.masked_act_(z, slope, bias)
    return mask


def apply_mask(
    u: Tensor, mask: Tensor, slope: float, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """y where the mask is set, else slope * y, with y = u + scale * bias.

    u: [N, C, ...] or, without a bias, of any shape; float32, float64, bfloat16 or float16
    mask: of masked_act for a tensor of the shape of u
    slope: of (leaky) ReLU, any number
    bias, scale: [C] and [N] in the type of u, or in float32 where that is bfloat16 or float16; no scale means 1
    Returns a tensor like u in the layout of the mask. Differentiable to any order in u, bias and scale.
    Raises FastganError.
    """
    masked: Tensor = torch.ops.fastgan.apply_mask(u, mask, slope, bias, scale)
    return masked


def apply_mask_(u: Tensor, mask: Tensor, slope: float, bias: Tensor | None = None, scale: Tensor | None = None) -> None:
    """apply_mask in place; u keeps its layout. Without derivative, hence an error where autograd needs one."""
    _refuse_autograd("apply_mask_", u, bias, scale)
    torch.ops.fastgan.apply_mask_(u, mask, slope, bias, scale)


# ---- the ops


def _masked_act(z: Tensor, slope: float, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    _check("masked_act", z, bias)
    z = in_layout(z, is_channels_last(z))
    if choose("masked_act", z.device).native:
        a, mask = _fake_masked_act(z, slope)
        if _native(z, a, mask, slope, bias):
            return a, mask
    return reference(z, slope, bias)


def _masked_act_(z: Tensor, slope: float, bias: Tensor | None = None) -> Tensor:
    _check("masked_act_", z, bias)
    _refuse_autograd("masked_act_", z, bias)
    dense, mask = in_layout(z, is_channels_last(z)), _fake_masked_act_(z, slope)
    if not (choose("masked_act", z.device).native and _native(dense, dense, mask, slope, bias)):
        dense, mask = reference(dense, slope, bias)
    _take_over(z, dense)
    return mask


def _apply_mask(
    u: Tensor, mask: Tensor, slope: float, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    _check("apply_mask", u, bias, scale, mask)
    u, mask = in_layout(u, mask.dim() == 2), mask.contiguous()
    if choose("masked_act", u.device).native:
        masked = _fake_apply_mask(u, mask, slope)
        if _native(u, masked, mask, slope, bias, scale, apply=True):
            return masked
    return reference_apply(u, mask, slope, bias, scale)


def _apply_mask_(
    u: Tensor, mask: Tensor, slope: float, bias: Tensor | None = None, scale: Tensor | None = None
) -> None:
    _check("apply_mask_", u, bias, scale, mask)
    _refuse_autograd("apply_mask_", u, bias, scale)
    dense, mask = in_layout(u, mask.dim() == 2), mask.contiguous()
    if not (choose("masked_act", u.device).native and _native(dense, dense, mask, slope, bias, scale, apply=True)):
        dense = reference_apply(dense, mask, slope, bias, scale)
    _take_over(u, dense)


def _take_over(target: Tensor, result: Tensor) -> None:
    """After an operation in place: its result is in the target itself, and autograd has to hear of it, or elsewhere."""
    if result.data_ptr() == target.data_ptr():
        torch.autograd.graph.increment_version(target)
    else:
        target.copy_(result)


def _native(
    x: Tensor,
    out: Tensor,
    mask: Tensor,
    slope: float,
    bias: Tensor | None,
    scale: Tensor | None = None,
    *,
    apply: bool = False,
) -> bool:
    """Runs the native kernel on dense tensors. False where it cannot run, and then nothing has been changed."""
    if bias is not None:
        bias = bias.to(arithmetic_type(x.dtype)).contiguous()
    if scale is not None:
        scale = scale.to(arithmetic_type(x.dtype)).contiguous()
    if x.numel() == 0:
        return True
    if x.is_cuda:
        return _on_gpu(x, out, mask, slope, bias, scale, apply)
    addresses = [x.data_ptr(), out.data_ptr(), mask.data_ptr(), 0, 0]
    numel = x.numel()
    channels = inner = sample = 1
    if bias is not None:
        channels, sample = x.shape[1], numel // x.shape[0]
        inner = 1 if mask.dim() == 2 else sample // channels
        addresses[3:] = bias.data_ptr(), 0 if scale is None else scale.data_ptr()
    native = EXTENSION.module
    act = native.MaskedAct(addresses, [numel, channels, inner, sample], slope)
    run = native.apply_mask_cpu if apply else native.masked_act_cpu
    run(act, TYPES[x.dtype], torch.get_num_threads(), native.SIMD_LEVEL)
    return True


def _on_gpu(
    x: Tensor, out: Tensor, mask: Tensor, slope: float, bias: Tensor | None, scale: Tensor | None, apply: bool
) -> bool:
    from fastgan.kernels.masked_act import triton  # only here: it takes long to load, and is not on every system

    if x.dtype == torch.float64:
        return False
    try:
        triton.launch(x, out, mask, slope, bias, scale, apply=apply)
    except Exception as error:  # of many kinds: the compiler's, the driver's, out of some resource
        disable("masked_act", x.device, error)
        return False
    return True


def _fake_masked_act(z: Tensor, slope: float, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return empty_in_layout(z, is_channels_last(z)), _fake_masked_act_(z, slope)


def _fake_masked_act_(z: Tensor, slope: float, bias: Tensor | None = None) -> Tensor:
    return z.new_empty(mask_shape(z.numel(), is_channels_last(z)), dtype=torch.uint8)


def _fake_apply_mask(
    u: Tensor, mask: Tensor, slope: float, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    return empty_in_layout(u, mask.dim() == 2)


# ---- derivatives: M is symmetric, so that it is apply_mask again


# ctx.needs_input_grad ends before arguments that have their default value.


def _keep_for_masked_act(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, ctx.slope, bias = inputs
    ctx.save_for_backward(output[1])
    ctx.bias_dtype = bias.dtype if bias is not None else None


def _masked_act_backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, None, Tensor | None]:
    (mask,) = ctx.saved_tensors
    grad_z, grad_bias = apply_mask(grad, mask, ctx.slope), None
    if ctx.bias_dtype and ctx.needs_input_grad[2]:
        grad_bias = _per_channel_sums(grad_z).sum(0).to(ctx.bias_dtype)
    return grad_z, None, grad_bias


def _keep_for_apply_mask(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, mask, ctx.slope, bias, scale = inputs
    ctx.save_for_backward(mask, bias, scale)


def _apply_mask_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask, bias, scale = ctx.saved_tensors
    grad_u, grad_bias, grad_scale = apply_mask(grad, mask, ctx.slope), None, None
    if bias is not None and ctx.needs_input_grad[3]:
        sums = _per_channel_sums(grad_u)
        scaled = sums if scale is None else sums * scale.to(sums.dtype)[:, None]
        grad_bias = scaled.sum(0).to(bias.dtype)
    if scale is not None and ctx.needs_input_grad[4]:
        sums = _per_channel_sums(grad_u)
        grad_scale = (sums * bias.to(sums.dtype)).sum(1).to(scale.dtype)
    return grad_u, None, None, grad_bias, grad_scale


def _per_channel_sums(x: Tensor) -> Tensor:
    """x [N, C, ...] summed over all but samples and channels, [N, C], in the type of the arithmetic."""
    dtype = arithmetic_type(x.dtype)
    return x.sum(tuple(range(2, x.dim())), dtype=dtype) if x.dim() > 2 else x.to(dtype)


# ---- what is refused


def _refuse_autograd(op: str, x: Tensor, bias: Tensor | None, scale: Tensor | None = None) -> None:
    if torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad) or (scale is not None and scale.requires_grad)
    ):
        raise FastganError(
            f"{op}: has no derivative, but a tensor that it got requires one; use {op[:-1]}, or torch.no_grad()"
        )


def _check(op: str, x: Tensor, bias: Tensor | None, scale: Tensor | None = None, mask: Tensor | None = None) -> None:
    name = "z" if mask is None else "u"
    if x.dtype not in TYPES:
        raise FastganError(f"{op}: expected {name} in float32, float64, bfloat16 or float16, got {_name(x.dtype)}")
    if mask is not None:
        _check_mask(op, mask, x)
    if bias is not None:
        if x.dim() < 2:
            raise FastganError(
                f"{op}: a bias goes along dimension 1: expected {name} [N, C, ...], got {tuple(x.shape)}"
            )
        _check_vector(op, "bias", bias, 1, name, x)
    if scale is not None:
        if bias is None:
            raise FastganError(f"{op}: a scale multiplies the bias: expected a bias with it, got None")
        _check_vector(op, "scale", scale, 0, name, x)


def _check_vector(op: str, what: str, vector: Tensor, dim: int, name: str, x: Tensor) -> None:
    if vector.dim() != 1 or vector.shape[0] != x.shape[dim]:
        raise FastganError(
            f"{op}: expected {what} of shape ({x.shape[dim]},) for {name} of shape {tuple(x.shape)}, "
            f"got {tuple(vector.shape)}"
        )
    if vector.dtype != x.dtype and not (x.dtype in HALF_TYPES and vector.dtype == torch.float32):
        expected = f"{_name(x.dtype)} or float32" if x.dtype in HALF_TYPES else _name(x.dtype)
        raise FastganError(
            f"{op}: expected {what} in {expected} for {name} in {_name(x.dtype)}, got {_name(vector.dtype)}"
        )
    _check_device(op, vector, x)


def _check_device(op: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise FastganError(f"{op}: expected all tensors on one device, got {x.device} and {tensor.device}")


def _check_mask(op: str, mask: Tensor, u: Tensor) -> None:
    size = (u.numel() + 7) // 8
    # [size], or [1, size] where u can be channels-last
    fits = mask.dim() == 1 or (mask.dim() == 2 and mask.shape[0] == 1 and u.dim() in CHANNELS_LAST)
    if mask.dtype != torch.uint8 or not fits or mask.shape[-1] != size:
        expected = f"({size},) or (1, {size})" if u.dim() in CHANNELS_LAST else f"({size},)"
        raise FastganError(
            f"{op}: expected mask as uint8 {expected} for u of shape {tuple(u.shape)}, "
            f"got {_name(mask.dtype)} {tuple(mask.shape)}; it comes from masked_act of a tensor of the shape of u"
        )
    _check_device(op, mask, u)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


register(
    "masked_act(Tensor z, float slope, Tensor? bias=None) -> (Tensor a, Tensor mask)",
    _masked_act,
    fake=_fake_masked_act,
    setup_context=_keep_for_masked_act,
    backward=_masked_act_backward,
    decomposition=decomposition,
)
register(
    "masked_act_(Tensor(a!) z, float slope, Tensor? bias=None) -> Tensor mask", _masked_act_, fake=_fake_masked_act_
)
register(
    "apply_mask(Tensor u, Tensor mask, float slope, Tensor? bias=None, Tensor? scale=None) -> Tensor",
    _apply_mask,
    fake=_fake_apply_mask,
    setup_context=_keep_for_apply_mask,
    backward=_apply_mask_backward,
    decomposition=reference_apply,
)
register(
    "apply_mask_(Tensor(a!) u, Tensor mask, float slope, Tensor? bias=None, Tensor? scale=None) -> ()",
    _apply_mask_,
    fake=lambda *_: None,
)
