"""The ops fastgan::modulated_act and modulated_act_backward, and the functions that call them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.kernels._runtime import EXTENSION, choose, disable, register
from fastgan.kernels.masked_act.reference import arithmetic_type, empty_in_layout, in_layout, is_channels_last
from fastgan.kernels.modulated_act.reference import (
    before_activation,
    per_image,
    reference,
    reference_backward,
    slopes,
)

# As ModulatedActType in csrc/modulated_act.h
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def modulate(x: Tensor, scale: Tensor) -> Tensor:
    """x [N, C, H, W] times scale [N, C], like x. Differentiable to any order. Raises FastganError."""
    return modulated_act(x, scale, slope=1.0, gain=1.0)


def modulated_act(
    x: Tensor,
    scale: Tensor,
    noise: Tensor | None = None,
    strength: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    slope: float = 0.2,
    gain: float = 2**0.5,
) -> Tensor:
    """gain * leaky_relu(x * scale + strength * noise + bias), like x.

    x: [N, C, H, W], float32, float64, bfloat16 or float16; contiguous or channels-last, else it is copied
    scale: [N, C];  bias: [C];  noise: [N, 1, H, W], or [1, 1, H, W] for all samples;  strength: 0-dim, with a noise:
        each in the type of x, or in float32 where that is bfloat16 or float16
    slope: of leaky ReLU on negative numbers, 1 for none;  gain: of the result, more than 0
    Differentiable to any order in x, scale, strength and bias; a noise that requires a gradient is refused, having
    none. Raises FastganError.
    """
    if noise is not None and noise.requires_grad and torch.is_grad_enabled():
        raise FastganError("modulated_act: the noise has no derivative; give noise.detach()")
    out: Tensor = _ACT(x, scale, noise, strength, bias, slope, gain)
    return out


def demodulation(scale: Tensor, squares: Tensor, eps: float = 1e-8) -> Tensor:
    """d [N, O] = 1 / sqrt(scale^2 squares + eps): what makes the outputs of unit variance for inputs of unit variance.

    scale: s, [N, I];  squares: [I, O], the weights' squares summed over the kernel (equation 3 of the paper)
    """
    return torch.rsqrt(scale.square() @ squares + eps)


# ---- the ops


def _act(
    x: Tensor,
    scale: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    slope: float,
    gain: float,
) -> Tensor:
    _check(x, scale, noise, strength, bias, gain)
    x = in_layout(x, is_channels_last(x))
    if choose("modulated_act", x.device).native:
        out = torch.empty_like(x)
        if _native(x, scale, noise, strength, bias, slope, gain, out):
            return out
    return in_layout(reference(x, scale, noise, strength, bias, slope, gain), is_channels_last(x))


def _backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    slope: float,
    gain: float,
) -> tuple[Tensor, Tensor]:
    channels_last = is_channels_last(x)
    x, grad = in_layout(x, channels_last), in_layout(grad.to(x.dtype), channels_last)
    if choose("modulated_act", x.device).native:
        dx, sums = _fake_backward(grad, x)
        if _native(x, scale, noise, strength, bias, slope, gain, dx, grad, sums):
            return dx, sums
    dx, sums = reference_backward(grad, x, scale, noise, strength, bias, slope, gain)
    return in_layout(dx, channels_last), sums


def _fake_act(x: Tensor, *_: Any) -> Tensor:
    return empty_in_layout(x, is_channels_last(x))


def _fake_backward(grad: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake_act(x), x.new_empty((3, *x.shape[:2]), dtype=arithmetic_type(x.dtype))


def _native(
    x: Tensor,
    scale: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    slope: float,
    gain: float,
    out: Tensor,
    grad: Tensor | None = None,
    sums: Tensor | None = None,
) -> bool:
    """Runs the native kernel on dense tensors: backward where there is a grad. False where it cannot run."""
    dtype = arithmetic_type(x.dtype)
    vectors = [None if v is None else v.detach().to(dtype).contiguous() for v in (scale, noise, strength, bias)]
    if x.is_cuda:
        return _on_gpu(x, vectors, slope, gain, out, grad, sums)
    pixels = x.shape[2] * x.shape[3]
    native = EXTENSION.module
    act = native.ModulatedAct(
        [x.data_ptr(), *(0 if v is None else v.data_ptr() for v in vectors)],
        [x.shape[0], x.shape[1], pixels],
        [is_channels_last(x), noise is not None and noise.shape[0] != x.shape[0]],
        slope,
        gain,
    )
    if grad is None or sums is None:
        native.modulated_act_cpu(act, TYPES[x.dtype], out.data_ptr(), torch.get_num_threads())
    else:
        addresses = (grad.data_ptr(), out.data_ptr(), sums.data_ptr())
        native.modulated_act_backward_cpu(act, TYPES[x.dtype], *addresses, torch.get_num_threads())
    return True


def _on_gpu(
    x: Tensor,
    vectors: list[Tensor | None],
    slope: float,
    gain: float,
    out: Tensor,
    grad: Tensor | None,
    sums: Tensor | None,
) -> bool:
    from fastgan.kernels.modulated_act import triton  # only here: it takes long to load, and is not on every system

    if x.dtype == torch.float64:
        return False
    try:
        triton.launch(x, vectors, slope, gain, out, grad, sums)
    except Exception as error:  # of many kinds: the compiler's, the driver's, out of some resource
        disable("modulated_act", x.device, error)
        return False
    return True


# ---- derivatives


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.slope, ctx.gain = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, scale, noise, strength, bias = ctx.saved_tensors
    dx, sums = _BACKWARD(grad, x, scale, noise, strength, bias, ctx.slope, ctx.gain)
    return (
        dx,
        sums[0].to(scale.dtype),
        None,
        None if strength is None else sums[2].sum().to(strength.dtype),
        None if bias is None else sums[1].sum(0).to(bias.dtype),
        None,
        None,
    )


def _differentiate_backward(ctx: Any, of_dx: Tensor | None, of_sums: Tensor | None) -> tuple[Any, ...]:
    """From L = <of_dx, dx> + <of_sums, sums>, with dz = g m and m locally constant. Differentiable operations only."""
    grad, x, scale, noise, strength, bias = ctx.saved_tensors
    dtype = arithmetic_type(x.dtype)
    with torch.no_grad():
        m = slopes(before_activation(x, scale, noise, strength, bias), ctx.slope, ctx.gain)
    wide_x, dz = x.to(dtype), grad.to(dtype) * m
    by_dz, by_x, by_scale = torch.zeros_like(dz), None, None
    if of_dx is not None:
        of_dx = of_dx.to(dtype)
        by_dz = of_dx * per_image(scale.to(dtype))
        by_scale = (of_dx * dz).sum((2, 3)).to(scale.dtype)
    if of_sums is not None:
        with_x, alone, with_noise = (per_image(part) for part in of_sums.to(dtype))
        by_x = (dz * with_x).to(x.dtype)
        by_dz = by_dz + wide_x * with_x
        if bias is not None:
            by_dz = by_dz + alone
        if noise is not None:
            by_dz = by_dz + with_noise * noise.to(dtype)
    return ((by_dz * m).to(grad.dtype), by_x, by_scale, *[None] * 5)


# ---- what is refused


def _check(
    x: Tensor, scale: Tensor, noise: Tensor | None, strength: Tensor | None, bias: Tensor | None, gain: float
) -> None:
    if x.dtype not in TYPES:
        raise FastganError(f"modulated_act: expected x in float32, float64, bfloat16 or float16, got {_name(x)}")
    if x.dim() != 4:
        raise FastganError(f"modulated_act: expected x [N, C, H, W], got {tuple(x.shape)}")
    if not gain > 0:
        raise FastganError(f"modulated_act: expected a gain above 0, got {gain}")
    if (noise is None) != (strength is None):
        raise FastganError("modulated_act: expected both noise and strength or neither, got one of them")
    n, c, h, w = x.shape
    expected: dict[str, list[tuple[int, ...]]] = {
        "scale": [(n, c)],
        "noise": [(n, 1, h, w), (1, 1, h, w)],
        "strength": [()],
        "bias": [(c,)],
    }
    for (name, shapes), vector in zip(expected.items(), (scale, noise, strength, bias), strict=True):
        if vector is None:
            continue
        if tuple(vector.shape) not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise FastganError(
                f"modulated_act: expected {name} of shape {wanted} for x {tuple(x.shape)}, got {tuple(vector.shape)}"
            )
        if vector.dtype not in (x.dtype, arithmetic_type(x.dtype)):
            raise FastganError(f"modulated_act: expected {name} in the type of x, {_name(x)}, got {_name(vector)}")
        if vector.device != x.device:
            raise FastganError(
                f"modulated_act: expected all tensors on one device, got x on {x.device} and {name} on {vector.device}"
            )


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


_ARGUMENTS = "Tensor x, Tensor scale, Tensor? noise, Tensor? strength, Tensor? bias, float slope, float gain"

_ACT = register(
    f"modulated_act({_ARGUMENTS}) -> Tensor",
    _act,
    fake=_fake_act,
    setup_context=_keep,
    backward=_differentiate,
    decomposition=reference,
)
_BACKWARD = register(
    f"modulated_act_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor dx, Tensor sums)",
    _backward,
    fake=_fake_backward,
    setup_context=_keep,
    backward=_differentiate_backward,
    decomposition=reference_backward,
)
